"""Norms, activations, softmax and topk against f64, and equal in every level and with any threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.op import find_op
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.abi import Kind
from omnic.runtime.kernels.library import Kernels

Array = np.ndarray[Any, Any]
SIZES = (1, 5, 16, 33, 768, 2049)


def rows(d: int, m: int = 7, scale: float = 3.0) -> Array:
    return (scale * np.random.default_rng(d).standard_normal((m, d))).astype(np.float32)


def near(got: Array, want: Array, ulps: float) -> None:
    """Fail when ``got`` is further than ``ulps`` units of f32's last place from ``want`` (relative to the largest)."""
    error = np.max(np.abs(got - want)) / max(float(np.max(np.abs(want))), 1e-30)
    assert error < ulps * 2.0**-23


@pytest.mark.parametrize("d", SIZES)
def test_rms_norm(kernels: Kernels, d: int) -> None:
    x, weight = rows(d), rows(d, 1)[0]
    op = find_op("rms_norm")
    near(calls.rms_norm(kernels, x, weight, 1e-5), op.reference(x.astype(float), weight.astype(float), eps=1e-5), 4)
    near(calls.rms_norm(kernels, x), op.reference(x.astype(float), None, eps=1e-6), 4)


@pytest.mark.parametrize("d", SIZES)
def test_layer_norm(kernels: Kernels, d: int) -> None:
    x, weight, bias = rows(d), rows(d, 1)[0], rows(d, 2)[1]
    want = find_op("layer_norm").reference(x.astype(float), weight.astype(float), bias.astype(float), eps=1e-3)
    near(calls.layer_norm(kernels, x, weight, bias, 1e-3), want, 8)
    plain = find_op("layer_norm").reference(x.astype(float), None, None, eps=1e-3)
    near(calls.layer_norm(kernels, x, eps=1e-3), plain, 8)


@pytest.mark.parametrize("d", SIZES)
def test_softmax(kernels: Kernels, d: int) -> None:
    x = rows(d, scale=20.0)
    near(calls.softmax(kernels, x), find_op("softmax").reference(x.astype(float), axis=-1), 4)


def ends(x: Array) -> Array:
    return np.concatenate([x.reshape(-1), np.array([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, 1e4, -1e4], np.float32)])


@pytest.mark.parametrize("kind", Kind, ids=lambda k: k.name.lower())
def test_activations(kernels: Kernels, kind: Kind) -> None:
    x = ends(np.linspace(-12, 12, 40001, dtype=np.float32))
    want = find_op("act").reference(x.astype(float), kind=kind.name.lower())
    got = calls.act(kernels, kind, x)
    assert np.max(np.abs(got - want) / np.maximum(np.abs(want), 1.0)) < 2.5e-7
    up = np.cos(np.arange(x.size)).astype(np.float32)
    np.testing.assert_array_equal(calls.gated_act(kernels, kind, x, up), got * up)


def last_places(got: Array, want: Array) -> float:
    """Return the largest error in units of the last place of the f32 nearest to ``want``."""
    return float(np.max(np.abs(got - want) / np.spacing(np.abs(want.astype(np.float32))).astype(float)))


def test_the_functions_are_as_exact_as_their_source_says(kernels: Kernels) -> None:
    # softmax of (x, 0): e^x / (e^x + 1), silu and gelu hold exp and erf; tanh is reached through a bound on logits.
    x = np.linspace(-80, 0, 20001, dtype=np.float32)
    pair = calls.softmax(kernels, np.stack([x, np.zeros_like(x)], axis=-1))[:, 0]
    assert last_places(pair[x < -20], np.exp(x[x < -20].astype(float))) < 2.0
    y = np.linspace(0.05, 5, 20001, dtype=np.float32)
    gelu = calls.act(kernels, Kind.GELU, y)
    want = np.array([0.5 * t * (1 + math.erf(t / math.sqrt(2))) for t in y.astype(float)])
    assert last_places(gelu, want) < 3.0


def test_topk_is_the_op_and_stable(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    for d, k in ((1, 1), (7, 7), (64, 8), (513, 40)):
        x = rng.integers(-6, 6, (9, d)).astype(np.float32)
        values, indices = calls.topk(kernels, x, k)
        want_values, want_indices = find_op("topk").reference(x.astype(float), k=k, axis=-1)
        np.testing.assert_array_equal(values, want_values)
        np.testing.assert_array_equal(indices, want_indices)
    with pytest.raises(InputError, match="topk: k = 5 of rows of 4 numbers"):
        calls.topk(kernels, np.zeros((2, 4), np.float32), 5)


FUNCTIONS: dict[str, Callable[[Kernels, Array], Array]] = {
    "rms_norm": lambda k, x: calls.rms_norm(k, x),
    "layer_norm": lambda k, x: calls.layer_norm(k, x, x[0], x[1]),
    "softmax": lambda k, x: calls.softmax(k, x),
    "add": lambda k, x: calls.add(k, x, x[::-1]),
    **{kind.name.lower(): lambda k, x, kind=kind: calls.act(k, kind, x) for kind in Kind},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_levels_and_threads_give_the_same_bits(built: Any, pooled: Kernels, name: str) -> None:
    for shape in ((40, 1031), (3, 21), (1, 90001)):
        x = (9 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
        x = np.concatenate([x, x])
        want = FUNCTIONS[name](built.kernels("generic"), x)
        for other in (built.kernels(), pooled):
            np.testing.assert_array_equal(FUNCTIONS[name](other, x), want)
