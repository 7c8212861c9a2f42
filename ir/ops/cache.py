"""Core ops on states that hold one entry per token: write, read, move.

A state is [B, ..., S, D]: S slots of capacity.  The *logical index* of a token counts from 0 at the
start of its row; a linear state keeps token j in slot j, a ring in slot ``j mod S``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.op import Array, Attr, In, Op, ShapeError, register
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, TensorType

__all__ = ["RING", "check_rows", "slots_first"]

RING = Attr("ring", "bool", False, doc="slots are reused modulo the capacity")


def _check_state(op: str, state: TensorType) -> None:
    element = state.element
    if state.rank < 3:
        raise ShapeError(f"{op}: a state is [B, ..., S, D], got {state}")
    blocks = op == "cache_read" and isinstance(element, Storage) and element.axis == -2 and element.group > 0
    if isinstance(element, Storage) and (element.axis != -1 or element.group == -1) and not blocks:
        raise ShapeError(f"{op}: tokens are written one at a time, so {state} must group along its last dim",
                         "a state grouped along its slots is written by cache_close")


def check_rows(op: str, state: TensorType, **rows: TensorType) -> None:
    """Check that every one of ``rows`` is i64[B] of the state's B.

    Raises:
        ShapeError: one is not.
    """
    for name, row in rows.items():
        if row.shape != (state.shape[0],):
            raise ShapeError(f"{op}: {name} must be i64[{state.shape[0]}], got {row}")


def _arrays(state: Array | QTensor) -> list[Array]:
    return list(state.parts().values()) if isinstance(state, QTensor) else [state]


def slots_first(part: Array, slot_axis: int) -> Array:
    """Return a view [B, S, ...] of one array of a state."""
    return np.moveaxis(part, slot_axis, 1)


@register
class CacheWrite(Op):
    """``y`` = state with the first ``length[b]`` tokens of x written: token i of row b goes to slot ``start[b] + i``
    (``mod S`` in a ring), rounded to the state's element type.  Of two tokens for one slot the later one stays.
    """

    name = "cache_write"
    inputs = (In("state", state=True, doc="[B, ..., S, D]"), In("x", doc="[B, ..., T, D]"),
              In("start", "index", doc="[B]"), In("length", "index", doc="[B]"))
    attrs = (RING,)
    updates = {"state": "y"}

    def infer(self, state: TensorType, x: TensorType, start: TensorType, length: TensorType,
              **attrs: Any) -> TensorType:
        _check_state("cache_write", state)
        check_rows("cache_write", state, start=start, length=length)
        if x.rank != state.rank or x.shape[:-2] != state.shape[:-2] or x.shape[-1] != state.shape[-1]:
            raise ShapeError(f"cache_write: {x} does not fit the state {state}: all dims but the slots must be equal")
        return state

    def reference(self, state: Any, x: Array, start: Array, length: Array, *, ring: bool, **attrs: Any) -> Any:
        slots, tokens, axis = state.shape[-2], x.shape[-2], len(state.shape) - 2
        if length.size and (int(length.min()) < 0 or int(length.max()) > tokens):
            raise InputError(f"cache_write: length {length.tolist()} is not in 0..{tokens}")
        if start.size and int(start.min()) < 0:
            raise InputError(f"cache_write: start {start.tolist()} is negative")
        if not ring and length.size and int((start + length).max()) > slots:
            raise InputError(f"cache_write: {int((start + length).max())} tokens do not fit a state of {slots} slots")
        step = np.arange(int(tokens))[None, :]
        batch, token = np.nonzero((step < length[:, None]) & (step >= length[:, None] - slots))
        slot = start[batch] + token
        slot = slot % slots if ring else slot
        fresh = packing.quantise(x, state.type) if isinstance(state, QTensor) else x.astype(state.dtype)
        result = state.copy()
        for into, source in zip(_arrays(result), _arrays(fresh), strict=True):
            slots_first(into, axis)[batch, slot] = slots_first(source, axis)[batch, token]
        return result


@register
class CacheRead(Op):
    """``y, index`` = every slot of the state as f32 numbers, and the logical index of the token in it (-1: none).

    With ``n = start[b] + length[b]`` tokens in: linear ``index[b, s] = s`` if ``s < n``; ring: the largest
    ``j < n`` with ``j mod S = s``, if ``j >= 0``.  In a state grouped along its slots the slots of a block that is not
    closed hold anything, of a ring the codes of an older block.
    """

    name = "cache_read"
    inputs = (In("state", state=True, doc="[B, ..., S, D]"), In("start", "index", doc="[B]"),
              In("length", "index", doc="[B]"))
    attrs = (RING,)
    outputs = ("y", "index")

    def infer(self, state: TensorType, start: TensorType, length: TensorType,
              **attrs: Any) -> tuple[TensorType, TensorType]:
        _check_state("cache_read", state)
        check_rows("cache_read", state, start=start, length=length)
        return state.with_element(DType.F32), TensorType(DType.I64, (state.shape[0], state.shape[-2]))

    def reference(self, state: Any, start: Array, length: Array, *, ring: bool, **attrs: Any) -> tuple[Array, Array]:
        slots: int = state.shape[-2]
        last = (start + length - 1)[:, None]
        slot = np.arange(slots)[None, :]
        index = last - (last - slot) % slots if ring else np.where(slot <= last, slot, -1)
        if isinstance(state, QTensor):
            y = packing.decode(state, np.float64)
        else:
            y = state if state.dtype in (np.float32, np.float64) else state.astype(np.float32)
        return y, np.maximum(index, -1)


@register
class CacheMove(Op):
    """``y`` = state with the token of logical index ``source[b, n]`` copied to ``target[b, n]`` for each n, all
    reads before all writes; -1 in either skips the pair.  Compacts the accepted path of a token tree.
    """

    name = "cache_move"
    inputs = (In("state", state=True, doc="[B, ..., S, D]"), In("source", "index", doc="[B, N]"),
              In("target", "index", doc="[B, N]"))
    attrs = (RING,)
    updates = {"state": "y"}

    def infer(self, state: TensorType, source: TensorType, target: TensorType, **attrs: Any) -> TensorType:
        _check_state("cache_move", state)
        if source.rank != 2 or source.shape != target.shape or source.shape[0] != state.shape[0]:
            raise ShapeError(f"cache_move: source {source} and target {target} must both be i64[{state.shape[0]}, N]")
        return state

    def reference(self, state: Any, source: Array, target: Array, *, ring: bool, **attrs: Any) -> Any:
        slots, axis = state.shape[-2], len(state.shape) - 2
        for name, index in (("source", source), ("target", target)):
            if index.size and (int(index.min()) < -1 or (not ring and int(index.max()) >= slots)):
                raise InputError(f"cache_move: a {name} index is not in -1..{slots - 1}")
        batch, pair = np.nonzero((source >= 0) & (target >= 0))
        read, write = source[batch, pair], target[batch, pair]
        if ring:
            read, write = read % slots, write % slots
        result = state.copy()
        for into, have in zip(_arrays(result), _arrays(state), strict=True):
            slots_first(into, axis)[batch, write] = slots_first(have, axis)[batch, read]
        return result
