"""Every op that the target lowers, one at a time, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module
from omnic.ir.op import all_ops, find_op
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, TensorType, parse_element
from omnic.targets.torch.caps import CAPS
from omnic.targets.torch.inference import InferenceModule, legalised, new_states
from omnic.targets.torch.kernels import state_values, to_blocks
from omnic.targets.torch.states import Rows
from tests.ir import composite_cases, core_cases

NATIVE = sorted(name for name, support in CAPS.ops.items() if support.form != "excluded")
STATE_OPS = ("cache_write", "cache_read", "cache_move")
# These take states of codes; tests/targets/torch/test_states.py holds them against the reference.
CODE_OPS = ("cache_close", "block_attention")
FEW = settings(max_examples=8)


def test_every_op_has_an_entry_or_a_reasoned_exclusion() -> None:
    assert set(CAPS.ops) == set(all_ops())
    assert all(support.source for support in CAPS.ops.values())


def rounded(array: Any) -> Any:
    """Floats as f32 numbers, so that both sides see the same operands."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def check(module: Module, inputs: dict[str, Any]) -> None:
    inputs = {name: rounded(array) for name, array in inputs.items()}
    wanted = Interpreter(module, {}).run(
        {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in inputs.items()}
    )
    found = InferenceModule(legalised(module), {}).run("forward", {}, inputs)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        other = found[name].numpy()
        assert other.shape == value.shape, name
        if np.asarray(value).dtype.kind != "f":
            assert np.array_equal(other, value), name
            continue
        finite = value[np.isfinite(value)]
        scale = max(float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0, 1.0)
        assert np.allclose(other, value, rtol=1e-4, atol=2e-5 * scale, equal_nan=True), name


def core_module(name: str, case: core_cases.Case) -> tuple[Module, dict[str, Any]]:
    builder = ModuleBuilder("one", {n: DimRange(1, 4096) for n in core_cases.SIZES})
    f = builder.function("forward")
    inputs: dict[str, Any] = {}

    def param(type: Any, array: Any) -> Any:
        if type is None:
            return None
        key = f"p{len(inputs)}"
        inputs[key] = array
        return f.param(key, type)

    operands: list[Any] = []
    for type, array in zip(case.types, case.arrays, strict=True):
        if isinstance(type, list):
            operands += [param(t, a) for t, a in zip(type, array, strict=True)]
        else:
            operands.append(param(type, array))
    # The shapes of results may name dims that no operand shows.
    shown = f.param("shown", TensorType(DType.F32, tuple(symbol(n) for n in core_cases.SIZES)))
    inputs["shown"] = np.zeros(tuple(core_cases.SIZES.values()))
    f.result("shown", shown)
    names = find_op(name).outputs
    for index, value in enumerate(f.emit(name, *operands, **case.attrs)):
        f.result(names[index] if index < len(names) else f"y{index}", value)
    return builder.build(), inputs


@pytest.mark.parametrize("name", [n for n in NATIVE if n in core_cases.CASES and n not in (*STATE_OPS, *CODE_OPS)])
@FEW
@given(data=st.data())
def test_core_op(name: str, data: st.DataObject) -> None:
    module, inputs = core_module(name, core_cases.CASES[name](core_cases.Maker(data.draw)))
    check(module, inputs)


@pytest.mark.parametrize("name", [n for n in NATIVE if n in composite_cases.CASES and n not in CODE_OPS])
@FEW
@given(data=st.data())
def test_composite(name: str, data: st.DataObject) -> None:
    case = composite_cases.CASES[name](composite_cases.Maker(data.draw))
    symbols = {"T": composite_cases.TOKENS, "S": composite_cases.SLOTS}
    check(composite_cases.module_of(name, case.arrays, symbols, **case.attrs), composite_cases.inputs_of(case.arrays))


@pytest.mark.parametrize("name", STATE_OPS)
@pytest.mark.parametrize("element", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("middle", [(), (2,)])
def test_state_op(name: str, element: DType, ring: bool, middle: tuple[int, ...]) -> None:
    from omnic.ir.graph import State

    random, capacity, tokens = np.random.default_rng(3), 600, 5
    shape = (2, *middle, capacity, 4)
    builder = ModuleBuilder("one", {"B": DimRange(1, 4), "T": DimRange(1, 16)})
    f = builder.function("forward")
    rows = symbol("B")
    state = builder.state(State("kv", TensorType(element, (rows, *shape[1:])), "k", 0, ring=ring))
    before = f.param("kv", state.type, state="kv")
    have = random.standard_normal(shape).astype(element.numpy)
    start = np.array([capacity - 3 if ring else 250, 0])
    inputs: dict[str, Any] = {"start": start, "length": np.array([tokens, 3])}
    index = TensorType(DType.I64, (rows,))
    if name == "cache_move":
        pairs = TensorType(DType.I64, (rows, 3))
        inputs = {"source": np.array([[599, 2, -1], [4, 5, 6]]), "target": np.array([[2, 599, 3], [0, -1, 255]])}
        f.result("kv", f.op(name, before, f.param("source", pairs), f.param("target", pairs), ring=ring), state="kv")
    elif name == "cache_write":
        inputs["x"] = random.standard_normal((2, *middle, tokens, 4)).astype(np.float32)
        x = f.param("x", TensorType(DType.F32, (rows, *middle, symbol("T"), 4)))
        f.result("kv", f.op(name, before, x, f.param("start", index), f.param("length", index), ring=ring), state="kv")
    else:
        y, places = f.emit(name, before, f.param("start", index), f.param("length", index), ring=ring)
        f.result("y", y)
        f.result("index", places)
    module = builder.build()
    wanted = Interpreter(module, {}).run(
        inputs, states={"kv": have if element != DType.F32 else have.astype(np.float64)}
    )
    buffers = new_states(module, 2)
    numbers = torch.from_numpy(have.astype(np.float32))
    held = buffers["kv"]
    if isinstance(held, Rows):  # 600 slots are no whole blocks
        held.fill(numbers)
    else:
        buffers["kv"] = to_blocks(numbers).to(held.dtype)
    found = InferenceModule(module, {}).run("forward", buffers, inputs)
    if name == "cache_read":
        assert np.array_equal(found["y"].numpy(), wanted["y"]) and np.array_equal(
            found["index"].numpy(), wanted["index"]
        )
    else:
        kept = buffers["kv"]
        numbers = kept.every() if isinstance(kept, Rows) else state_values(kept, capacity)
        assert np.array_equal(numbers.numpy(), np.asarray(wanted["kv"], np.float32))


def test_an_excluded_op_is_refused_with_its_place() -> None:
    builder = ModuleBuilder("one", {"B": DimRange(1, 4)})
    f = builder.function("forward")
    with f.scope("blocks.0"):
        f.result(
            "y", f.op("fake_quant", f.param("x", TensorType(DType.F32, (symbol("B"), 8))), to=parse_element("i4<g4>"))
        )
    with pytest.raises(InputError) as caught:
        legalised(builder.build())
    assert caught.value.message.startswith("blocks.0/fake_quant.0: torch excludes fake_quant: ")


def test_a_state_of_a_kind_without_a_kernel_is_refused() -> None:
    from omnic.ir.graph import State

    builder = ModuleBuilder("one", {"B": DimRange(1, 4)})
    builder.state(State("kv.0.k", TensorType(parse_element("fp4<g4>"), (symbol("B"), 2, 32, 4)), "k", 0))
    f = builder.function("forward")
    f.result("x", f.param("x", TensorType(DType.F32, (symbol("B"), 8))))
    with pytest.raises(InputError) as caught:
        legalised(builder.build())
    assert caught.value.message == "torch stores no states as fp4: 'kv.0.k' is fp4<g4>[B, 2, 32, 4]"
