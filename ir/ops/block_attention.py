"""Attention over keys that are quantised in blocks of tokens (:mod:`omnic.ir.ops.cache_blocks`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.attention import (
    check_index,
    decompose_products,
    decompose_shares,
    decompose_values,
    decompose_visible,
    products,
    shares,
    values,
    visible_keys,
)
from omnic.ir.ops.cache_blocks import places
from omnic.ir.ops.composite import Composite, as_element, check_rank, check_shape, plain, scalar, select
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["by_slot", "decompose_by_slot", "decompose_places", "decompose_recent", "recent_at"]


@register
class BlockAttention(Composite):
    """As ``attention``, with the key of token j (its logical index) taken from ``recent`` for the queries t at which it
    counts as recent: ``block * (j // block + 1) + keep > q_index[t] + 1``; for all others from ``k``.

    With ``recent_v`` its value is taken from there too.  Slot s of ``k`` and ``v`` holds token ``k_index[s]``, which is
    ``s`` modulo S.  ``recent`` must hold every token that a query sees and that is recent at it.
    """

    name = "block_attention"
    category = "attention"
    source = "arXiv:2402.02750"
    inputs = (
        In("q", "float", doc="[B, H, T, Dk]"),
        In("k", "float", doc="[B, G, S, Dk]"),
        In("v", "float", doc="[B, G, S, Dv]"),
        In("recent", "float", doc="[B, G, N, Dk] keys as they were before quantisation"),
        In("q_index", "index", doc="[B, T] logical index of each query"),
        In("k_index", "index", doc="[B, S] logical index of each key, -1 = empty"),
        In("recent_index", "index", doc="[B, N] logical index of each recent key, -1 = none"),
        In("sinks", "float", optional=True, doc="[H]"),
        In("recent_v", "float", optional=True, doc="[B, G, N, Dv] values as they were before quantisation"),
    )
    attrs = (
        Attr("block", "int", doc="tokens of a block"),
        Attr("keep", "int", 0, doc="recent tokens before the open block"),
        Attr("scale", "float", doc="multiplies q.k"),
        Attr("window", "int", 0, doc="attended keys, the current one included; 0 = all"),
        Attr("softcap", "float", 0.0, doc="bound of the logits; 0 = none"),
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [B, H, T, Dv] in the element type of q."""
        q, k, v, recent, q_index, k_index, recent_index, sinks, recent_v = types
        for name, type in (("q", q), ("k", k), ("v", v), ("recent", recent)):
            check_rank("block_attention", name, type, 4)
        batch, heads, tokens, width = q.shape
        groups, slots = k.shape[1], k.shape[2]
        check_shape("block_attention", "k", k, batch, groups, slots, width)
        check_shape("block_attention", "v", v, batch, groups, slots, v.shape[3])
        check_shape("block_attention", "recent", recent, batch, groups, recent.shape[2], width)
        check_shape("block_attention", "recent_index", recent_index, batch, recent.shape[2])
        if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups:
            raise ShapeError(f"block_attention: {heads} query heads cannot share {groups} KV heads evenly")
        index = {"q_index": q_index, "k_index": k_index, "parents": None, "start": None}
        check_index("block_attention", batch, tokens, slots, index)
        if sinks is not None:
            check_shape("block_attention", "sinks", sinks, heads)
        if recent_v is not None:
            check_shape("block_attention", "recent_v", recent_v, batch, groups, recent.shape[2], v.shape[3])
        if min(attrs["window"], attrs["softcap"], attrs["keep"]) < 0 or attrs["block"] < 1:
            raise ShapeError("block_attention: window, softcap and keep are not negative, and a block holds a token")
        return TensorType(plain(q), (batch, heads, tokens, v.shape[3]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """All heads and tokens at once; the recent keys are laid out by slot."""
        q, k, v, recent, q_index, k_index, recent_index, sinks, recent_v = arrays
        is_recent = recent_at(q_index, k_index, attrs["block"], attrs["keep"])[:, None, None]
        place = places(recent_index, k_index)[:, None]

        def laid_out(x: Array) -> Array:
            return by_slot(x, place)

        scores = select(is_recent, products(q, laid_out(recent)), products(q, k))
        seen = visible_keys(q_index, k_index, attrs["window"])
        weights, total = shares(scores, seen, attrs["scale"], attrs["softcap"], sinks)
        if recent_v is None:
            return values(weights, v) / total
        return (values(weights * ~is_recent, v) + values(weights * is_recent, laid_out(recent_v))) / total

    def decompose(self, b: FunctionBuilder, *operands: Any, **attrs: Any) -> Value:
        """The recent keys scattered to their slots, two products of which one is chosen, and attention's rest."""
        q, k, v, recent, q_index, k_index, recent_index, sinks, recent_v = operands
        element = plain(q.type)
        q, k, v, recent = (as_element(b, x, element) for x in (q, k, v, recent))
        batch, _, slots = k.type.shape[:3]
        tokens = q_index.type.shape[1]
        is_recent = decompose_recent(b, q_index, k_index, attrs["block"], attrs["keep"])
        is_recent = b.reshape(is_recent, batch, 1, 1, tokens, slots)
        place = decompose_places(b, recent_index, k_index)

        def laid_out(x: Value) -> Value:
            return decompose_by_slot(b, x, place, slots)

        scores = b.op("where", is_recent, decompose_products(b, q, laid_out(recent)), decompose_products(b, q, k))
        seen = decompose_visible(b, q_index, k_index, attrs["window"], None, None)
        weights, total = decompose_shares(b, scores, seen, attrs["scale"], attrs["softcap"], sinks)
        if recent_v is None:
            return b.op("div", decompose_values(b, weights, v), total)
        zero = scalar(b, 0.0, weights)
        old = decompose_values(b, b.op("where", is_recent, zero, weights), v)
        new = b.op("where", is_recent, weights, zero)
        new = decompose_values(b, new, laid_out(as_element(b, recent_v, element)))
        return b.op("div", b.op("add", old, new), total)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * B * H * T * (S * (Dk + Dv) + N * Dk), masked keys included."""
        q, k, v, recent = types[:4]
        batch, heads, tokens, width = q.shape
        return 2 * batch * heads * tokens * (k.shape[2] * (width + v.shape[3]) + recent.shape[2] * width)


def recent_at(q_index: Array, k_index: Array, block: int, keep: int) -> Array:
    """Return bool [B, T, S]: whether the token in a slot counts as recent at a query (the rule of BlockAttention)."""
    end = (k_index // block + 1) * block + keep
    return end[:, None, :] > q_index[:, :, None] + 1


def by_slot(x: Array, place: Array) -> Array:
    """Return recent numbers x [B, ..., N, D] by slot: slot s has those at ``place`` [B, ..., S], 0 where that is -1."""
    fresh = np.take_along_axis(x, np.maximum(place, 0)[..., None], axis=-2)
    return select(place[..., None] >= 0, fresh, np.zeros_like(fresh))


def decompose_recent(b: FunctionBuilder, q_index: Value, k_index: Value, block: int, keep: int) -> Value:
    """Build :func:`recent_at`."""
    (batch, slots), tokens = k_index.type.shape, q_index.type.shape[1]
    size, one = b.constant(block, DType.I64), b.constant(1, DType.I64)
    end = b.op("mul", b.op("add", b.op("floordiv", k_index, size), one), size)
    if keep:
        end = b.op("add", end, b.constant(keep, DType.I64))
    end = b.reshape(end, batch, 1, slots)
    return b.op("gt", end, b.reshape(b.op("add", q_index, one), batch, tokens, 1))


def decompose_places(b: FunctionBuilder, recent_index: Value, k_index: Value) -> Value:
    """Build i64 [B, N]: the slot of each recent token, S where there is none or a newer one is in its slot."""
    slots = k_index.type.shape[1]
    size = _size(b, slots)
    newest = b.op("max", k_index, axes=(1,), keepdims=True)
    gone = b.op("le", b.op("add", recent_index, size), newest)
    gone = b.op("or", b.op("lt", recent_index, b.constant(0, DType.I64)), gone)
    return b.op("where", gone, size, b.op("mod", recent_index, size))


def decompose_by_slot(b: FunctionBuilder, x: Value, place: Value, slots: Dim) -> Value:
    """Build :func:`by_slot` from :func:`decompose_places`: what is nowhere goes to one slot more, which is cut off."""
    batch, *middle, count, width = x.type.shape
    empty = b.op("broadcast", scalar(b, 0.0, x), shape=(batch, *middle, slots + 1, width))
    index = b.op("broadcast", b.reshape(place, batch, *(1 for _ in middle), count, 1), shape=x.type.shape)
    axis = x.type.rank - 2
    return b.op("slice", b.op("scatter", empty, index, x, axis=axis), axis=axis, start=(0,), stop=(slots,))


def _size(b: FunctionBuilder, size: Dim) -> Value:
    """Return the number ``size``, which may be symbolic, as an i64 scalar."""
    if isinstance(size, int):
        return b.constant(size, DType.I64)
    return b.op("add", b.op("max", b.op("iota", size=(size,), type=DType.I64), axes=(0,)), b.constant(1, DType.I64))
