"""Every op of the table computes what the reference computes; every op of the IR is in it or has a reason not to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, substitute
from omnic.ir.graph import Module
from omnic.ir.op import all_ops, find_op
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, Storage, TensorType
from omnic.targets.onnx.caps import PROFILE_CAPS
from omnic.targets.onnx.lower import CACHED, PROFILES, REFUSED
from tests.ir import composite_cases, core_cases
from tests.targets.onnx.helpers import run_function

#: dequantise reads a weight: test_blocks.py; cache_close writes codes: test_codes.py
ELSEWHERE = {"dequantise", "cache_close"}
CORE = sorted(n for n, op in all_ops().items() if not op.composite and n not in REFUSED and n not in ELSEWHERE)
COMPOSITES = sorted(name for name, op in all_ops().items() if op.composite)
#: a jump of the function itself (a quotient next to a whole number), or a number that f32 cannot hold
NARROW = settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)


def core_module(op: str, types: list[TensorType], attrs: dict[str, Any]) -> Module:
    builder = ModuleBuilder("one", {name: DimRange(1, 64) for name in core_cases.SIZES})
    f = builder.function("forward")
    values = [None if t is None else f.param(f"p{i}", t) for i, t in enumerate(types)]
    made = f.emit(op, *values, **attrs)
    names = find_op(op)
    for index, value in enumerate(made):
        f.result(f"{names.output(index)}{index}", value)
    # Symbols that no operand has are given by one more parameter.
    f.param("sizes", TensorType(DType.I64, tuple(core_cases.symbol(n) for n in core_cases.SIZES)))
    return builder.build()


def flat(types: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
    """The operands one by one: a variadic input's members are a list in the cases."""
    if types and isinstance(types[-1], list):
        return [*types[:-1], *types[-1]], [*arrays[:-1], *arrays[-1]]
    return types, arrays


def agree(module: Module, inputs: dict[str, Any], profile: str, tolerance: float = 2e-5) -> None:
    rounded = {
        name: np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a)
        for name, a in inputs.items()
    }
    wanted = Interpreter(module, {}).run(rounded)
    found = run_function(module, rounded, profile)
    for result in module.function().results:
        want, got = np.asarray(wanted[result.name]), found[result.name]
        assert got.shape == want.shape
        if want.dtype.kind != "f":
            assert np.array_equal(got, want), result.name
            continue
        unknown = np.isnan(want)
        assert np.array_equal(np.isnan(got), unknown)
        scale = max(1.0, float(np.abs(want[~unknown]).max(initial=0.0)))
        assert np.abs(got - want)[~unknown].max(initial=0.0) <= tolerance * scale


@pytest.mark.parametrize("op", CORE)
@NARROW
@given(data=st.data())
def test_a_core_op_is_the_reference(op: str, data: st.DataObject) -> None:
    made = core_cases.CASES[op](core_cases.Maker(data.draw))
    operands = list(zip(*flat(made.types, made.arrays), strict=True))
    types = [t for t, _ in operands if t is not None]
    assume(not any(isinstance(t.element, Storage) for t in types))
    assume(not any(t.element in (DType.I8, DType.U8, DType.I32) for t in types))
    if op.startswith("cache_"):
        # A state has a fixed capacity; f16 ones are tested in a session.
        assume(types[0].element == DType.F32)
        operands = [(t.with_shape(*(substitute(d, core_cases.SIZES) for d in t.shape)), a) for t, a in operands]
    if op == "depthwise_conv1d":
        assume(all(isinstance(d, int) for d in types[1].shape))
    if op in ("floordiv", "mod") and made.types[0].is_float:
        quotient = np.asarray(made.arrays[0]) / np.asarray(made.arrays[1])
        assume(np.abs(quotient - np.round(quotient)).min(initial=1.0) > 1e-3)
    module = core_module(op, [t for t, _ in operands], made.attrs)
    inputs = {f"p{i}": a for i, (_, a) in enumerate(operands) if a is not None}
    sizes = np.zeros(tuple(core_cases.SIZES.values()), np.int64)
    agree(module, {**inputs, "sizes": sizes}, "plain")


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("op", COMPOSITES)
@NARROW
@given(data=st.data())
def test_a_composite_is_the_reference(op: str, profile: str, data: st.DataObject) -> None:
    maker = composite_cases.Maker(data.draw)
    made = composite_cases.CASES[op](maker)
    assume(not isinstance(made.attrs.get("to"), Storage))
    symbols = {"T": composite_cases.TOKENS, "S": composite_cases.SLOTS} if maker.flag() else {}
    module = composite_cases.module_of(op, made.arrays, symbols, **made.attrs)
    if op == "rope" and maker.flag():
        # With a capacity the rotation is a table's, else it is computed from the positions.
        module = replace(module, meta={"capacity": 9000})
    agree(module, composite_cases.inputs_of(made.arrays), profile, 5e-5)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_op_has_an_entry_a_decomposition_or_a_reason(profile: str) -> None:
    caps, table = PROFILE_CAPS[profile], PROFILES[profile]
    native = {name for name, support in caps.ops.items() if support.form == "native"}
    assert native == set(table) | set(CACHED)
    assert {name for name, support in caps.ops.items() if support.form == "excluded"} == set(REFUSED)
    assert set(caps.ops) == set(all_ops())


def test_the_plain_profile_uses_the_standard_set_alone() -> None:
    assert set(PROFILE_CAPS["plain"].opset) == {""}
    assert "com.microsoft" in PROFILE_CAPS["fused"].opset


def test_a_storage_type_is_refused_with_its_place() -> None:
    builder = ModuleBuilder("one", {})
    f = builder.function("forward")
    x = f.param("x", TensorType(DType.F32, (2, 32)))
    with f.scope("blocks.0.ffn"):
        f.result("y", f.op("quantise", x, to=Storage("i8", 32)))
    with pytest.raises(InputError) as error:
        run_function(builder.build(), {"x": np.zeros((2, 32))}, "plain")
    assert str(error.value) == (
        "onnx cannot take quantise of blocks.0.ffn: "
        "only weights and states are stored as codes, not what is computed between them"
    )
    assert error.value.hint == "quantise the weight or the state, or say fake_quant or act of a product"
