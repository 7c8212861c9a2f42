"""Attention over codes and recent tokens, and states whose codes share scales by blocks of tokens.

What a query reads in f16 stands behind the slots of codes, and the mask of each copy hides it where the other one
counts: one standard Attention over n live slots and N recent tokens (docs/ir.md, ``block_attention``).

A state in blocks (``i4<g32, asym, axis-2>``) is written a block at a time, as other states a token at a time: its
buffers have one entry a block (:mod:`omnic.targets.onnx.codes`).  A block is quantised from the recent tokens when its
last one is there, and what does not end in a call is written back as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as onnx

from omnic.ir.graph import Node, Value
from omnic.ir.types import Storage
from omnic.targets.onnx.codes import encode_blocks
from omnic.targets.onnx.lower import attend
from omnic.targets.onnx.lower.states import Places, live_count, live_numbers, scatter, slot_index, slots_of
from omnic.targets.onnx.plan import Cached
from omnic.targets.onnx.writer import GraphWriter, attrs_of

__all__ = ["TABLE", "latent_attention", "recent_attention"]


def _need(value: Value | None) -> Value:
    assert value is not None
    return value


# -- attention ------------------------------------------------------------------------------------------
def _ends_after(w: GraphWriter, index: onnx.Value, next_query: onnx.Value, block: int, keep: int) -> onnx.Value:
    """Bool [B, T, n]: whether the tokens of logical ``index`` [B, n] are recent at the queries (i64 [B, T, 1], + 1)."""
    end = w.op("Add", index, w.const(np.array(1)))
    if block > 1:
        size = w.const(np.array(block))
        end = w.op("Mul", w.op("Add", w.op("Div", index, size), w.const(np.array(1))), size)
    if keep:
        end = w.op("Add", end, w.const(np.array(keep)))
    return w.op("Greater", w.op("Unsqueeze", end, w.ints(1)), next_query)


def _seen(w: GraphWriter, index: onnx.Value, query: onnx.Value, window: int) -> onnx.Value:
    """Bool [B, T, n]: whether queries i64 [B, T, 1] see the tokens of logical ``index`` [B, n]."""
    key = w.op("Unsqueeze", index, w.ints(1))
    seen = w.op("And", w.op("GreaterOrEqual", key, w.const(np.array(0))), w.op("LessOrEqual", key, query))
    if not window:
        return seen
    return w.op("And", seen, w.op("Greater", key, w.op("Sub", query, w.const(np.array(window)))))


def _mask(
    w: GraphWriter, cached: Cached, q_index: Value, recent_index: Value
) -> tuple[onnx.Value, onnx.Value, onnx.Value]:
    """(mask f32 [B, 1, T, n + N], n, recent_index i64 [B, N]), shared by the layers that mask alike."""
    attrs, slots = attrs_of(cached.node), slots_of(_need(cached.writes[0].operands[0]))
    about = int(attrs["window"]), int(attrs["block"]), int(attrs["keep"])
    key = ("recent mask", q_index, recent_index, cached.start, cached.length, slots, cached.ring, *about)
    if key not in w.memo:
        window, block, keep = about
        count = live_count(w, cached.start, cached.length, slots, cached.ring)
        index = slot_index(w, cached.start, cached.length, slots, cached.ring, count)
        query, newest = w.op("Unsqueeze", w.need(q_index), w.ints(2)), w.need(recent_index)
        after = w.op("Add", query, w.const(np.array(1)))
        old = w.op("Not", _ends_after(w, index, after, block, keep))
        old = w.op("And", _seen(w, index, query, window), old)
        new = w.op("And", _seen(w, newest, query, window), _ends_after(w, newest, after, block, keep))
        both = w.op("Concat", old, new, axis=2)
        mask = w.op("Where", both, w.const(np.float32(0)), w.const(np.float32(-1e30)))
        w.memo[key] = w.op("Unsqueeze", mask, w.ints(1)), count, newest
    return w.memo[key]


def recent_attention(w: GraphWriter, cached: Cached) -> None:
    """Lower ``block_attention`` over states that are written already."""
    node = cached.node
    q, _, _, recent, q_index, _, recent_index, sinks, recent_v = node.operands
    mask, count, _ = _mask(w, cached, _need(q_index), _need(recent_index))
    k, v = (
        w.op("Concat", live_numbers(w, _need(read.operands[0]), count), w.need(new), axis=2)
        for read, new in zip(cached.reads, (recent, recent_v), strict=True)
    )
    w.bind(node.result, attend.attend(w, node, w.need(q), k, v, mask, sinks))


def latent_attention(w: GraphWriter, cached: Cached) -> None:
    """Lower ``mla`` in its absorbed form, with recent latents where it has some."""
    node = cached.node
    recent, recent_index = node.operands[10:12]
    if recent is None:
        attend.latent_attention(w, cached)
        return
    mask, count, index = _mask(w, cached, _need(node.operands[6]), _need(recent_index))
    latent, turned = (live_numbers(w, _need(read.operands[0]), count) for read in cached.reads)
    key = ("recent slots", index, count)
    if key not in w.memo:
        slots = w.ints(slots_of(_need(cached.writes[0].operands[0])))
        place = w.op("Mod", w.op("Max", index, w.const(np.array(0))), slots)
        w.memo[key] = w.op("Unsqueeze", w.op("Min", place, w.op("Sub", count, w.ints(1))), w.ints(2))
    beside = w.op("GatherND", turned, w.memo[key], batch_dims=1)
    latent = w.op("Concat", latent, w.need(recent), axis=1)
    turned = w.op("Concat", turned, beside, axis=1)
    attend.latents(w, node, latent, turned, mask)


# -- closing blocks -------------------------------------------------------------------------------------
def _close(w: GraphWriter, node: Node) -> None:
    state, recent, index, start, length = (_need(v) for v in node.operands)
    element, rank = state.type.element, state.type.rank
    assert isinstance(element, Storage)
    places, token = _ending(w, index, start, length, slots_of(state) // element.group, element.group)
    lead = [0] * (rank - 2)
    shape = w.op("Shape", w.need(recent), start=0, end=rank - 2)
    width = int(str(state.type.shape[-1]))
    at = w.op("Unsqueeze", token, w.ints(*range(1, rank - 2), rank - 1))
    at = w.op("Expand", at, w.op("Concat", shape, w.op("Shape", token, start=1, end=2), w.ints(width), axis=0))
    tokens = w.op("GatherElements", w.need(recent), at, axis=rank - 2)
    made = encode_blocks(w, w.op("Reshape", tokens, w.ints(*lead, -1, element.group, width)), element, rank, width)
    old = w.state_parts(state)
    w.bind_state(node.result, {s: scatter(w, state, old[s], made[s], places) for s in old})


def _ending(
    w: GraphWriter, index: Value, start: Value, length: Value, blocks: int, size: int
) -> tuple[Places, onnx.Value]:
    """(where the blocks go that may end in this call, i64 [B, n * size]: where each of their tokens is recent)."""
    key = ("ending", index, start, length, blocks, size)
    if key in w.memo:
        return w.memo[key]
    one, group, every = w.ints(1), w.ints(size), w.ints(blocks)
    longest = w.op("ReduceMax", w.need(length), keepdims=1)
    count = w.op("Min", w.op("Add", w.op("Div", longest, group), one), every)
    steps = w.op("Range", w.const(np.array(0)), w.op("Squeeze", count), w.const(np.array(1)))
    first = w.op("Div", w.need(start), group)
    block = w.op("Add", w.op("Unsqueeze", first, one), steps)
    end = w.op("Unsqueeze", w.op("Add", w.need(start), w.need(length)), one)
    closes = w.op("LessOrEqual", w.op("Mul", w.op("Add", block, one), group), end)
    inside = w.const(np.arange(size, dtype=np.int64))
    token = w.op("Add", w.op("Unsqueeze", w.op("Mul", block, group), w.ints(2)), inside)
    token = w.op("Reshape", token, w.ints(0, -1))
    same = w.op("Equal", w.op("Unsqueeze", token, w.ints(2)), w.op("Unsqueeze", w.need(index), one))
    place = w.op("ArgMax", w.op("Cast", same, to=onnx.DataType.INT32), axis=2, keepdims=0)
    w.memo[key] = Places(closes, w.op("Mod", first, every), w.op("Mod", block, every)), place
    return w.memo[key]


TABLE: dict[str, Callable[[GraphWriter, Node], None]] = {"cache_close": _close}
