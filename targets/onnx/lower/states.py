"""States: writing, reading and moving tokens in buffers that are updated in place.

A write is one TensorScatter in its circular form for linear states and rings alike.  A token at or
beyond ``length`` must touch nothing, so its update is what the slot holds already: that is exact, and no
slot is ever written that the row does not own (docs/targets_onnx.md, "Ragged batches").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as onnx

from omnic.errors import InternalError
from omnic.ir.dims import Dim
from omnic.ir.graph import Function, Node, Value
from omnic.ir.types import DType, Storage
from omnic.targets.onnx.codes import buffers, decode, decode_blocks, encode
from omnic.targets.onnx.lower.core import refuse
from omnic.targets.onnx.writer import GraphWriter, attrs_of, element_type

__all__ = [
    "TABLE",
    "Places",
    "additive_mask",
    "live",
    "live_codes",
    "live_count",
    "live_numbers",
    "places_of",
    "read_before",
    "scatter",
    "slot_index",
    "slots_of",
    "write_codes",
    "write_tokens",
]

Lowering = Callable[[GraphWriter, Node], None]


def slots_of(state: Value) -> int:
    """Return the capacity of a state."""
    slots = state.type.shape[-2]
    if not isinstance(slots, int):
        raise InternalError(f"state {state} has a symbolic capacity")
    return slots


def _steps(w: GraphWriter, tokens: Dim) -> onnx.Value:
    """i64 [T]: 0, 1, .. T-1."""
    key = ("steps", tokens)
    if key not in w.memo:
        w.memo[key] = w.op("Range", w.const(np.array(0)), w.op("Squeeze", w.dim(tokens)), w.const(np.array(1)))
    return w.memo[key]


def _valid(w: GraphWriter, length: Value, tokens: Dim) -> onnx.Value:
    """Bool [B, T]: whether token i of the call is one of the row's ``length``."""
    key = ("valid", length, tokens)
    if key not in w.memo:
        steps = _steps(w, tokens)
        w.memo[key] = w.op("Less", steps, w.op("Unsqueeze", w.need(length), w.ints(1)))
    return w.memo[key]


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call go.

    Attributes:
        valid: bool [B, T], whether the token is one of its row's.
        first: i64 [B], slot of the first token.
        every: i64 [B, T], slot of every token.
    """

    valid: onnx.Value
    first: onnx.Value
    every: onnx.Value


def places_of(w: GraphWriter, state: Value, start: Value, length: Value, tokens: Dim) -> Places:
    """Return where the tokens of a call go in a state."""
    return Places(_valid(w, length, tokens), *_slots(w, start, slots_of(state), tokens))


def _slots(w: GraphWriter, start: Value, slots: int, tokens: Dim) -> tuple[onnx.Value, onnx.Value]:
    """(i64 [B] slot of the first token, i64 [B, T] slot of every token), modulo the capacity."""
    key = ("slots", start, slots, tokens)
    if key not in w.memo:
        count = w.ints(slots)
        first = w.op("Mod", w.need(start), count)
        every = w.op("Mod", w.op("Add", w.op("Unsqueeze", first, w.ints(1)), _steps(w, tokens)), count)
        w.memo[key] = first, every
    return w.memo[key]


def write_tokens(w: GraphWriter, state: Value, x: onnx.Value, places: Places) -> onnx.Value:
    """Return a plain ``state`` with the valid tokens of x [B, ..., T, D] written."""
    if state.type.element == DType.F16:
        x = w.op("Cast", x, to=onnx.DataType.FLOAT16)
    return scatter(w, state, w.need(state), x, places)


def write_codes(w: GraphWriter, state: Value, x: onnx.Value, places: Places) -> dict[str, onnx.Value]:
    """Return the buffers of a ``state`` of codes with the valid tokens of x [B, ..., T, D] written."""
    element, old = state.type.element, w.state_parts(state)
    assert isinstance(element, Storage)
    made = encode(w, x, element, state.type.rank, int(str(state.type.shape[-1])))
    return {s: scatter(w, state, old[s], made[s], places) for s in old}


def scatter(w: GraphWriter, state: Value, old: onnx.Value, x: onnx.Value, places: Places) -> onnx.Value:
    """Return one buffer of a state with tokens written."""
    rank = state.type.rank
    valid, first, every = places.valid, places.first, places.every
    if rank == 3:
        held = w.op("GatherND", old, w.op("Unsqueeze", every, w.ints(2)), batch_dims=1)
        keep = w.op("Unsqueeze", valid, w.ints(2))
    else:
        between = list(range(1, rank - 2))
        at = w.op("Unsqueeze", every, w.ints(*between, rank - 1))
        held = w.op("GatherElements", old, w.op("Expand", at, w.op("Shape", x)), axis=rank - 2)
        keep = w.op("Unsqueeze", valid, w.ints(*between, rank - 1))
    update = w.op("Where", keep, x, held)
    return w.op("TensorScatter", old, update, first, axis=rank - 2, mode="circular")


def live_count(w: GraphWriter, start: Value, length: Value, slots: int, ring: bool) -> onnx.Value:
    """Return i64[1]: leading slots that may hold a token of some row."""
    key = ("live", start, length, slots, ring)
    if key not in w.memo:
        end = _ends(w, start, length)
        most = w.op("ReduceMax", end, keepdims=1)
        # At least one slot, so that a row without tokens has something to attend to (its result is not used).
        w.memo[key] = w.op("Max", w.op("Min", most, w.ints(slots)), w.ints(1))
    return w.memo[key]


def _ends(w: GraphWriter, start: Value, length: Value) -> onnx.Value:
    key = ("ends", start, length)
    if key not in w.memo:
        w.memo[key] = w.op("Add", w.need(start), w.need(length))
    return w.memo[key]


def live_numbers(w: GraphWriter, state: Value, count: onnx.Value) -> onnx.Value:
    """Return the first ``count`` slots of a state, plain or of codes, as f32."""
    if not isinstance(state.type.element, Storage):
        return live(w, w.need(state), state, count)
    return live_codes(w, w.state_parts(state), state, count)


def live_codes(w: GraphWriter, parts: Mapping[str, onnx.Value], state: Value, count: onnx.Value) -> onnx.Value:
    """Return the first ``count`` slots of the buffers of a state of codes as f32."""
    element = state.type.element
    assert isinstance(element, Storage)
    axis = w.ints(state.type.rank - 2)
    if element.axis == -2:
        size = w.ints(element.group)
        blocks = w.op("Div", w.op("Add", count, w.ints(element.group - 1)), size)
        parts = {s: w.op("Slice", part, w.ints(0), blocks, axis) for s, part in parts.items()}
        numbers = decode_blocks(w, parts, element, state.type.rank, int(str(state.type.shape[-1])))
        return w.op("Slice", numbers, w.ints(0), count, axis)
    parts = {s: w.op("Slice", part, w.ints(0), count, axis) for s, part in parts.items()}
    return decode(w, parts, element, state.type.rank, int(str(state.type.shape[-1])))


def live(w: GraphWriter, state: onnx.Value, value: Value, count: onnx.Value) -> onnx.Value:
    """Return the first ``count`` slots of a state as f32."""
    found = w.op("Slice", state, w.ints(0), count, w.ints(value.type.rank - 2))
    return w.op("Cast", found, to=onnx.DataType.FLOAT) if value.type.element == DType.F16 else found


def slot_index(w: GraphWriter, start: Value, length: Value, slots: int, ring: bool, count: onnx.Value) -> onnx.Value:
    """Return i64 [B, n]: logical index of the token in each of the first ``count`` slots, negative where empty."""
    key = ("index", start, length, slots, ring, count)
    if key in w.memo:
        return w.memo[key]
    slot = w.op("Range", w.const(np.array(0)), w.op("Squeeze", count), w.const(np.array(1)))
    last = w.op("Unsqueeze", w.op("Sub", _ends(w, start, length), w.ints(1)), w.ints(1))
    if ring:
        # The newest j <= last with j mod slots = slot.
        index = w.op("Sub", last, w.op("Mod", w.op("Sub", last, slot), w.ints(slots)))
    else:
        index = w.op("Where", w.op("LessOrEqual", slot, last), slot, w.ints(-1))
    w.memo[key] = index
    return index


def additive_mask(
    w: GraphWriter,
    index: onnx.Value,
    q_index: onnx.Value,
    window: int,
    tree: tuple[onnx.Value, onnx.Value] | None = None,
) -> onnx.Value:
    """Return f32 [B, 1, T, n]: 0 where query t sees slot s, else a number far below any logit.

    ``index`` [B, n] and ``q_index`` [B, T] are logical; ``tree`` is (bool [B, T, T] ancestor or self, i64 [B] start).
    """
    slot = w.op("Unsqueeze", index, w.ints(1))
    query = w.op("Unsqueeze", q_index, w.ints(2))
    seen = w.op("And", w.op("GreaterOrEqual", slot, w.const(np.array(0))), w.op("LessOrEqual", slot, query))
    if window:
        seen = w.op("And", seen, w.op("Greater", slot, w.op("Sub", query, w.const(np.array(window)))))
    if tree is not None:
        related, start = tree
        fresh = w.op("Sub", slot, w.op("Unsqueeze", start, w.ints(1, 2)))
        last = w.op("Sub", w.size(related, 2), w.ints(1))
        inside = w.op("Min", w.op("Max", fresh, w.ints(0)), last)
        shape = w.op("Concat", w.op("Shape", related, start=0, end=2), w.op("Shape", index, start=1, end=2), axis=0)
        kin = w.op("GatherElements", related, w.op("Expand", inside, shape), axis=2)
        seen = w.op("And", seen, w.op("Or", w.op("Less", fresh, w.const(np.array(0))), kin))
    mask = w.op("Where", seen, w.const(np.float32(0)), w.const(np.float32(-1e30)))
    return w.op("Unsqueeze", mask, w.ints(1))


def _write(w: GraphWriter, node: Node) -> None:
    state, x, start, length = node.operands
    assert state is not None
    assert x is not None
    assert start is not None
    assert length is not None
    element, tokens = state.type.element, x.type.shape[-2]
    if isinstance(element, Storage):
        w.bind_state(node.result, write_codes(w, state, w.need(x), places_of(w, state, start, length, tokens)))
        return
    if element == DType.BF16:
        raise refuse(node, f"a state of {element} has no in-place update here", "set kv_dtype to f32 or f16")
    joined = read_before(w.function, node)
    if joined is not None:
        w.bind(node.result, _renewed(w, state, w.need(joined), start, length), element_type(state.type, state=True))
        return
    found = write_tokens(w, state, w.need(x), places_of(w, state, start, length, tokens))
    w.bind(node.result, found, element_type(state.type, state=True))


def read_before(function: Function, write: Node) -> Value | None:
    """Return what joins the old numbers of a ring and the tokens ``write`` puts into it, or None.

    That is how recent tokens are kept (docs/ir.md, ``cache_close``): the call reads the ring as it was, and the new
    ring is made of what was read, so nothing can be overwritten before it is read.
    """
    state, x = write.operands[:2]
    old = [n.results[0] for n in function.nodes if n.op == "cache_read" and n.operands[0] is state]
    joined = (n for n in function.nodes if n.op == "concat" and len(old) == 1 and n.operands == (old[0], x))
    return next((n.result for n in joined), None)


def _renewed(w: GraphWriter, state: Value, joined: onnx.Value, start: Value, length: Value) -> onnx.Value:
    """Return a ring of R slots from ``joined`` [B, ..., R + T, D]: its slots before the call, then its tokens."""
    slots, rank = slots_of(state), state.type.rank
    key = ("renewed", start, length, slots)
    if key not in w.memo:
        index = slot_index(w, start, length, slots, True, w.ints(slots))
        first = w.op("Unsqueeze", w.need(start), w.ints(1))
        fresh = w.op("Add", w.op("Sub", index, first), w.ints(slots))
        w.memo[key] = w.op("Where", w.op("GreaterOrEqual", index, first), fresh, w.const(np.arange(slots)))
    at = w.op("Unsqueeze", w.memo[key], w.ints(*range(1, rank - 2), rank - 1))
    lead = w.op("Shape", joined, start=0, end=rank - 2)
    at = w.op("Expand", at, w.op("Concat", lead, w.ints(slots, int(str(state.type.shape[-1]))), axis=0))
    found = w.op("GatherElements", joined, at, axis=rank - 2)
    return w.op("Cast", found, to=onnx.DataType.FLOAT16) if state.type.element == DType.F16 else found


def _read(w: GraphWriter, node: Node) -> None:
    state, start, length = node.operands
    assert state is not None
    assert start is not None
    assert length is not None
    slots = slots_of(state)
    if isinstance(state.type.element, Storage):
        found = live_codes(w, w.state_parts(state), state, w.ints(slots))
    else:
        found = w.need(state)
    if state.type.element == DType.F16:
        found = w.op("Cast", found, to=onnx.DataType.FLOAT)
    w.bind(node.results[0], found)
    index = slot_index(w, start, length, slots, bool(attrs_of(node)["ring"]), w.ints(slots))
    w.bind(node.results[1], w.op("Max", index, w.const(np.array(-1))))


def _move(w: GraphWriter, node: Node) -> None:
    """All reads first; a skipped pair writes to a slot past the end, which is cut off again."""
    state, source, target = node.operands
    assert state is not None
    slots = slots_of(state)
    read, write = w.need(source), w.need(target)
    skipped = w.op("Or", w.op("Less", read, w.const(np.array(0))), w.op("Less", write, w.const(np.array(0))))
    if attrs_of(node)["ring"]:
        read, write = (w.op("Mod", v, w.ints(slots)) for v in (read, write))
    read = w.op("Where", skipped, w.const(np.array(0)), read)
    write = w.op("Where", skipped, w.const(np.array(slots)), write)
    made: dict[str, onnx.Value] = {}
    for suffix, (_, whole) in buffers(state.type).items():
        found = w.state_parts(state)[suffix] if isinstance(state.type.element, Storage) else w.need(state)
        made[suffix] = _moved(w, found, [*whole[:-2], source.type.shape[1], whole[-1]], slots, read, write)  # type: ignore[union-attr]
    if isinstance(state.type.element, Storage):
        w.bind_state(node.result, made)
    else:
        w.bind(node.result, made[""], element_type(state.type, state=True))


def _moved(
    w: GraphWriter, found: onnx.Value, shape: list[Dim], slots: int, read: onnx.Value, write: onnx.Value
) -> onnx.Value:
    """Return one buffer with tokens copied; ``shape`` is that of the copied ones."""
    rank = len(shape)
    between = list(range(1, rank - 2))
    at = [w.op("Expand", w.op("Unsqueeze", v, w.ints(*between, rank - 1)), w.dims(shape)) for v in (read, write)]
    moved = w.op("GatherElements", found, at[0], axis=rank - 2)
    pads = [0] * (rank - 2) + [0, 0] + [0] * (rank - 2) + [1, 0]
    wider = w.op("Pad", found, w.ints(*pads))
    return w.op(
        "Slice", w.op("ScatterElements", wider, at[1], moved, axis=rank - 2), w.ints(0), w.ints(slots), w.ints(rank - 2)
    )


TABLE: dict[str, Lowering] = {"cache_write": _write, "cache_read": _read, "cache_move": _move}
