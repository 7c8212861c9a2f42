"""Keys that are quantised in blocks of tokens: one scale per channel and block (KIVI, arXiv:2402.02750).

The scales of a block are known once its last token is there.  So such a cache is two states: the codes
``[B, ..., S, D]``, grouped along the slots (``i4<g32, asym, axis-2>``), and a small ring of the newest tokens as
plain numbers, of the role ``recent``.  A call

1. reads the ring (what came before the call) and puts its own tokens behind: ``recent``, with their indices;
2. closes every block that its tokens complete: :class:`CacheClose`;
3. writes its tokens into the ring: ``cache_write``;
4. attends with ``block_attention``: a query sees the keys of the block that is open *at its own index* as plain
   numbers and all others as quantised ones.

Rule 4 asks what is closed at the query and not at the end of the call, so any cutting of the tokens into calls gives
the same result.  ``keep`` more tokens before the open block can be read as plain numbers too, and so can the values of
the same tokens, which have a ring of their own (KIVI keeps the newest tokens of both).  A ring of R tokens and blocks
of g roll back by at most R - g - keep + 1 tokens: an opened block then still has its tokens in the ring, and closes
again to the same codes.

Rule 4 is worth having for states whose tokens are quantised one by one too (``cache_write``): attention falls mostly on
the newest tokens.  There ``g`` is 1, so the newest ``keep`` tokens of each query are plain numbers.

A cache of a sliding window is a ring of S slots.  Its blocks lie modulo S, which g divides.  Closing a block overwrites
g tokens at once, of which the newest is S tokens older than the newest of the call: no query of the call sees it where
S >= window + T_max - 1, as for any ring.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.op import Array, In, Op, ShapeError, register
from omnic.ir.ops.cache import RING, check_rows, slots_first
from omnic.ir.ops.composite import check_shape
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, TensorType

__all__ = ["places"]


def places(index: Array, wanted: Array) -> Array:
    """Return i64[B, S]: where in ``index`` [B, N] each number of ``wanted`` [B, S] stands, -1 = nowhere or below 0."""
    order = np.argsort(index, axis=1, kind="stable")
    ordered = np.take_along_axis(index, order, axis=1)
    found = np.full(wanted.shape, -1, np.int64)
    for row, (have, want) in enumerate(zip(ordered, wanted, strict=True)):
        at = np.minimum(cast(Array, np.searchsorted(have, want)), len(have) - 1)
        hit = (have[at] == want) & (want >= 0)
        found[row, hit] = order[row, at[hit]]
    return found


@register
class CacheClose(Op):
    """``y`` = state with the blocks quantised that end in this call: block j holds the tokens g j .. g j + g - 1, g the
    group of the state's type, and ends where ``start[b] < g (j + 1) <= start[b] + length[b]``.

    Its tokens are taken from ``recent`` by ``index`` and rounded by the rules of ``omnic.ir.packing``; other blocks
    stay as they are.  The state is linear; what does not fill a block is not in it.
    """

    name = "cache_close"
    source = "arXiv:2402.02750"
    inputs = (In("state", state=True, doc="[B, ..., S, D], grouped along S"), In("recent", doc="[B, ..., N, D]"),
              In("index", "index", doc="[B, N] logical index of each recent token, -1 = none"),
              In("start", "index", doc="[B]"), In("length", "index", doc="[B]"))
    attrs = (RING,)
    updates = {"state": "y"}

    def infer(self, state: TensorType, recent: TensorType, index: TensorType, start: TensorType, length: TensorType,
              **attrs: Any) -> TensorType:
        element = state.element
        if state.rank < 3 or not isinstance(element, Storage) or element.axis != -2 or element.group < 1:
            raise ShapeError(f"cache_close: the state must be [B, ..., S, D] in groups along S, got {state}")
        if element.scale == "s4":
            raise ShapeError("cache_close: s4 scales share a row over all blocks, so no block can close by itself")
        slots = state.shape[-2]
        if attrs["ring"] and isinstance(slots, int) and slots % element.group:
            raise ShapeError(f"cache_close: blocks of {element.group} tokens do not fill a ring of {slots} slots",
                             "make the ring a multiple of the block")
        check_rows("cache_close", state, start=start, length=length)
        if recent.rank != state.rank or recent.shape[:-2] != state.shape[:-2] or recent.shape[-1] != state.shape[-1]:
            raise ShapeError(f"cache_close: {recent} does not fit {state}: all dims but the slots must be equal")
        check_shape("cache_close", "index", index, state.shape[0], recent.shape[-2])
        return state

    def reference(
        self, state: QTensor, recent: Array, index: Array, start: Array, length: Array, *, ring: bool, **attrs: Any
    ) -> Any:
        slots, size = state.shape[-2], state.type.group
        if not ring and length.size and int((start + length).max()) > slots:
            raise InputError(f"cache_close: {int((start + length).max())} tokens do not fit a state of {slots} slots")
        first, last = start // size, (start + length) // size
        step = np.arange(int((last - first).max()) if length.size else 0)[None, :]
        row, step = np.nonzero(step < (last - first)[:, None])
        block = first[row] + step
        result = state.copy()
        if not row.size:
            return result
        token = block[:, None] * size + np.arange(int(size))
        place = places(index[row], token)
        if int(place.min()) < 0:
            at = int(np.flatnonzero(place.min(-1) < 0)[0])
            raise InputError(f"cache_close: block {block[at]} of row {row[at]} ends, and not all its tokens are recent")
        tokens = slots_first(recent, recent.ndim - 2)[row[:, None], place]
        fresh = packing.quantise(np.moveaxis(tokens, 1, -2), state.type)
        if ring:
            # Of two blocks for one place the later one stays: numpy assigns them in order.
            block, token = block % (slots // size), token % slots
        slots_first(result.codes, len(state.shape) - 2)[row[:, None], token] = np.moveaxis(fresh.codes, -2, 1)
        for into, part in ((result.scale, fresh.scale), (result.zero, fresh.zero)):
            if into is not None and part is not None:
                np.moveaxis(into, -1, 1)[row, block] = part[..., 0]
        return result
