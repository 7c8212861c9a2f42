"""Ops on drawn shapes and attributes, symbolic dims included, as each target's lowering computes them in memory.

The table of :mod:`tests.parity.op_cases` is what saved programs are held against; this searches beside it, with the
generators that the reference itself is tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module
from omnic.ir.op import all_ops, find_op
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, Storage, TensorType
from omnic.targets.torch.inference import InferenceModule
from omnic.targets.torch.inference import legalised as legalised_for_torch
from tests.ir import composite_cases, core_cases
from tests.targets.executorch.helpers import run_eager
from tests.targets.onnx.helpers import run_function

Run = Callable[[Module, dict[str, Any]], Mapping[str, Any]]
FEW = settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)


@dataclass(frozen=True)
class Lowered:
    """One target's way from a module to numbers.

    Attributes:
        run: runs @forward.
        without: ops that are refused, or that take states or stored weights and are tested with those.
        symbols: whether programs have symbolic dims.
        rows: whether a call may have several rows.
    """

    run: Run
    without: frozenset[str] = frozenset()
    symbols: bool = True
    rows: bool = True


def run_torch(module: Module, inputs: dict[str, Any]) -> dict[str, Any]:
    found = InferenceModule(legalised_for_torch(module), {}).run("forward", {}, inputs)
    return {name: tensor.numpy() for name, tensor in found.items()}


_STATES = {"cache_write", "cache_read", "cache_move", "cache_close"}
_CODES = {"quantise", "dequantise"}
LOWERED = {
    "torch": Lowered(run_torch, frozenset({*_STATES, *_CODES, "fake_quant"})),
    "onnx fused": Lowered(lambda m, i: run_function(m, i, "fused"), frozenset({*_STATES, *_CODES})),
    "onnx plain": Lowered(lambda m, i: run_function(m, i, "plain"), frozenset({*_STATES, *_CODES})),
    "executorch": Lowered(
        run_eager, frozenset({*_STATES, *_CODES, "fake_quant", "block_attention"}), symbols=False, rows=False
    ),
}
#: composites whose first dim is that of the rows of a call
_ROWED = ("attention", "mla", "moe", "router", "lm_head", "short_conv", "linear_recurrence", "pool_blocks", "rope")


def core_module(op: str, case: core_cases.Case) -> tuple[Module, dict[str, Any]]:
    """Return a module of one op with the case's symbolic dims, and its inputs."""
    builder = ModuleBuilder("one", {name: DimRange(1, 64) for name in core_cases.SIZES})
    f = builder.function("forward")
    inputs: dict[str, Any] = {}
    operands: list[Any] = []
    for type, array in zip(case.types, case.arrays, strict=True):
        members = zip(type, array, strict=True) if isinstance(type, list) else [(type, array)]
        for one, numbers in members:
            operands.append(None if one is None else f.param(f"p{len(inputs)}", one))
            if one is not None:
                inputs[f"p{len(inputs)}"] = numbers
    # Symbols that no operand has are given by one more parameter.
    shown = f.param("shown", TensorType(DType.F32, tuple(symbol(n) for n in core_cases.SIZES)))
    inputs["shown"] = np.zeros(tuple(core_cases.SIZES.values()))
    f.result("shown", shown)
    for index, value in enumerate(f.emit(op, *operands, **case.attrs)):
        f.result(f"{find_op(op).output(index)}{index}", value)
    return builder.build(), inputs


def agree(run: Run, module: Module, inputs: dict[str, Any], tolerance: float) -> None:
    rounded = {
        name: np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a)
        for name, a in inputs.items()
    }
    wanted = Interpreter(module, {}).run(rounded)
    found = run(module, rounded)
    for result in module.function().results:
        want, got = np.asarray(wanted[result.name]), np.asarray(found[result.name])
        assert got.shape == want.shape
        if want.dtype.kind != "f":
            assert np.array_equal(got, want), result.name
            continue
        unknown = np.isnan(want)
        assert np.array_equal(np.isnan(got), unknown)
        finite = np.isfinite(want)
        assert np.array_equal(got[~finite & ~unknown], want[~finite & ~unknown])
        scale = max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
        assert np.abs(got[finite] - want[finite]).max(initial=0.0) <= tolerance * scale


@pytest.mark.parametrize("op", sorted(name for name, op in all_ops().items() if not op.composite))
@pytest.mark.parametrize("name", [n for n in LOWERED if n != "onnx fused"])
@FEW
@given(data=st.data())
def test_a_core_op_is_the_reference(name: str, op: str, data: st.DataObject) -> None:
    lowered = LOWERED[name]
    if op in lowered.without:
        return
    made = core_cases.CASES[op](core_cases.Maker(data.draw))
    types = [t for group in made.types for t in (group if isinstance(group, list) else [group]) if t is not None]
    assume(not any(t.element in (DType.I8, DType.U8, DType.I32, DType.F16, DType.BF16) for t in types))
    if op == "depthwise_conv1d":
        assume(all(isinstance(d, int) for d in types[1].shape))
    if op in ("floordiv", "mod") and types[0].is_float:
        # A jump of the function itself: a quotient next to a whole number.
        quotient = np.asarray(made.arrays[0]) / np.asarray(made.arrays[1])
        assume(np.abs(quotient - np.round(quotient)).min(initial=1.0) > 1e-3)
    agree(lowered.run, *core_module(op, made), 2e-5)


@pytest.mark.parametrize("op", sorted(name for name, op in all_ops().items() if op.composite))
@pytest.mark.parametrize("name", LOWERED)
@FEW
@given(data=st.data())
def test_a_composite_is_the_reference(name: str, op: str, data: st.DataObject) -> None:
    lowered = LOWERED[name]
    if op in lowered.without:
        return
    maker = composite_cases.Maker(data.draw)
    made = composite_cases.CASES[op](maker)
    assume(not isinstance(made.attrs.get("to"), Storage))
    assume(lowered.rows or op not in _ROWED or len(made.arrays[0]) == 1)
    symbols = {"T": composite_cases.TOKENS, "S": composite_cases.SLOTS} if lowered.symbols and maker.flag() else {}
    module = composite_cases.module_of(op, made.arrays, symbols, **made.attrs)
    if op == "rope" and maker.flag():
        # With a capacity the rotation is a table's, else it is computed from the positions.
        module = replace(module, meta={"capacity": 9000})
    agree(lowered.run, module, composite_cases.inputs_of(made.arrays), 5e-5)
