"""The functions of emitted training modules against the kernels of inference, which are checked op by op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from omnic.targets.torch import kernels as K
from omnic.targets.torch import library as L

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 8, generator=GENERATOR)
INDEX = torch.randint(0, 5, (1, 2, 8), generator=GENERATOR)
MASKED = X.masked_fill(X > 0.5, float("-inf")).index_fill(1, torch.tensor([2]), float("-inf"))

PAIRS: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda m: m.softmax(MASKED, axis=-1),
    "gather": lambda m: m.gather(X, INDEX, axis=1),
    "topk": lambda m: m.topk(X.round(), k=4, axis=-1),
    "sort": lambda m: m.sort(X.round(), axis=0, descending=True),
    "scatter": lambda m: m.scatter(X, INDEX, torch.ones(3, 2, 8), axis=1, reduce="add"),
    "depthwise_conv1d": lambda m: m.depthwise_conv1d(X, X[0, :3].t(), X[1, 0]),
    "rms_norm": lambda m: m.rms_norm(X, X[0, 0], 1e-6),
    "layer_norm": lambda m: m.layer_norm(X, X[0, 0], X[1, 1], 1e-6),
    "rotate": lambda m: m.rotate(X[:, None], X[..., :3].cos(), X[..., :3].sin()),
    "rotate_pairs": lambda m: m.rotate_pairs(X, X[..., :3].cos(), X[..., :3].sin()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_training_and_inference_mean_the_same(name: str) -> None:
    ours, theirs = PAIRS[name](L), PAIRS[name](K)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for found, wanted in pairs:
        assert torch.isfinite(found).all()
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_masked_softmax_is_finite() -> None:
    x = MASKED.clone().requires_grad_()
    L.softmax(x, -1).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_a_long_window_is_plain_causal_attention() -> None:
    q, k, v = (torch.randn(2, h, 9, 6, generator=GENERATOR) for h in (4, 2, 2))
    assert torch.allclose(L.attend(q, k, v, 0.4, window=9), L.attend(q, k, v, 0.4))
    assert torch.allclose(L.attend(q, k, v, 0.4, window=3), L.attend_capped(q, k, v, 0.4, window=3), atol=1e-6)
