"""Caches: reading, writing one token by a slice and several by a scatter, and the logical index of each slot."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.targets.coreml.lower.core import Lowering
from omnic.targets.coreml.writer import MilWriter, attrs_of, refuse

__all__ = ["TABLE", "index_of"]


def _count(value: Value) -> Any:
    """Return the tokens of a call, a number or a symbol."""
    return value.type.shape[-2]


def _write(w: MilWriter, node: Node) -> None:
    """Write T tokens at start, mod S where the slots are reused.

    One token is a slice.  Several are a scatter, where a token at or beyond ``length`` writes back what its slot holds,
    so that nothing of the state changes there; slots count modulo S in a linear state too, whose last tokens then
    need no call of their own.
    """
    state, x, start, length = node.operands
    assert state is not None and x is not None and start is not None and length is not None
    ring = bool(attrs_of(node)["ring"])
    slots, rank = int(str(state.type.shape[-2])), state.type.rank
    axis = rank - 2
    held = w.caches.get(state)
    before = w.op("read_state", input=held) if held is not None else w.need(state)
    from omnic.targets.coreml.writer import word_of

    fresh = w.cast(w.need(x), word_of(before))
    if _count(x) == 1:
        first = w.need(start)
        if ring:
            first = _shared(w, ("slot", start, slots), lambda: w.op("mod", x=first, y=w.const(slots)))
        begin, end = _shared(w, ("bounds", start, ring, state.type.shape), lambda: _bounds(w, state, first, axis))
        after = w.op("slice_update", x=before, update=fresh, begin=begin, end=end)
    else:
        at = _shared(w, ("slots", start, slots, x.type.shape[-2]), lambda: _slots(w, start, x, slots))
        valid = _shared(w, ("valid", length, x.type.shape[-2], rank), lambda: _valid(w, length, x, rank))
        old = w.op("gather", x=before, indices=at, axis=axis, validate_indices=False)
        kept = w.op("select", cond=valid, a=fresh, b=old)
        after = w.op("scatter", data=before, indices=at, updates=kept, axis=axis, mode="update", validate_indices=False)
    if held is not None:
        after = w.op("coreml_update_state", state=held, value=after)
    w.bind(node.result, after)


def _shared(w: MilWriter, key: tuple[Any, ...], make: Any) -> Any:
    """Return what several caches need, made once."""
    if key not in w.caches:
        w.caches[key] = make()
    return w.caches[key]


def _bounds(w: MilWriter, state: Value, first: Any, axis: int) -> tuple[Any, Any]:
    shape = [int(str(d)) if isinstance(d, int) else 1 for d in state.type.shape]
    after = w.op("add", x=first, y=w.const(1))
    low, high = [np.zeros(axis, np.int32), np.array(shape[:axis], np.int32)], None
    begin = w.op("concat", values=[w.const(low[0]), first, w.const(np.zeros(1, np.int32))], axis=0)
    high = w.op("concat", values=[w.const(low[1]), after, w.const(np.array([shape[-1]], np.int32))], axis=0)
    return begin, high


def _steps(w: MilWriter, x: Value) -> Any:
    count = _count(x)
    if isinstance(count, int):
        return w.const(np.arange(count, dtype=np.int32))
    return _shared(w, ("steps",), lambda: w.op(
        "range_1d", start=w.const(0), end=w.caches["length"], step=w.const(1)))


def _slots(w: MilWriter, start: Value, x: Value, slots: int) -> Any:
    at = w.op("add", x=w.need(start), y=_steps(w, x))
    return w.op("mod", x=at, y=w.const(slots))


def _valid(w: MilWriter, length: Value, x: Value, rank: int) -> Any:
    valid = w.op("less", x=_steps(w, x), y=w.need(length))
    count = _count(x)
    valid = w.op("reshape", x=valid, shape=[1] * (rank - 2) + [count if isinstance(count, int) else -1, 1])
    return valid


def index_of(w: MilWriter, start: Value, length: Value, slots: int, ring: bool) -> Any:
    """Return the logical index i32[1, S] of each slot, -1 where there is none."""
    return _shared(w, ("index", start, length, slots, ring), lambda: _index(w, start, length, slots, ring))


def _index(w: MilWriter, start: Value, length: Value, slots: int, ring: bool) -> Any:
    slot = w.const(np.arange(slots, dtype=np.int32)[None])
    last = w.op("sub", x=w.op("add", x=w.need(start), y=w.need(length)), y=w.const(1))
    if ring:
        back = w.op("mod", x=w.op("sub", x=last, y=slot), y=w.const(slots))
        return w.op("maximum", x=w.op("sub", x=last, y=back), y=w.const(-1))
    inside = w.op("less_equal", x=slot, y=last)
    # (slot + 1) * inside - 1 is the slot where it is inside and -1 elsewhere.
    counted = w.op("mul", x=w.const(np.arange(1, slots + 1, dtype=np.int32)[None]), y=w.cast(inside, "int32"))
    return w.op("sub", x=counted, y=w.const(1))


def _read(w: MilWriter, node: Node) -> None:
    state, start, length = node.operands
    assert state is not None and start is not None and length is not None
    ring = bool(attrs_of(node)["ring"])
    # What a write has left is what the runtime's state holds; a state that was not written is read.
    held = None if w.bound(state) else w.caches.get(state)
    found = w.op("read_state", input=held) if held is not None else w.need(state)
    w.bind(node.results[0], w.cast(found, w.float))
    w.bind(node.results[1], index_of(w, start, length, int(str(state.type.shape[-2])), ring))


def _move(w: MilWriter, node: Node) -> None:
    """Copy tokens between slots: a pair with -1 writes its target back."""
    state, source, target = node.operands
    assert state is not None and source is not None and target is not None
    slots, axis = int(str(state.type.shape[-2])), state.type.rank - 2
    held = w.caches.get(state)
    before = w.op("read_state", input=held) if held is not None else w.need(state)
    if not isinstance(source.type.shape[1], int):
        raise refuse(node, "it moves a flexible number of tokens", "compile with length=fixed")
    read, write = (w.op("squeeze", x=w.need(v), axes=[0]) for v in (source, target))
    both = w.op("logical_and", x=w.op("greater_equal", x=read, y=w.const(0)),
                y=w.op("greater_equal", x=write, y=w.const(0)))
    # A skipped pair goes to an extra slot behind the last, which is cut off again.
    spare = w.op("select", cond=both, a=w.op("mod", x=write, y=w.const(slots)),
                 b=w.const(np.full(source.type.shape[1], slots, np.int32)))
    moved = w.op("gather", x=before, indices=w.op("mod", x=w.op("maximum", x=read, y=w.const(0)), y=w.const(slots)),
                 axis=axis, validate_indices=False)
    rank = state.type.rank
    shape = [int(str(d)) if isinstance(d, int) else 1 for d in state.type.shape]
    extra = w.op("slice_by_size", x=before, begin=[0] * rank, size=[*shape[:axis], 1, shape[-1]])
    longer = w.op("concat", values=[before, extra], axis=axis)
    after = w.op("scatter", data=longer, indices=spare, updates=moved, axis=axis, mode="update", validate_indices=False)
    after = w.op("slice_by_size", x=after, begin=[0] * rank, size=shape)
    if held is not None:
        after = w.op("coreml_update_state", state=held, value=after)
    w.bind(node.result, after)


TABLE: dict[str, Lowering] = {"cache_write": _write, "cache_read": _read, "cache_move": _move}
