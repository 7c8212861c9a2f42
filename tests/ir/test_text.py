"""What the text form says: spellings that are taken, and how modules are printed."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

import omnic.ir.op as op_module
import omnic.models
from omnic.errors import DiagnosticError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange
from omnic.ir.equal import same_module
from omnic.ir.graph import Function, Loc, Module
from omnic.ir.text import parse_module, print_function, print_module, print_node
from omnic.ir.types import DType, parse_type
from omnic.spec import load_spec

HEAD = "module @m {\n  dim B in 1..4\n  weight @w : f32[8] = ones()\n  func @main(%x: f32[B, 8]) -> (%y: f32[B, 8]) {\n"
TAIL = "\n    return y = %y\n  }\n}\n"


def body(text: str) -> Module:
    return parse_module(HEAD + text + TAIL)


def lines(module: Module) -> list[str]:
    return [line.strip() for line in print_module(module).split("\n") if line.startswith("    %")]


def test_a_type_may_be_left_out_and_is_printed() -> None:
    assert lines(body("%y = relu(%x)")) == ["%y = relu(%x) : f32[B, 8]"]


def test_an_attribute_at_its_default_is_not_printed() -> None:
    assert lines(body("%y = rms_norm(%x, @w) {eps = 1e-06}")) == ["%y = rms_norm(%x, @w) : f32[B, 8]"]


def test_a_negative_zero_is_not_the_default_zero() -> None:
    text = "%p = pad(%x) {axis = 0, after = 1, value = -0.0}\n%y = slice(%p) {axis = 0, start = [0], stop = [B]}"
    assert lines(body(text))[0] == "%p = pad(%x) {axis = 0, after = 1, value = -0.0} : f32[B + 1, 8]"


def test_attributes_come_in_the_order_of_the_op() -> None:
    text = "%y, %i = topk(%x) {axis = 1, k = 8}"
    assert lines(body(text)) == ["%y, %i = topk(%x) {k = 8, axis = 1} : f32[B, 8], i64[B, 8]"]


def test_an_operand_after_an_absent_one_is_named() -> None:
    assert lines(body("%y = layer_norm(x = %x, bias = @w)")) == ["%y = layer_norm(%x, bias = @w) : f32[B, 8]"]


def test_named_operands_that_need_no_name_lose_it() -> None:
    assert lines(body("%y = layer_norm(%x, bias = @w, weight = @w)")) == ["%y = layer_norm(%x, @w, @w) : f32[B, 8]"]


def test_comments_spaces_and_line_ends_do_not_count() -> None:
    plain = body("    %y = relu(%x) : f32[B, 8]  scope(\"a\")")
    text = HEAD + "# a line\n\t%y=relu( %x ):f32[ B,8 ]scope(\"a\") # \"quoted\n" + TAIL
    assert same_module(plain, parse_module(text.replace("\n", "\r\n"))) == []
    assert print_module(parse_module("\ufeff" + text)) == print_module(plain)


def test_a_signature_that_is_too_long_takes_a_line_for_each_entry() -> None:
    mb = ModuleBuilder("m", {})
    f = mb.function("main")
    for i in range(6):
        f.result(f"out{i}", f.op("relu", f.param(f"parameter_{i}", parse_type("f32[4, 4]"))))
    text = print_module(mb.build())
    assert "  func @main(\n    %parameter_0: f32[4, 4],\n" in text
    assert "    %parameter_5: f32[4, 4],\n  ) -> (\n    %out0: f32[4, 4],\n" in text
    assert all(len(line) <= 120 for line in text.split("\n"))
    assert print_module(parse_module(text)) == text


def test_node_names_are_printed_where_they_leave_the_count() -> None:
    text = "%a = relu(%x)\n%b = relu(%a) name(\"/relu.4\")\n%c = relu(%b)\n%y = relu(%c) name(\"mine\")"
    module = body(text)
    assert [n.name for n in module.function("main").nodes] == ["/relu.0", "/relu.4", "/relu.5", "mine"]
    assert [line.partition("name")[2] for line in lines(module)] == ["", "(\"/relu.4\")", "", "(\"mine\")"]


def test_a_node_taken_out_costs_one_written_name() -> None:
    module = body("\n".join(f"%{b} = relu(%{a})" for a, b in zip("xabcd", "abcdy", strict=True)))
    function = module.function("main")
    kept = tuple(n for n in function.nodes if n.name != "/relu.1")
    broken = dataclasses.replace(function, nodes=kept)
    assert print_function(broken).count("name(") == 1


def test_a_place_in_the_spec_is_kept() -> None:
    module = body('%y = relu(%x) loc("specs/a b.yaml":12:5)')
    assert module.function("main").nodes[0].loc == Loc("specs/a b.yaml", 12, 5)
    assert 'loc("specs/a b.yaml":12:5)' in print_module(module)


def test_one_node_prints_with_its_name() -> None:
    node = body("%y = relu(%x)").function("main").nodes[0]
    assert print_node(node) == '%y = relu(%x) : f32[B, 8]  name("/relu.0")'


def test_numpy_scalars_become_plain_attributes() -> None:
    mb = ModuleBuilder("m", {})
    f = mb.function("main")
    x = f.param("x", parse_type("f32[4]"))
    f.result("y", f.op("clamp", x, min=np.float64(0.1), max=np.float32(0.5)))
    assert "{min = 0.1, max = 0.5}" in print_module(mb.build())


def test_exact_floats_survive() -> None:
    mb = ModuleBuilder("m", {})
    f = mb.function("main")
    values = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float("inf"), 1e16)
    f.result("y", f.op("constant", values=values, shape=(7,), type=DType.F32))
    again = parse_module(print_module(mb.build()))
    assert [repr(v) for v in again.function("main").nodes[0].attrs["values"]] == [repr(v) for v in values]  # type: ignore[union-attr]


def test_an_absent_input_before_a_variadic_one_is_named_as_a_list() -> None:
    registry = op_module._REGISTRY

    class Gathered(op_module.Op):
        name = "test_gathered"
        inputs = (op_module.In("x"), op_module.In("scale", optional=True), op_module.In("others", variadic=True))

        def infer(self, *types: object, **attrs: object):  # type: ignore[override]
            return types[0]

    registry["test_gathered"] = Gathered()
    try:
        assert lines(body("%y = test_gathered(%x, others = [%x, %x])")) == [
            "%y = test_gathered(%x, others = [%x, %x]) : f32[B, 8]"]
        assert lines(body("%y = test_gathered(%x, @w, %x, %x)")) == ["%y = test_gathered(%x, @w, %x, %x) : f32[B, 8]"]
        assert lines(body("%y = test_gathered(%x)")) == ["%y = test_gathered(%x) : f32[B, 8]"]
    finally:
        del registry["test_gathered"]


def test_only_twenty_errors_are_shown() -> None:
    with pytest.raises(DiagnosticError) as caught:
        body("\n".join(f"%v{i} = nothing(%x)" for i in range(30)) + "\n%y = relu(%x)")
    assert len(caught.value.diagnostics) == 21
    assert caught.value.diagnostics[-1].message == "10 more errors are not shown"


def test_a_function_without_nodes_or_results() -> None:
    module = Module("m", {"B": DimRange(2, 2)}, {}, {}, {"main": Function("main", (), (), ())})
    assert print_module(module) == "module @m {\n  dim B = 2\n  func @main() -> () {\n    return\n  }\n}\n"
    assert same_module(module, parse_module(print_module(module))) == []


@pytest.mark.parametrize(("preset", "bound"), [("tiny", 0.3), ("mobile_4gb", 1.0), ("draft_2b", 2.0)])
def test_parsing_is_quick(preset: str, bound: float) -> None:
    text = print_module(omnic.models.build(load_spec(preset)))
    seconds: list[float] = []
    for _ in range(3):
        start = time.process_time()
        module = parse_module(text)
        seconds.append(time.process_time() - start)
        if seconds[-1] < bound:
            break
    assert min(seconds) < bound
    assert print_module(module) == text
