"""Every op of the table computes what the reference computes, as the torch module that is exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.op import all_ops
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, Storage
from omnic.targets.executorch.caps import CAPS
from omnic.targets.executorch.emit import legalised
from omnic.targets.executorch.lower import LOWERINGS
from tests.ir import composite_cases, core_cases
from tests.targets.executorch.helpers import run_eager
from tests.targets.onnx.test_ops import core_module, flat

NARROW = settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)
#: states are written in sessions only: test_program.py
STATES = {"cache_write", "cache_read", "cache_move"}
NATIVE = {name for name, support in CAPS.ops.items() if support.form == "native"}
CORE = sorted(n for n, op in all_ops().items() if not op.composite and n in NATIVE - STATES)
COMPOSITES = sorted(
    n for n, op in all_ops().items() if op.composite and CAPS.refusal(n) is None
)


def agree(module: Module, inputs: dict[str, Any], tolerance: float) -> None:
    rounded = {
        name: np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a)
        for name, a in inputs.items()
    }
    wanted = Interpreter(module, {}).run(rounded)
    found = run_eager(module, rounded)
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
    assume(not any(t.element in (DType.I8, DType.U8, DType.I32, DType.F16, DType.BF16) for t in types))
    if op in ("floordiv", "mod") and made.types[0].is_float:
        quotient = np.asarray(made.arrays[0]) / np.asarray(made.arrays[1])
        assume(np.abs(quotient - np.round(quotient)).min(initial=1.0) > 1e-3)
    module = core_module(op, [t for t, _ in operands], made.attrs)
    inputs = {f"p{i}": a for i, (_, a) in enumerate(operands) if a is not None}
    sizes = np.zeros(tuple(core_cases.SIZES.values()), np.int64)
    agree(module, {**inputs, "sizes": sizes}, 2e-5)


@pytest.mark.parametrize("op", COMPOSITES)
@NARROW
@given(data=st.data())
def test_a_composite_of_one_row_is_the_reference(op: str, data: st.DataObject) -> None:
    made = composite_cases.CASES[op](composite_cases.Maker(data.draw))
    assume(not isinstance(made.attrs.get("to"), Storage))
    module = composite_cases.module_of(op, made.arrays, {}, **made.attrs)
    rowed = op in ("attention", "mla", "moe", "router", "lm_head", "short_conv", "linear_recurrence", "pool_blocks")
    assume(not rowed or len(made.arrays[0]) == 1)
    assume(not any(n.attrs.get("act", "none") != "none" for n in module.function().nodes))
    agree(module, composite_cases.inputs_of(made.arrays), 5e-5)


def test_every_op_has_an_entry_a_decomposition_or_a_reason() -> None:
    assert set(LOWERINGS) - {"cache_move"} == NATIVE
    assert set(CAPS.ops) == set(all_ops())


def test_an_op_that_cannot_be_lowered_is_named_with_its_place() -> None:
    from omnic.ir.builder import ModuleBuilder
    from omnic.ir.types import TensorType

    builder = ModuleBuilder("one", {})
    f = builder.function("forward")
    x = f.param("x", TensorType(DType.F32, (2, 32)))
    with f.scope("blocks.0.ffn"):
        f.result("y", f.op("fake_quant", x, to=Storage("i8", 32)))
    with pytest.raises(InputError) as error:
        legalised(builder.build())
    assert str(error.value) == (
        "executorch cannot lower fake_quant of blocks.0.ffn: executorch excludes fake_quant: "
        "only weights are stored as codes, not what is computed between them"
    )
    assert error.value.hint == "choose another target for this model: onnx, torch"


def test_equal_numbers_are_ranked_by_their_index() -> None:
    from omnic.targets.executorch.lower import ranked

    values, indices = ranked(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4, -1)
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert indices.tolist() == [[1, 2, 4, 3]]
