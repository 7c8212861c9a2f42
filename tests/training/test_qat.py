"""Training in few bits: the rounding of training is the packing's, and what is exported is what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omnic.ir import packing
from omnic.ir.types import ElementType, Storage, parse_element
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.passes.quantise.fake import with_fake_quant
from omnic.spec import Spec, load_spec, scale
from omnic.targets.torch.library import fake_quant
from omnic.targets.torch.session import TorchSession
from omnic.targets.torch.training import load_training_module
from omnic.training.data import Tokens
from omnic.training.module import build_module, export_weights
from omnic.training.qat import latents, train_quantised


def storage(text: str) -> Storage:
    element = parse_element(text)
    assert isinstance(element, Storage)
    return element


@pytest.mark.parametrize(
    "text", ["t2<g32>", "t2<row, f32>", "i4<g32>", "i4<g32, asym>", "i8<row>", "i3<g32, asym, f32>", "i2<g32>"]
)
def test_the_rounding_of_training_is_the_packings_to_the_bit(text: str) -> None:
    type = storage(text)
    w = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32) * np.float32(0.05)
    w[3, 32:64] = 0
    x = torch.tensor(w, requires_grad=True)
    y = fake_quant(x, type.kind, type.group, type.asym, type.scale)
    # w + (rounded - w) is rounded once more in f32, by less than a millionth of the group's largest number.
    want = packing.decode(packing.quantise(w, type))
    assert np.abs(y.detach().numpy() - want).max() <= 1e-7
    y.sum().backward()
    assert x.grad is not None and bool((x.grad == 1).all()), "straight through"


def test_codes_to_begin_with_round_to_themselves() -> None:
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32) * np.float32(0.05)
    for text in ("t2<g32>", "i4<g32>"):
        q = packing.quantise(w, storage(text))
        again = packing.quantise(latents(q).numpy(), q.type)
        assert np.array_equal(again.codes, q.codes), text
        assert np.allclose(again.scale.astype(float), q.scale.astype(float), rtol=2e-3)


def test_what_is_exported_is_what_was_trained(tmp_path: Path) -> None:
    spec: Spec = scale(load_spec("tiny"))
    front = build(spec)
    source, out = tmp_path / "start.safetensors", tmp_path / "trained.safetensors"
    export_weights(build_module(front, 1), spec, source)
    packed = parse_pass("int4-packing{kind=t2, group=32}").run(front).module
    elements: dict[str, ElementType] = {
        n: w.type.element for n, w in packed.weights.items()
        if isinstance(w.type.element, Storage) and w.type.element.group >= 0 and not n.startswith("mtp.")}
    ids = np.random.default_rng(0).integers(0, spec.vocab.size, 4000).astype(np.uint16)
    tokens = Tokens(ids, "", "")
    found = train_quantised(spec, elements, tokens, out, weights=source, cpu_seconds=1.0, batch=2, length=32)
    assert found.steps >= 1 and np.isfinite(found.last)
    before, after = WeightStore.load(front, source), WeightStore.load(front, out)
    assert not np.array_equal(before.array("blocks.0.attn.q"), after.array("blocks.0.attn.q"))
    assert np.array_equal(before.array("embed"), after.array("embed"))
    window = np.random.default_rng(1).integers(0, spec.vocab.size, (1, 24))
    trained = load_training_module(with_fake_quant(front, elements), after).eval()
    want = trained(torch.from_numpy(window))["logits"].detach().numpy()
    logits = TorchSession.of(packed, after.with_module(packed)).forward(window).logits
    assert np.abs(logits - want).max() <= 2e-5 * np.sqrt(np.mean(np.square(want)))
