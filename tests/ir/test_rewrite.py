"""The rewriter: matches, refusals with their reasons, names, dead code, retyped weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omnic.errors import InternalError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Recipe, Uses, Value
from omnic.ir.op import ShapeError
from omnic.ir.reference import Interpreter
from omnic.ir.rewrite import (
    Match,
    Pattern,
    Rule,
    eliminate_dead_code,
    rename_values,
    replace_values,
    retype,
    retype_weights,
    rewrite,
)
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import parse_type
from omnic.ir.verify import verify

SILU = """
module @m {
  weight @w : f32[8, 8] = normal(std = 0.02)
  func @forward(%x: f32[4, 8], %y: f32[4, 8]) -> (%out: f32[4, 8]) {
    %s = sigmoid(%x) : f32[4, 8]  scope("ffn")
    %g = mul(%s, %x) : f32[4, 8]  scope("ffn")
    %u = mul(%g, %y) : f32[4, 8]  scope("ffn")
    %v = linear(%u, @w) : f32[4, 8]  scope("ffn")
    return out = %v
  }
}
"""


def fuse_silu(b: FunctionBuilder, match: Match) -> Value:
    return b.op("act", match["x"], kind="silu")


SILU_RULE = Rule("silu", Pattern("product", {"product": ("mul", "gate", "x"), "gate": ("sigmoid", "x")},
                                 swaps=frozenset({"product"})), fuse_silu)


def module_of(text: str) -> Module:
    module = parse_module(text)
    verify(module)
    return module


def run(module: Module, function: Function) -> np.ndarray:
    random = np.random.default_rng(5)
    inputs = {p.value.name: random.standard_normal((4, 8)) for p in function.params}
    weights = {"w": np.random.default_rng(6).standard_normal((8, 8))}
    return Interpreter(module.with_function(function), weights).run(inputs)["out"]


def test_a_match_is_replaced_and_means_the_same() -> None:
    module = module_of(SILU)
    function, remarks = rewrite(module.function(), [SILU_RULE])
    assert [n.op for n in function.nodes] == ["act", "mul", "linear"]
    assert [str(r) for r in remarks if r.message == "applied"] == ["silu: applied (ffn/mul.0)"]
    np.testing.assert_allclose(run(module, function), run(module, module.function()), atol=1e-14)
    verify(module.with_function(function))


def test_names_scopes_and_untouched_nodes_stay() -> None:
    before = module_of(SILU).function()
    after, _ = rewrite(before, [SILU_RULE])
    act, product, linear = after.nodes
    assert (act.scope, act.name, act.result.name) == ("ffn", "ffn/act.0", "g")
    assert (product.name, product.result.name) == ("ffn/mul.1", "u")
    assert linear is before.nodes[3]


def test_nothing_to_do_returns_the_same_function() -> None:
    before = module_of(SILU).function()
    rule = replace(SILU_RULE, pattern=Pattern("a", {"a": ("softmax", "x")}))
    after, remarks = rewrite(before, [rule])
    assert after is before
    assert remarks == ()


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("sigmoid(%x)", "sigmoid(%y)", "'x' is two different values (ffn/mul.0)"),
    ("return out = %v", "return out = %s", "%s is also a result of the function (ffn/sigmoid.0)"),
    ("linear(%u, @w)", "linear(%s, @w)", "%s is also read by ffn/linear.0 (ffn/sigmoid.0)"),
])
def test_a_near_match_says_why_not_and_where(old: str, new: str, reason: str) -> None:
    before = module_of(SILU.replace(old, new)).function()
    after, remarks = rewrite(before, [SILU_RULE])
    assert after is before
    assert f"silu: {reason}" in [str(r) for r in remarks]


def test_a_shared_inner_node_may_stay() -> None:
    module = module_of(SILU.replace("linear(%u, @w)", "linear(%s, @w)").replace("return out = %v", "return out = %u"))
    text = SILU.replace("linear(%u, @w)", "add(%u, %s)")
    module = module_of(text)
    rule = replace(SILU_RULE, pattern=replace(SILU_RULE.pattern, shared=frozenset({"gate"})))
    function, _ = rewrite(module.function(), [rule])
    assert [n.op for n in function.nodes] == ["sigmoid", "act", "mul", "add"]
    assert function.nodes[0].name == "ffn/sigmoid.0"


def test_requirements_and_ensures_refuse_with_their_reason() -> None:
    before = module_of(SILU).function()
    for rule in (
        replace(SILU_RULE, requires=(lambda match: "the target has no act",)),
        replace(SILU_RULE, ensures=(lambda match, values: "the target has no act",)),
    ):
        after, remarks = rewrite(before, [rule])
        assert after is before
        assert [str(r) for r in remarks] == ["silu: the target has no act (ffn/mul.0)"]


def test_another_op_in_the_middle_is_named() -> None:
    before = module_of(SILU.replace("sigmoid(%x)", "tanh(%x)")).function()
    nodes = {"gated": ("mul", "product", "up"), **SILU_RULE.pattern.nodes}
    rule = replace(SILU_RULE, pattern=Pattern("gated", nodes, swaps=frozenset({"product"})))
    _, remarks = rewrite(before, [rule])
    assert [str(r) for r in remarks] == ["silu: 'gate' must be sigmoid, found tanh (ffn/tanh.0)"]


def test_a_root_alone_is_no_near_match() -> None:
    before = module_of(SILU.replace("sigmoid(%x)", "tanh(%x)")).function()
    assert rewrite(before, [SILU_RULE]) == (before, ())


def test_rules_chain_within_one_call() -> None:
    gated = Rule("gated", Pattern("product", {"product": ("mul", "act", "up"), "act": ("act", "gate")}),
                 lambda b, match: b.op("gated_act", match["gate"], match["up"], kind="silu"))
    module = module_of(SILU)
    function, remarks = rewrite(module.function(), [SILU_RULE, gated])
    assert [n.op for n in function.nodes] == ["gated_act", "linear"]
    assert [r.rule for r in remarks if r.message == "applied"] == ["silu", "gated"]
    np.testing.assert_allclose(run(module, function), run(module, module.function()), atol=1e-14)


def test_a_wrong_type_and_endless_rules_are_our_defects() -> None:
    before = module_of(SILU).function()
    wrong = replace(SILU_RULE, build=lambda b, match: b.op("sum", match["x"], axes=(1,)))
    with pytest.raises(InternalError, match=r"rule silu replaces f32\[4, 8\] by f32\[4\] at ffn/mul.0"):
        rewrite(before, [wrong])
    flip = Rule("flip", Pattern("p", {"p": ("mul", "a", "b")}), lambda b, match: b.op("mul", match["b"], match["a"]))
    with pytest.raises(InternalError, match="the rules flip still rewrite @forward after 100 sweeps"):
        rewrite(before, [flip])


def test_dead_code_goes() -> None:
    function = module_of(SILU.replace("return out = %v", "return out = %g")).function()
    assert [n.op for n in eliminate_dead_code(function).nodes] == ["sigmoid", "mul"]
    live = module_of(SILU).function()
    assert eliminate_dead_code(live) is live


def test_values_are_replaced_and_renamed() -> None:
    function = module_of(SILU).function()
    sigmoid, gate, up, _ = (n.result for n in function.nodes)
    replaced = replace_values(function, {gate: sigmoid, up: gate})
    assert replaced.nodes[3].operands[0] is sigmoid
    renamed = rename_values(function, {gate: "opened", up: "s"})
    assert [n.result.name for n in renamed.nodes] == ["s", "opened", "u", "v"]
    assert renamed.nodes[2].operands[0] is renamed.nodes[1].result
    assert Uses(renamed).producer[renamed.results[0].value] is renamed.nodes[3]


def test_a_weight_changes_its_storage_everywhere() -> None:
    module = module_of(SILU)
    stored = parse_type("i4<g8>[8, 8]")
    changed = retype_weights(module, {"w": (stored, Recipe("quantise", {"type": stored.element}, (Recipe("zeros"),)))})
    verify(changed)
    assert changed.weights["w"].type == stored
    assert changed.function().nodes[3].operands[1] is changed.weights["w"].value
    assert changed.function().nodes[0] is module.function().nodes[0]
    assert "weight @w : i4<g8>[8, 8]" in print_module(changed)
    with pytest.raises(InternalError, match="module @m has no weight @v to retype"):
        retype_weights(module, {"v": (stored, Recipe("zeros"))})


def test_retyping_finds_the_types_downstream() -> None:
    function = module_of(SILU).function()
    shorter = {p.value: Value(p.value.name, parse_type("f32[2, 8]")) for p in function.params}
    changed = retype(function, shorter)
    assert {str(v.type) for v in changed.values()} == {"f32[2, 8]"}
    with pytest.raises(ShapeError):
        retype(function, {function.params[0].value: Value("x", parse_type("f32[3, 8]"))})
