"""The pass int4-packing: which weights change, what is computed once, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.compiler.executor import torch_executor
from omnic.errors import InputError
from omnic.ir.caps import Caps, GroupRule
from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceExecutor, ReferenceSession
from omnic.ir.types import DType, Storage
from omnic.ir.verify import verify
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.passes.context import Calibration, PassContext
from omnic.passes.quantise.fake import with_fake_quant
from omnic.spec import load_spec, scale
from omnic.targets.torch.session import TorchSession


@pytest.fixture(scope="module")
def dense() -> Module:
    return build(scale(load_spec("tiny")))


@pytest.fixture(scope="module")
def experts() -> Module:
    return build(scale(load_spec("tiny_moe")))


class Surroundings:
    """A context over random weights, with executors counted."""

    def __init__(self, module: Module, folder: Path, executor: Callable[..., Any] = ReferenceExecutor) -> None:
        self.calls = 0
        self.store = WeightStore.random(module, 3)
        self.results = ResultStore(folder)
        self.store.results = self.results
        vocab = int(str(module.meta["vocab"]))
        tokens = np.random.default_rng(0).integers(0, vocab, (12, 32))

        def made(changed: Module, weights: WeightStore) -> Any:
            self.calls += 1
            return executor(changed, weights)

        text = Calibration(tokens, "x")
        self.context = PassContext(weights=self.store, weights_key="seed 3", calibration=lambda: text, executor=made,
                                   results=self.results)

    def run(self, module: Module, text: str) -> Any:
        result = parse_pass(f"int4-packing{{{text}}}").run(module, self.context)
        verify(result.module)
        return result


def elements(module: Module) -> dict[str, str]:
    return {name: str(w.type.element) for name, w in module.weights.items()}


def test_products_change_and_norms_stay(dense: Module) -> None:
    result = parse_pass("int4-packing{group=32, asym=true}").run(dense)
    found = elements(result.module)
    assert found["blocks.0.attn.q"] == found["blocks.0.ffn.down"] == "i4<g32, asym>"
    assert found["embed"] == "i8<row>", "a tied table is one weight"
    assert found["blocks.0.attn_norm"] == found["final_norm"] == str(dense.weights["final_norm"].type.element)
    assert result.module.weights["blocks.0.attn.q"].recipe.kind == "quantise", "round to nearest stays a recipe"


def test_experts_change_and_routers_stay(experts: Module) -> None:
    found = elements(parse_pass("int4-packing{group=32, kind=nf4}").run(experts).module)
    up = next(n for n in found if n.endswith("experts.up"))
    assert found[up] == "nf4<g32>"
    assert found[up.replace("experts.up", "router")] in ("f32", "bf16")
    assert found[next(n for n in found if n.endswith("w_k"))] == "i8<head>"
    kept = elements(parse_pass("int4-packing{group=32, latent=f16, embedding=keep}").run(experts).module)
    assert kept[next(n for n in found if n.endswith("w_v"))] == "f16" and kept["embed"] in ("f32", "bf16")


def test_a_group_that_does_not_divide_becomes_smaller_and_is_said(dense: Module) -> None:
    result = parse_pass("int4-packing{group=128}").run(dense)
    width = int(str(dense.weights["blocks.0.attn.q"].type.shape[-1]))
    if width % 128:
        assert any("128 does not divide" in r.message for r in result.remarks)
    caps = Caps("chip", storage=(GroupRule("i4", (16,)), GroupRule("i8", (0,))), sources={"storage": "its manual"})
    found = elements(parse_pass("int4-packing{group=64}").run(dense, PassContext(caps=caps)).module)
    assert found["blocks.0.attn.q"] == "i4<g16>"
    refused = parse_pass("int4-packing{kind=nf4}").run(dense, PassContext(caps=caps))
    assert "stays" in refused.remarks[0].message and "chip stores no weights as nf4" in refused.remarks[0].message


@pytest.mark.parametrize("method", ["hqq", "awq", "gptq"])
@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_second_run_computes_nothing(method: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    module = request.getfixturevalue(name)
    around = Surroundings(module, tmp_path)
    text = f"method={method}, group=32, asym=true"
    first = around.run(module, text)
    assert around.calls == (0 if method == "hqq" else 1)
    again = around.run(module, text)
    assert around.calls == (0 if method == "hqq" else 1)
    store = around.store.with_module(first.module)
    for weight in first.module.weights.values():
        assert again.module.weights[weight.name].recipe == weight.recipe
        assert np.isfinite(store.array(weight.name)).all()
    if method != "hqq":
        around.run(module, text + ", windows=6")
        assert around.calls == 2, "other text is another result"


def test_awq_scales_cancel(experts: Module, tmp_path: Path) -> None:
    """Without rounding to speak of (8 bits), the scaled norm and all its readers compute what the model did."""
    around = Surroundings(experts, tmp_path)
    changed = around.run(experts, "method=awq, kind=i8, group=16, embedding=keep, latent=keep").module
    moved = [n for n, w in changed.weights.items() if n.endswith("router") and w.recipe.kind == "stored"]
    norms = [n for n, w in changed.weights.items() if n.endswith("norm") and w.recipe.kind == "stored"]
    assert moved and norms, "the router reads the scaled norm, so it is scaled too"
    assert all(changed.weights[n].type == experts.weights[n].type for n in (*moved, *norms)), "no byte is added"
    tokens = np.random.default_rng(1).integers(0, 512, (1, 24))
    before = ReferenceSession(experts, around.store).forward(tokens).logits
    after = ReferenceSession(changed, around.store.with_module(changed)).forward(tokens).logits
    assert np.abs(after - before).max() < 0.05 * np.sqrt(np.mean(np.square(before)))


def test_layers_in_turn_see_the_quantised_layers_before(dense: Module, tmp_path: Path) -> None:
    around = Surroundings(dense, tmp_path)
    at_once = around.run(dense, "method=gptq, kind=i2, group=32").module
    calls = around.calls
    in_turn = around.run(dense, "method=gptq, kind=i2, group=32, sequential=true").module
    blocks = {n.split(".")[1] for n in dense.weights if n.startswith("blocks.")}
    assert around.calls - calls == len(blocks)
    both = [around.store.with_module(m).array("blocks.0.attn.q") for m in (at_once, in_turn)]
    assert np.array_equal(*both), "nothing comes before the first layer"


def test_the_torch_executor_gives_the_same_inputs(dense: Module, tmp_path: Path) -> None:
    found = [Surroundings(dense, tmp_path / name, kind).run(dense, "method=gptq, group=32").module
             for name, kind in (("torch", torch_executor), ("reference", ReferenceExecutor))]
    a, b = (WeightStore(m, seed=3, results=ResultStore(tmp_path / n)).quantised("blocks.0.ffn.down").codes
            for m, n in zip(found, ("torch", "reference"), strict=True))
    assert (a == b).mean() > 0.999


def test_mixed_precision_fits_its_target(dense: Module, tmp_path: Path) -> None:
    around = Surroundings(dense, tmp_path)
    text = "group=32, mix=[i3, i4], bits=3.5, probes=2"
    mixed = around.run(dense, text)
    calls = around.calls
    kinds = {n: w.type.element.kind for n, w in mixed.module.weights.items()
             if isinstance(w.type.element, Storage) and n.startswith("blocks.")}
    assert set(kinds.values()) == {"i3", "i4"}
    bits = sum(dense.weights[n].type.size * {"i3": 3, "i4": 4}[k] for n, k in kinds.items())  # type: ignore[operator]
    assert bits / sum(dense.weights[n].type.size for n in kinds) <= 3.5  # type: ignore[arg-type]
    around.run(dense, text + ", reverse=true")
    assert around.calls == calls, "the sensitivities are kept"
    total = sum(w.type.bytes() for w in mixed.module.weights.values())
    fitted = around.run(dense, f"group=32, mix=[i3, i4, i8], budget={total + 500}, probes=2").module
    assert total - 4000 < sum(w.type.bytes() for w in fitted.weights.values()) <= total + 500


@pytest.mark.parametrize("name", ["dense", "experts"])
@pytest.mark.parametrize("text", ["group=32, asym=true", "kind=t2, group=32", "group=32, scale=s4"])
def test_torch_computes_quantised_weights_as_the_reference(
        name: str, text: str, request: pytest.FixtureRequest) -> None:
    module = request.getfixturevalue(name)
    changed = parse_pass(f"int4-packing{{{text}}}").run(module).module
    store = WeightStore.random(changed, 3)
    tokens = np.random.default_rng(1).integers(0, 512, (1, 24))
    want = ReferenceSession(changed, store).forward(tokens).logits
    found = TorchSession.of(changed, store).forward(tokens).logits
    assert np.abs(found - want).max() <= 2e-5 * np.sqrt(np.mean(np.square(want)))


def test_fake_quant_computes_the_quantised_model(dense: Module) -> None:
    changed = parse_pass("int4-packing{kind=t2, group=32}").run(dense).module
    kinds = {n: w.type.element for n, w in changed.weights.items() if isinstance(w.type.element, Storage)}
    fake = with_fake_quant(dense, kinds)
    verify(fake)
    # The numbers of a file, which are of the weights' 16-bit type already.
    random = WeightStore.random(dense, 3)
    store = WeightStore.of(dense, {name: random.array(name) for name in dense.weights})
    tokens = np.random.default_rng(1).integers(0, 512, (1, 24))
    want = ReferenceSession(changed, store.with_module(changed)).forward(tokens).logits
    found = ReferenceSession(fake, store).forward(tokens).logits
    assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize(("text", "message"), [
    ("group=48", "option 'group' of pass 'int4-packing' must be one of 0, 16, 32, 64, 128, 256, got 48"),
    ("kind=i7", "option 'kind' of pass 'int4-packing' must be one of i8, i6, i5, i4, i3, i2, nf4, fp4, t2, got i7"),
    ("damp=2", "option 'damp' of pass 'int4-packing' must be 1e-06..1, got 2"),
    ("kind=nf4, asym=true", "nf4<g64, asym>: nf4 has no zero point"),
    ("kind=i3, scale=s4", "pass 'int4-packing': s4 is the scale of symmetric i4 groups, not of i3<g64, s4>"),
    ("embedding=f16", "option 'embedding' of pass 'int4-packing' must be a storage type or keep, got 'f16'"),
    ("bits=3.5", "pass 'int4-packing': mix and one of bits and budget belong together"),
    ("mix=[i4, i3], bits=3.5",
     "option 'mix' of pass 'int4-packing' lists two kinds or more, from few bits to many, got i4, i3"),
    ("method=gptq", "pass 'int4-packing' needs text to calibrate on, and there is none"),
])
def test_wrong_options_are_named(dense: Module, text: str, message: str) -> None:
    context = PassContext(weights=WeightStore.random(dense, 0))
    with pytest.raises(InputError) as caught:
        parse_pass(f"int4-packing{{{text}}}").run(dense, context)
    assert caught.value.message == message or (message.startswith("pass 'int4-packing' needs text") and (
        "int4-packing" in caught.value.message))


def test_text_of_another_tokenizer_is_refused(dense: Module, tmp_path: Path) -> None:
    around = Surroundings(dense, tmp_path)
    vocab = int(str(dense.meta["vocab"]))
    around.context = replace(around.context, calibration=lambda: Calibration(np.full((2, 8), vocab), "x"))
    with pytest.raises(InputError) as caught:
        around.run(dense, "method=gptq, group=32")
    assert caught.value.message == f"the calibration text has token {vocab}, @{dense.name} has a vocabulary of {vocab}"


def test_a_plain_cast_is_a_type(experts: Module) -> None:
    changed = parse_pass("int4-packing{latent=f16}").run(experts).module
    assert {w.type.element for n, w in changed.weights.items() if n.endswith(("w_k", "w_v"))} == {DType.F16}
