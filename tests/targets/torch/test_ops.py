"""States in blocks and in rows against the reference; the other ops are in tests/parity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, TensorType, parse_element
from omnic.targets.torch.inference import InferenceModule, legalised, new_states
from omnic.targets.torch.kernels import state_values, to_blocks
from omnic.targets.torch.states import Rows

STATE_OPS = ("cache_write", "cache_read", "cache_move")

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


def test_a_state_of_a_kind_without_a_kernel_is_refused() -> None:
    from omnic.ir.graph import State

    builder = ModuleBuilder("one", {"B": DimRange(1, 4)})
    builder.state(State("kv.0.k", TensorType(parse_element("fp4<g4>"), (symbol("B"), 2, 32, 4)), "k", 0))
    f = builder.function("forward")
    f.result("x", f.param("x", TensorType(DType.F32, (symbol("B"), 8))))
    with pytest.raises(InputError) as caught:
        legalised(builder.build())
    assert caught.value.message == "torch stores no states as fp4: 'kv.0.k' is fp4<g4>[B, 2, 32, 4]"
