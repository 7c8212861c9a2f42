"""The reference interpreter: binding, storage of states, capture, forced routing, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError, InternalError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Node, Recipe, State
from omnic.ir.op import find_op
from omnic.ir.packing import QTensor, decode, quantise
from omnic.ir.reference import Interpreter, empty_states
from omnic.ir.types import DType, Storage, parse_element, parse_type

RANDOM = np.random.default_rng(3)
EMBED = RANDOM.standard_normal((11, 4))


def cached(element: str = "f32", slots: str = "6") -> Module:
    """Tokens are looked up, written to a cache, read back and doubled."""
    mb = ModuleBuilder("cached", {"B": DimRange(1, 4), "T": DimRange(1, 5), "S": DimRange(6, 6)})
    embed = mb.weight("embed", parse_type("f32[11, 4]"), Recipe("normal", {"std": 0.02}))
    state = mb.state(State("kv.0.k", parse_type(f"{element}[B, {slots}, 4]"), "k", 0))
    f = mb.function("forward")
    tokens = f.param("tokens", parse_type("i64[B, T]"))
    start, length = f.param("start", parse_type("i64[B]")), f.param("length", parse_type("i64[B]"))
    before = f.param("kv.0.k", state.type, state="kv.0.k")
    with f.scope("blocks.0"):
        x = f.op("index_select", embed, tokens)
        after = f.op("cache_write", before, x, start, length)
        y, index = f.emit("cache_read", after, start, length)
        doubled = f.op("mul", y, f.constant(2.0))
        total = f.reshape(f.op("sum", x, axes=(2,)), symbol("B") * symbol("T"))
    f.result("y", doubled)
    f.result("index", index)
    f.result("flat", total)
    f.result("kv.0.k", after, state="kv.0.k")
    return mb.build()


def call(module: Module, tokens: Any, start: Any, length: Any, dtype: Any = np.float64, **more: Any) -> dict[str, Any]:
    inputs = {"tokens": tokens, "start": start, "length": length}
    return Interpreter(module, {"embed": EMBED}, dtype).run(inputs, **more)


def test_a_state_goes_in_and_comes_out() -> None:
    first = call(cached(), [[1, 2, 3]], [0], [2])
    assert (first["y"][0, :2] == 2 * EMBED[[1, 2]]).all() and not first["y"][0, 2:].any()
    assert first["index"].tolist() == [[0, 1, -1, -1, -1, -1]]
    assert np.allclose(first["flat"], EMBED[[1, 2, 3]].sum(1))
    second = call(cached(), [[4]], [2], [1], states=first)
    assert (second["kv.0.k"][0, :3] == EMBED[[1, 2, 4]]).all()
    assert not first["kv.0.k"][0, 2].any(), "an older state stays as it was"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_float_has_the_dtype_asked_for(dtype: Any) -> None:
    seen: list[Any] = []
    result = call(cached(), [[1, 2]], [0], [2], dtype, trace=lambda node, results: seen.extend(results))
    assert {r.dtype for r in seen if r.dtype.kind == "f"} == {np.dtype(dtype)}
    assert result["y"].dtype == result["kv.0.k"].dtype == dtype


def test_symbolic_dims_come_from_the_arguments() -> None:
    result = call(cached(slots="S"), [[1, 2], [3, 4], [5, 6]], [0, 0, 0], [2, 1, 0])
    assert result["y"].shape == (3, 6, 4) and result["flat"].shape == (6,)


@pytest.mark.parametrize(("element", "kind"), [("f16", np.float16), ("bf16", DType.BF16.numpy)])
def test_16_bit_states_are_stored_in_16_bits(element: str, kind: Any) -> None:
    result = call(cached(element), [[1, 2]], [0], [2])
    assert result["kv.0.k"].dtype == kind
    assert (result["y"][0, :2] == 2 * EMBED[[1, 2]].astype(kind).astype(float)).all()
    again = call(cached(element), [[1, 2]], [0], [2], states={"kv.0.k": np.zeros((1, 6, 4))})
    assert again["kv.0.k"].dtype == kind


def test_quantised_states_are_codes() -> None:
    element = parse_element("i8<row>")
    assert isinstance(element, Storage)
    result = call(cached("i8<row>"), [[1, 2]], [0], [2])
    assert isinstance(result["kv.0.k"], QTensor)
    assert (result["y"][0, :2] == 2 * decode(quantise(EMBED[[1, 2]], element), np.float64)).all()


def test_empty_states_are_zeros_of_the_capacity() -> None:
    states = empty_states(cached("f16", "S"), 3)
    found = {name: (state.shape, np.asarray(state).dtype) for name, state in states.items()}
    assert found == {"kv.0.k": ((3, 6, 4), np.dtype(np.float16))}


BAD_CALLS = [
    ({"tokens": [[1]], "start": [0]}, "@forward needs 'length'"),
    ({"tokens": [[1]], "start": [0], "length": [1], "token": 1}, "@forward has no input 'token'"),
    ({"tokens": [1], "start": [0], "length": [1]}, "@forward: 'tokens' must be i64[B, T], got 1 dims [1]"),
    ({"tokens": [[1.0]], "start": [0], "length": [1]}, "@forward: 'tokens' must be i64[B, T], got float64 numbers"),
    ({"tokens": [[1]], "start": [0, 0], "length": [1]}, "@forward: B is 1 in 'tokens' and 2 in 'start'"),
    ({"tokens": [[1] * 6], "start": [0], "length": [1]}, "@forward: T = 6 is not in 1..5"),
    (
        {"tokens": [[11]], "start": [0], "length": [1]},
        "blocks.0/index_select.0: index_select: index 11 is not in 0..10",
    ),
    (
        {"tokens": [[1, 2]], "start": [5], "length": [2]},
        "blocks.0/cache_write.0: cache_write: 7 tokens do not fit a state of 6 slots",
    ),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_wrong_arguments_are_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Interpreter(cached(), {"embed": EMBED}).run(inputs)
    assert caught.value.message == message


def test_wrong_states_and_functions_are_named() -> None:
    interpreter = Interpreter(cached(), {"embed": EMBED})
    inputs = {"tokens": [[1]], "start": [0], "length": [1]}
    with pytest.raises(InputError, match=r"@forward needs the state 'kv\.0\.k'"):
        interpreter.run(inputs, states={})
    with pytest.raises(InputError, match=r"'kv\.0\.k' must be f32\[B, 6, 4\], got \[1, 7, 4\]: dim 1 is 7, not 6"):
        interpreter.run(inputs, states={"kv.0.k": np.zeros((1, 7, 4))})
    with pytest.raises(InputError, match="module @cached has no function @decode"):
        interpreter.run(inputs, "decode")
    with pytest.raises(InputError, match="the reference computes in f64 or f32, not float16"):
        Interpreter(cached(), {}, np.float16)


def test_wrong_weights_are_named() -> None:
    inputs = {"tokens": [[1]], "start": [0], "length": [1]}
    with pytest.raises(InputError, match="weight 'embed' was not given"):
        Interpreter(cached(), {}).run(inputs)
    with pytest.raises(InputError, match=r"weight 'embed' must be f32\[11, 4\], got \[4, 11\]"):
        Interpreter(cached(), {"embed": EMBED.T}).run(inputs)


def simple(op: str, *types: str, **attrs: Any) -> Module:
    mb = ModuleBuilder("simple", {"N": DimRange(1, 8)})
    f = mb.function("forward")
    results = f.emit(op, *(f.param(f"x{i}", parse_type(t)) for i, t in enumerate(types)), **attrs)
    for index, value in enumerate(results):
        f.result(f"y{index}", value)
    return mb.build()


def test_not_a_number_is_refused_at_the_door() -> None:
    with pytest.raises(InputError, match="@forward: 'x0' holds NaN or infinite numbers"):
        Interpreter(simple("exp", "f32[N]"), {}).run({"x0": [np.nan]})


def test_16_bit_inputs_are_rounded() -> None:
    found = Interpreter(simple("neg", "f16[N]"), {}).run({"x0": [0.1]})["y0"]
    assert found[0] == -float(np.float16(0.1))


def test_quantised_values_are_decoded_for_ops_that_read_numbers() -> None:
    mb = ModuleBuilder("q", {"N": DimRange(1, 8)})
    f = mb.function("forward")
    x = f.param("x", parse_type("f32[N, 8]"))
    q = f.op("quantise", x, to=parse_element("i4<g4>"))
    f.result("sines", f.op("sin", q))
    f.result("numbers", f.op("dequantise", q))
    f.result("codes", q)
    numbers = RANDOM.standard_normal((2, 8))
    found = Interpreter(mb.build(), {}).run({"x": numbers})
    want = decode(quantise(numbers, Storage("i4", 4)), np.float64)
    assert (found["numbers"] == want).all() and (found["codes"] == want).all()
    assert (found["sines"] == np.sin(want)).all()


def test_a_reference_that_fails_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arrays: Any, **attrs: Any) -> Any:
        raise ValueError("shapes do not match")

    monkeypatch.setattr(find_op("exp"), "reference", broken, raising=False)
    with pytest.raises(InternalError, match=r"the reference of exp failed at /exp\.0: shapes do not match"):
        Interpreter(simple("exp", "f32[N]"), {}).run({"x0": [1.0]})


def test_capture_returns_the_results_of_named_nodes() -> None:
    interpreter = Interpreter(cached(), {"embed": EMBED})
    inputs = {"tokens": [[1, 2]], "start": [0], "length": [2]}
    results, seen = interpreter.capture(inputs, {"blocks.0/index_select.0"})
    assert (np.asarray(seen["blocks.0/index_select.0"][0])[0] == EMBED[[1, 2]]).all() and "y" in results
    with pytest.raises(InputError) as caught:
        interpreter.capture(inputs, {"blocks.0/index_selct.0"})
    assert caught.value.hint == "did you mean 'blocks.0/index_select.0'?"


def test_observe_shows_the_operands() -> None:
    shown: dict[str, tuple[Any, ...]] = {}

    def look(node: Node, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        shown[node.op] = operands

    call(cached(), [[1, 2]], [0], [2], observe=look)
    assert (shown["index_select"][0] == EMBED).all() and shown["index_select"][1].tolist() == [[1, 2]]


def routed() -> Module:
    mb = ModuleBuilder("routed", {"T": DimRange(1, 8)})
    f = mb.function("forward")
    x = f.param("x", parse_type("f32[1, T, 4]"))
    gate = mb.weight("router", parse_type("f32[3, 4]"), Recipe("normal", {"std": 1.0}))
    up = mb.weight("up", parse_type("f32[3, 6, 4]"), Recipe("normal", {"std": 1.0}))
    down = mb.weight("down", parse_type("f32[3, 4, 6]"), Recipe("normal", {"std": 1.0}))
    indices, gates, _ = f.emit("router", x, gate, top_k=1)
    f.result("y", f.op("moe", x, indices, gates, up, down, kind="relu"))
    f.result("indices", indices)
    return mb.build()


def test_forced_routing_replaces_indices_and_gates() -> None:
    module = routed()
    shapes: dict[str, Any] = {name: w.type.shape for name, w in module.weights.items()}
    weights = {name: RANDOM.standard_normal(shape) for name, shape in shapes.items()}
    interpreter, x = Interpreter(module, weights), RANDOM.standard_normal((1, 2, 4))
    free = interpreter.run({"x": x})
    forced = {"/router.0": (np.full((1, 2, 1), 2), np.full((1, 2, 1), 0.5))}
    found = interpreter.run({"x": x}, routing=forced)
    assert found["indices"].tolist() == [[[2], [2]]] != free["indices"].tolist()
    hidden = np.maximum(x @ weights["up"][2].T, 0)
    assert np.allclose(found["y"], 0.5 * hidden @ weights["down"][2].T)


def test_decoded_weights_are_kept_up_to_the_limit() -> None:
    class Counting:
        reads = 0

        def array(self, name: str) -> Any:
            Counting.reads += 1
            return EMBED

    for limit, reads in ((1 << 20, 1), (0, 3)):
        Counting.reads = 0
        interpreter = Interpreter(cached(), Counting(), cache_bytes=limit)
        for _ in range(3):
            interpreter.run({"tokens": [[1]], "start": [0], "length": [1]})
        assert Counting.reads == reads
