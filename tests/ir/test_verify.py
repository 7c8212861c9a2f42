"""Rules of the verifier on modules that were built wrong, with carets into the text they print as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

import omnic.models
from omnic.errors import DiagnosticError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Function, Module, Node, Param, Recipe, Result, State, Value
from omnic.ir.types import DType, Storage, TensorType, parse_type
from omnic.ir.verify import FUNCTION_RULES, MODULE_RULES, verify, verify_text
from omnic.spec import load_spec, preset_names, scale

F8 = parse_type("f32[B, 8]")


def small() -> Module:
    """x -> relu -> linear(w), with one state that is written and read."""
    mb = ModuleBuilder("small", {"B": DimRange(1, 4), "T": DimRange(1, 16)})
    w = mb.weight("w", parse_type("f32[8, 8]"), Recipe("ones"))
    state = mb.state(State("k", parse_type("f32[B, 2, 32, 4]"), "k", 0))
    f = mb.function("main")
    x, k = f.param("x", F8), f.param("k", state.type, "k")
    new, start = f.param("new", parse_type("f32[B, 2, T, 4]")), f.param("start", parse_type("i64[B]"))
    with f.scope("ffn"):
        y = f.op("linear", f.op("relu", x), w, hint="y")
    f.result("y", y)
    f.result("k", f.op("cache_write", k, new, start, start, hint="k1"), "k")
    return mb.build()


def with_main(module: Module, **changes: object) -> Module:
    return module.with_function(dataclasses.replace(module.function("main"), **changes))  # type: ignore[arg-type]


def edit_node(module: Module, index: int, **changes: object) -> Module:
    nodes = list(module.function("main").nodes)
    nodes[index] = dataclasses.replace(nodes[index], **changes)  # type: ignore[arg-type]
    return with_main(module, nodes=tuple(nodes))


def messages(module: Module) -> list[str]:
    with pytest.raises(DiagnosticError) as caught:
        verify(module)
    return [d.message for d in caught.value.diagnostics]


def test_a_module_that_keeps_every_rule() -> None:
    verify(small())


def test_carets_point_into_the_printed_text() -> None:
    module = edit_node(small(), 1, results=(Value("y", parse_type("f32[B, 9]")),))
    module = with_main(module, results=module.function("main").results[1:])
    with pytest.raises(DiagnosticError) as caught:
        verify(module)
    assert caught.value.render() == """\
@small:15:30: error: linear gives f32[B, 8], not f32[B, 9]
      %y = linear(%relu, @w) : f32[B, 9]  scope("ffn")
                               ^^^^^^^^^"""


def test_the_line_of_the_spec_is_named() -> None:
    text = """\
module @m {
  dim B in 1..4
  func @main(%x: f32[B, 8]) -> (%y: f32[B, 8]) {
    %a = relu(%x)
    %y = relu(%a) loc("specs/tiny.yaml":12:5) name("/relu.0")
    return y = %y
  }
}
"""
    with pytest.raises(DiagnosticError) as caught:
        verify_text(text, "a.ir")
    assert caught.value.render() == """\
a.ir:5:10: error: two nodes are called /relu.0
      %y = relu(%a) loc("specs/tiny.yaml":12:5) name("/relu.0")
           ^^^^
  from specs/tiny.yaml:12:5"""


def reordered(module: Module) -> Module:
    nodes = module.function("main").nodes
    return with_main(module, nodes=(nodes[1], nodes[0], nodes[2]))


def foreign_value(module: Module) -> Module:
    return edit_node(module, 0, operands=(Value("z", F8),))


def defined_twice(module: Module) -> Module:
    nodes = module.function("main").nodes
    again = dataclasses.replace(nodes[0], name="again")
    return with_main(module, nodes=(*nodes, again))


def foreign_weight(module: Module) -> Module:
    x = module.function("main").nodes[1].operands[0]
    return edit_node(module, 1, operands=(x, Value("w", parse_type("f32[8, 8]"), weight=True), None))


def undeclared_weight(module: Module) -> Module:
    return dataclasses.replace(module, weights={})


def unknown_op(module: Module) -> Module:
    return edit_node(module, 0, op="no_such_op")


def wrong_attribute(module: Module) -> Module:
    return edit_node(module, 0, attrs={"slope": 0.1})


def wrong_domain(module: Module) -> Module:
    start = module.function("main").params[3].value
    return edit_node(module, 1, operands=(start, module.weights["w"].value, None))


def missing_result(module: Module) -> Module:
    return edit_node(module, 2, op="cache_read", operands=module.function("main").nodes[2].operands[:1] + (
        module.function("main").params[3].value,) * 2)


def undeclared_dim(module: Module) -> Module:
    return dataclasses.replace(module, dims={"B": DimRange(1, 4)})


def misfiled(module: Module) -> Module:
    return dataclasses.replace(module, states={"other": module.states["k"]})


def returned_twice(module: Module) -> Module:
    results = module.function("main").results
    return with_main(module, results=(*results, Result("k2", results[1].value, "k")))


def same_result_name(module: Module) -> Module:
    results = module.function("main").results
    return with_main(module, results=(*results, Result("y", results[0].value)))


def not_returned(module: Module) -> Module:
    return with_main(module, results=module.function("main").results[:1])


def comes_in_twice(module: Module) -> Module:
    params = module.function("main").params
    return with_main(module, params=(*params, Param(Value("k2", params[1].value.type), "k")))


def alias_of_nothing(module: Module) -> Module:
    results = module.function("main").results
    return with_main(module, results=(*results, Result("q", results[0].value, "q")))


def returns_a_stranger(module: Module) -> Module:
    results = module.function("main").results
    return with_main(module, results=(Result("y", Value("z", F8)), results[1]))


def unnamed_node(module: Module) -> Module:
    return edit_node(module, 0, name="")


def weight_as_parameter(module: Module) -> Module:
    params = module.function("main").params
    return with_main(module, params=(*params, Param(module.weights["w"].value)))


def unbound_dim(module: Module) -> Module:
    module = dataclasses.replace(module, dims={**module.dims, "Q": DimRange(1, 4)})
    value = Value("i", TensorType(DType.I64, (symbol("Q"),)))
    node = Node("iota", (), {"size": (symbol("Q"),)}, (value,), "n")
    return with_main(module, nodes=(*module.function("main").nodes, node))


def bad_storage(module: Module) -> Module:
    module = dataclasses.replace(module, states={"k": dataclasses.replace(
        module.states["k"], type=TensorType(Storage("i4", -1), (4,)))})
    return module


CASES: list[tuple[Callable[[Module], Module], list[str]]] = [
    (reordered, ["%relu is used before it is defined"]),
    (foreign_value, ["%z is not a value of @main"]),
    (defined_twice, ["%relu is defined twice"]),
    (foreign_weight, ["@w is another value than the weight that the module declares"]),
    (undeclared_weight, ["weight @w is not declared"]),
    (unknown_op, ["unknown op 'no_such_op'"]),
    (wrong_attribute, ["relu has no attribute 'slope'"]),
    (wrong_domain, ["linear: input 'x' takes float, got i64[B]"]),
    (missing_result, ["cache_read has 2 results, 1 named"]),
    (undeclared_dim, ["dim T is not declared"]),
    (misfiled, ["state @k is filed as @other", "state @k is not declared"]),
    (returned_twice, ["state @k is returned twice"]),
    (same_result_name, ["two results are called y"]),
    (not_returned, ["state @k comes in and is not returned"]),
    (comes_in_twice, ["state @k comes in twice"]),
    (alias_of_nothing, ["result %q aliases @q, which does not come in"]),
    (returns_a_stranger, ["result %y returns %z, which is not a value of @main"]),
    (unnamed_node, ["a node has no name"]),
    (weight_as_parameter, ["parameter %w is a weight"]),
    (unbound_dim, ["dim Q comes from no parameter of @main"]),
    (bad_storage, ["state @k: i4<head>[4]: a scale per head needs at least two dims",
                   "%k is f32[B, 2, 32, 4], state @k is i4<head>[4]"]),
]


@pytest.mark.parametrize(("breaks", "expected"), CASES, ids=[c[0].__name__ for c in CASES])
def test_rule(breaks: Callable[[Module], Module], expected: list[str]) -> None:
    assert sorted(messages(breaks(small()))) == sorted(expected)


def test_every_rule_says_what_it_asks() -> None:
    for name, rule in (MODULE_RULES | FUNCTION_RULES).items():
        assert rule.__doc__, name


def test_forward_with_states_needs_its_arguments() -> None:
    module = small()
    main = module.function("main")
    forward = dataclasses.replace(main, name="forward", params=(main.params[0], *main.params[1:]))
    module = dataclasses.replace(module, functions={"forward": forward})
    assert messages(module) == [
        "@forward has states and no parameter %tokens",
        "@forward has states and no parameter %length",
        "@forward has states and no result %logits",
    ]


def test_a_dim_is_bound_through_a_sum() -> None:
    mb = ModuleBuilder("m", {"B": DimRange(1, 4), "T": DimRange(1, 16)})
    f = mb.function("main")
    x = f.param("x", parse_type("f32[B, 2*T + B - 1]"))
    f.param("b", parse_type("f32[B]"))
    f.result("y", f.op("iota", size=(symbol("T"),)))
    f.result("x", x)
    verify(mb.build())


def test_a_dim_inside_a_quotient_is_not_bound() -> None:
    mb = ModuleBuilder("m", {"T": DimRange(1, 16)})
    f = mb.function("main")
    f.param("x", parse_type("f32[floordiv(T, 4)]"))
    f.result("y", f.op("iota", size=(symbol("T"),)))
    assert messages(mb.build()) == ["dim T comes from no parameter of @main"]


def test_a_function_with_no_nodes() -> None:
    verify(Module("m", {}, {}, {}, {"main": Function("main", (), (), ())}))


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_and_its_small_copy(preset: str) -> None:
    spec = load_spec(preset)
    verify(omnic.models.build(scale(spec)))
    verify(omnic.models.build(spec))
