"""The pass round-activations: which rounding is chosen where, what is said, and what else follows the choice."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from omnic.compiler.executor import torch_executor
from omnic.errors import InputError
from omnic.ir.executor import Executor
from omnic.ir.graph import Module
from omnic.ir.ops.linear import quantise_activation
from omnic.ir.reference import ReferenceExecutor
from omnic.ir.text import parse_module
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import PassContext, parse_pass, run_pass
from omnic.passes.context import Calibration
from omnic.spec import load_spec, scale
from omnic.targets.tvm.caps import CAPS
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.options import parse_options

TOKENS = np.random.default_rng(0).integers(3, 200, (2, 24))

TEXT = """module @m {{
  dim B in 1..4
  dim T in 1..32
  dim R in 1..32
  weight @e : f32[256, 64] = normal(std = 1.0)
  weight @q : i4<g32>[64, 64] = quantise(type = i4<g32>, normal(std = 0.1))
  weight @k : i4<g32>[32, 64] = quantise(type = i4<g32>, normal(std = 0.1))
  weight @plain : f32[64, 64] = normal(std = 0.1)
  weight @h : i8<row>[256, 64] = quantise(type = i8<row>, normal(std = 0.1))
  func @forward(%tokens: i64[B, T], %rows: i64[B, R]) -> (%logits: f32[B, R, 256]) {{
    %x = embedding(@e, %tokens) : f32[B, T, 64]
    %g = constant() {{values = [{gains}], shape = [64], type = f32}} : f32[64]
    %m = rms_norm(%x) : f32[B, T, 64]
    %n = mul(%m, %g) : f32[B, T, 64]
    %q = linear(%n, @q) : f32[B, T, 64]
    %k = linear(%n, @k) : f32[B, T, 32]
    %p = linear(%q, @plain) : f32[B, T, 64]
    %r = concat(%k, %k) {{axis = 2}} : f32[B, T, 64]
    %y = add(%p, %r) : f32[B, T, 64]
    %logits = lm_head(%y, @h, %rows) : f32[B, R, 256]
    return logits = %logits
  }}
  func @again(%tokens: i64[B, T]) -> (%z: f32[B, T, 64]) {{
    %x = embedding(@e, %tokens) : f32[B, T, 64]
    %z = linear(%x, @q) : f32[B, T, 64]
    return z = %z
  }}
}}
"""


def reference(module: Module, weights: WeightStore) -> Executor:
    return ReferenceExecutor(module, weights)


def context(module: Module, weights: WeightStore | None = None) -> PassContext:
    return PassContext(weights=weights or WeightStore(module, seed=3), executor=reference,
                       calibration=lambda: Calibration(TOKENS, "drawn"))


@cache
def small(outlier: float = 1.0) -> Module:
    """A module in which two channels behind the norm are ``outlier`` times as large as the others."""
    gains = np.ones(64)
    gains[[5, 40]] = outlier
    return parse_module(TEXT.format(gains=", ".join(f"{g:.1f}" for g in gains)))


def acts(module: Module, function: str = "forward") -> dict[str, str]:
    products = [n for n in module.function(function).nodes if n.op in ("linear", "lm_head", "moe")]
    return {n.results[0].name: str(n.attrs.get("act", "none")) for n in products}


def test_a_row_keeps_one_scale_where_it_costs_little() -> None:
    result = run_pass(small(), parse_pass("round-activations{bound=2.5}"), context(small()))
    assert acts(result.module) == {
        "q": "i8<per_token>", "k": "i8<per_token>", "p": "none", "logits": "i8<per_token>"}


def test_outliers_ask_for_bf16_in_all_products_of_their_input() -> None:
    result = run_pass(small(80.0), parse_pass("round-activations{floor=0.005}"), context(small(80.0)))
    found = acts(result.module)
    assert (found["q"], found["k"], found["p"]) == ("bf16", "bf16", "none")
    said = {r.node: r.message for r in result.remarks}
    assert said[next(n.name for n in result.module.function().nodes if n.results[0].name == "q")].startswith(
        "bf16; errors of its outputs: i8<per_token> ")


def test_codes_in_groups_may_be_asked_for_instead() -> None:
    result = run_pass(small(80.0), parse_pass("round-activations{floor=0.0, otherwise=group}"), context(small(80.0)))
    # A head with one scale a row has no groups: its own codes are those of the row.
    assert acts(result.module) == {"q": "i8<g32>", "k": "i8<g32>", "p": "none", "logits": "i8<per_token>"}


def test_another_function_takes_the_choice_of_the_weight_it_shares() -> None:
    result = run_pass(small(80.0), parse_pass("round-activations{floor=0.0}"), context(small(80.0)))
    assert acts(result.module, "again") == {"z": "bf16"}


def test_greedy_heads_round_as_the_head_does(tmp_path: Path) -> None:
    module = run_pass(build(scale(load_spec("tiny"))), parse_pass("int4-packing{group=32}")).module
    store = WeightStore(module, seed=1)
    lent = replace(context(module, store), executor=torch_executor, results=ResultStore(tmp_path))
    module = run_pass(module, parse_pass("fast-head{dims=32}"), lent).module
    assert "greedy" in module.functions
    after = run_pass(module, parse_pass("round-activations{windows=1, floor=0.0}"), lent).module
    heads = {n.op: n.attrs["act"] for f in after.functions.values() for n in f.nodes if n.op.startswith("lm_")}
    assert heads == {"lm_head": "bf16", "lm_argmax": "bf16"}


def test_the_errors_are_those_of_the_outputs() -> None:
    module = small()
    store = WeightStore(module, seed=3)
    seen: list[np.ndarray] = []
    node = next(n for n in module.function().nodes if n.results[0].name == "q")
    for window in TOKENS:
        reference(module, store).observe(window[None], [node.name], lambda name, given, made: seen.append(given[0][0]))
    x = np.concatenate(seen)
    w = [np.asarray(store.array(name), np.float64) for name in ("q", "k")]
    exact = sum(np.square(x @ m.T).sum() for m in w)
    result = run_pass(module, parse_pass("round-activations"), context(module))
    said = next(r.message for r in result.remarks if r.node == node.name)
    for act in ("i8<per_token>", "bf16", "i8<g32>"):
        off = quantise_activation(x, act) - x
        error = np.sqrt(sum(np.square(off @ m.T).sum() for m in w) / exact)
        assert f"{act} {error:.2%}" in said


def test_what_the_target_does_not_execute_is_left_to_it() -> None:
    lent = replace(context(small()), caps=replace(CAPS, activations=frozenset({"none", "bf16"})))
    result = run_pass(small(), parse_pass("round-activations{floor=1.0}"), lent)
    assert set(acts(result.module).values()) == {"none"} and not result.changed
    assert all(r.missed for r in result.remarks)
    assert all(r.message.startswith("tvm does not execute i8<per_token>; errors: ") for r in result.remarks)


def test_experts_are_looked_at_with_the_tokens_they_are_given() -> None:
    front = build(scale(load_spec("tiny_moe")))
    module = run_pass(front, parse_pass("int4-packing{group=32}")).module
    store = WeightStore(module, seed=3)
    result = run_pass(module, parse_pass("round-activations{windows=1, floor=1.0}"), context(module, store))
    experts = [n for n in result.module.function().nodes if n.op == "moe"]
    assert experts and all(n.attrs["act"] == "i8<per_token>" for n in experts)


def test_the_target_keeps_the_choices_and_decides_the_rest() -> None:
    result = run_pass(small(80.0), parse_pass("round-activations{floor=0.0}"), context(small(80.0)))
    options = parse_options({"activations": "calibrated"})
    module = legalise(result.module, options)
    assert acts(module)["q"] == "bf16"
    assert acts(legalise(small(80.0), options))["q"] == "i8<g32>"
    assert acts(legalise(small(80.0), parse_options({"activations": "bf16"})))["logits"] == "bf16"


def test_a_module_without_codes_is_left_alone() -> None:
    module = build(scale(load_spec("tiny")))
    result = run_pass(module, parse_pass("round-activations"))
    assert not result.changed and result.remarks[0].message == "no product has weights of codes alone"


def test_it_needs_weights_and_text() -> None:
    with pytest.raises(InputError) as caught:
        run_pass(small(), parse_pass("round-activations"))
    assert caught.value.message == "pass 'round-activations' reads the weights, and none were given"
    with pytest.raises(InputError) as caught:
        run_pass(small(), parse_pass("round-activations"), PassContext(weights=WeightStore(small(), seed=3)))
    assert caught.value.message == "pass 'round-activations' needs text to calibrate on, and there is none"
