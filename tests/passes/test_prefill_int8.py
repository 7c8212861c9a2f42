"""The pass prefill-int8: how calls choose, the numbers of the copies, orders with other passes, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import DiagnosticError, InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.reference import Interpreter, ReferenceSession
from omnic.ir.rewrite import retype_weights
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import parse_element
from omnic.ir.verify import verify
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.models.summary import summarise
from omnic.passes.base import PassContext, parse_pass, run_pass, run_passes
from omnic.passes.prefill_int8 import prefill_bytes, prefill_weights
from omnic.passes.specialise import specialise_phase, specialise_train
from omnic.spec import load_spec, scale

FOUR, EIGHT = "int4-packing{group=32}", "prefill-int8{from_tokens=4}"


@cache
def model(name: str) -> Module:
    return build(scale(load_spec(name)))


def after(name: str, *calls: str) -> Module:
    return run_passes(model(name), [parse_pass(c) for c in calls]).module


def refused(module: Module, call: str = EIGHT, context: PassContext | None = None) -> tuple[str, str | None]:
    with pytest.raises(InputError) as caught:
        run_pass(module, parse_pass(call), context or PassContext())
    return caught.value.message, caught.value.hint


def run(module: Module, store: WeightStore, function: str, tokens: Any, start: int, states: Any) -> dict[str, Any]:
    steps = np.arange(tokens.shape[1])[None].repeat(len(tokens), 0)
    inputs = {"tokens": tokens, "positions": start + steps, "start": np.full(len(tokens), start),
              "length": np.full(len(tokens), tokens.shape[1]), "rows": steps}
    return Interpreter(module, store).run(inputs, function, states)


def test_each_call_of_the_reference_session_runs_its_own_function() -> None:
    module = after("tiny", FOUR, EIGHT)
    store = WeightStore(module, seed=3)
    session = ReferenceSession(module, store)
    tokens = np.random.default_rng(0).integers(0, 300, (1, 9))
    first = session.forward(tokens[:, :4]).logits
    second = session.forward(tokens[:, 4:7]).logits
    third = session.forward(tokens[:, 7:8]).logits
    one = run(module, store, "prefill", tokens[:, :4], 0, None)
    states = {p.state: one[p.state] for p in module.function("prefill").params if p.state}
    two = run(module, store, "forward", tokens[:, 4:7], 4, states)
    states = {p.state: two[p.state] for p in module.function().params if p.state}
    three = run(module, store, "forward", tokens[:, 7:8], 7, states)
    for found, wanted in ((first, one), (second, two), (third, three)):
        np.testing.assert_array_equal(found, wanted["logits"])
    other = run(module, store, "forward", tokens[:, :4], 0, None)["logits"]
    assert np.abs(first - other).max() > 1e-4, "the two functions give the same numbers"


def test_the_length_of_the_call_counts_and_not_that_of_its_rows() -> None:
    module = after("tiny", FOUR, EIGHT)
    store = WeightStore(module, seed=3)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 5))
    ragged, short = ReferenceSession(module, store, batch=2), ReferenceSession(module, store)
    found = ragged.forward(tokens, length=[5, 2]).logits[1, :2]
    alone = short.forward(tokens[1:, :2]).logits[0]
    padded = ReferenceSession(module, store).forward(tokens[1:], length=[2]).logits[0, :2]
    np.testing.assert_allclose(found, padded, rtol=0, atol=1e-12)
    assert np.abs(found - alone).max() > 1e-4


@pytest.mark.parametrize("order", [(FOUR, EIGHT), (EIGHT, FOUR), (FOUR, EIGHT, "qkv-merge", "gate-up-merge"),
                                   (FOUR, "qkv-merge", "gate-up-merge", EIGHT), (EIGHT, "qkv-merge", FOUR),
                                   (FOUR, EIGHT, "kv-quant{bits=8}"), (FOUR, "kv-quant{bits=8}", EIGHT)],
                         ids=" ".join)
def test_any_order_gives_the_same_numbers(order: tuple[str, ...]) -> None:
    states = [c for c in order if c.startswith("kv-quant")]
    tokens = np.random.default_rng(0).integers(0, 300, (1, 6))
    found: list[Any] = []
    for module in (after("tiny", *order), after("tiny", FOUR, EIGHT, *states)):
        verify(module)
        verify(parse_module(print_module(module)))
        store = WeightStore(module, seed=3)
        found.append([run(module, store, n, tokens, 0, None)["logits"] for n in ("forward", "prefill")])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def test_the_copies_are_rounded_from_the_numbers_and_not_from_the_codes(tmp_path: Path) -> None:
    front, results = model("tiny"), ResultStore(tmp_path)
    store = WeightStore(front, seed=3, results=results)
    name = "blocks.0.ffn.up"
    eight = run_pass(front, parse_pass("int4-packing{kind=i8, group=0}")).module
    wanted = store.with_module(eight).quantised(name)
    context = PassContext(weights=store, results=results)
    hqq = run_pass(front, parse_pass("int4-packing{method=hqq}"), context).module
    assert hqq.weights[name].recipe.kind == "stored"
    for module in (front, run_pass(front, parse_pass(FOUR)).module, hqq):
        changed = run_pass(module, parse_pass(EIGHT), context).module
        found = store.with_module(changed).quantised(f"{name}.prefill")
        np.testing.assert_array_equal(found.codes, wanted.codes)
        np.testing.assert_array_equal(found.scale, wanted.scale)


def test_what_is_shared_and_what_is_counted() -> None:
    module = after("tiny_moe", FOUR, EIGHT)
    made = prefill_weights(module)
    assert made
    assert all(w.name.endswith(".prefill") and str(w.type.element) == "i8<row>" for w in made)
    assert not any(".experts." in w.name or w.name.startswith(("mtp", "embed", "head")) for w in made)
    assert prefill_bytes(module) == sum(w.type.bytes() for w in made)
    before, summary = summarise(after("tiny_moe", FOUR)), summarise(module)
    assert summary.bytes_by_kind["prefill copies"] == prefill_bytes(module)
    assert summary.weight_bytes == before.weight_bytes + prefill_bytes(module)
    assert summary.weight_bytes_per_token == before.weight_bytes_per_token
    assert prefill_weights(model("tiny_moe")) == ()


def test_refusals(tmp_path: Path) -> None:
    module = model("tiny")
    with pytest.raises(InputError, match=r"from_tokens.*2.*1048576.*got 1"):
        parse_pass("prefill-int8{from_tokens=1}")
    assert refused(module, "prefill-int8{from_tokens=4096}") == (
        f"pass 'prefill-int8': no call of @{module.name} has 4096 tokens; T is at most {module.dims['T'].high}",
        f"set from_tokens to {module.dims['T'].high} or less")
    assert refused(specialise_train(module))[0].endswith("takes no %start, so it has no phases")
    clone = specialise_phase(module, "prefill", 8)
    assert refused(clone) == (f"pass 'prefill-int8': @{module.name} has a function @prefill already",
                              "give the clone of specialise-phase another name")
    forward = module.function()
    bare = replace(module, functions={"forward": replace(forward, nodes=tuple(
        replace(n, attrs={**n.attrs, "act": "i8<per_token>"}) if n.op == "linear" else n for n in forward.nodes))})
    assert refused(bare) == (f"pass 'prefill-int8': @{module.name} has no product of a linear with a weight to copy",
                             "leave the pass out")


def test_codes_without_numbers_are_refused(tmp_path: Path) -> None:
    module, results = model("tiny"), ResultStore(tmp_path)
    name = "blocks.0.attn.q"
    type = module.weights[name].type.with_element(parse_element("i4<g32>"))
    loaded = retype_weights(module, {name: (type, Recipe("load", {"name": name}))})
    message, hint = refused(loaded)
    assert message == f"pass 'prefill-int8': @{name} is i4<g32>, and its numbers before are not known"
    assert hint is not None
    assert "a model imported as codes cannot have it" in hint
    stored = retype_weights(module, {name: (type, Recipe("stored", {"hash": "0"}))})
    assert refused(stored)[0] == "pass 'prefill-int8' reads the weights, and none were given"
    norm = "blocks.0.attn_norm"
    scaled = retype_weights(stored, {norm: (module.weights[norm].type, Recipe("stored", {"hash": "1"}))})
    context = PassContext(weights=WeightStore(module, seed=3, results=results), results=results)
    assert refused(scaled, EIGHT, context) == (
        f"pass 'prefill-int8': awq has scaled @{norm}, which does not fit the weights as given",
        "quantise with gptq, hqq or rtn")


@pytest.mark.parametrize(("changes", "message"), [
    ({"prefill_from": 1}, "meta prefill_from is 1, it is a number of tokens from 2 up"),
    ({"prefill_from": "all"}, "meta prefill_from is all, it is a number of tokens from 2 up"),
])
def test_the_verifier_reads_the_rule(changes: dict[str, Any], message: str) -> None:
    module = after("tiny", EIGHT)
    with pytest.raises(DiagnosticError) as caught:
        verify(replace(module, meta={**module.meta, **changes}))
    assert [d.message for d in caught.value.diagnostics] == [message]


def test_the_verifier_compares_the_two_functions() -> None:
    module = after("tiny", EIGHT)
    with pytest.raises(DiagnosticError, match="is for a module with @forward and @prefill"):
        verify(module.without_function("prefill"))
    other = module.function("prefill")
    fewer = replace(other, results=tuple(r for r in other.results if r.name != "hidden"))
    with pytest.raises(DiagnosticError, match=r"@forward and has result kv\.0\.k.* where that has result hidden"):
        verify(module.with_function(fewer))
