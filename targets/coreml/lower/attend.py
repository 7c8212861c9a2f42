"""Attention over caches by the fused operation of iOS 18, and latent attention in both forms."""

from __future__ import annotations

import math
from typing import Any

from omnic.ir.graph import Node, Uses, Value
from omnic.targets.coreml.writer import MilWriter, attrs_of

__all__ = ["attention", "cached", "factor_of", "latent_attention"]

#: added to the score of a key that is not seen
_FLOOR = {"fp32": -1e30, "fp16": -60000.0}
#: operands of an op that are keys (latents), values (rope keys), and the index of the keys
_PLACES = {"attention": (1, 2, 4), "mla": (2, 3, 7)}


def cached(node: Node, uses: Uses) -> bool:
    """Whether the fused operation computes a node: keys and values are caches, without a tree, a cap or sinks.

    A query of a call sees itself at least there; elsewhere a query without keys gives 0, which the operation does not.
    """
    if node.op not in _PLACES:
        return False
    attrs = attrs_of(node)
    if attrs["softcap"]:
        return False
    given = dict(zip(_NAMES[node.op], node.operands, strict=False))
    if any(given.get(n) is not None for n in ("sinks", "parents", "recent")):
        return False
    keys, values, index = (node.operands[i] for i in _PLACES[node.op])
    makers = [_maker(v, uses) for v in (keys, values, index) if v is not None]
    return all(m is not None and m.op == "cache_read" for m in makers)


def _maker(value: Value, uses: Uses) -> Node | None:
    """Return the node that makes a value; of a wider cache that is cut to its numbers, the one that reads it."""
    made = uses.producer.get(value)
    if made is not None and made.op == "slice" and made.operands[0] is not None:
        return uses.producer.get(made.operands[0])
    return made


_NAMES = {
    "attention": ("q", "k", "v", "q_index", "k_index", "sinks", "parents", "start"),
    "mla": ("q_nope", "q_rope", "latent", "rope_k", "w_k", "w_v", "q_index", "k_index", "parents", "start", "recent",
            "recent_index"),
}


def _mask(w: MilWriter, q_index: Value, k_index: Value, window: int, heads: int) -> Any:
    """Return what is added to the scores [1, 1, heads * T, S]: 0 for a key that is seen."""
    key = ("mask", q_index, k_index, window, heads, w.half)
    if key in w.caches:
        return w.caches[key]
    one = ("mask", q_index, k_index, window, 1, w.half)
    if one not in w.caches:
        query = w.op("expand_dims", x=w.need(q_index), axes=[2])
        slot = w.op("expand_dims", x=w.need(k_index), axes=[1])
        seen = w.op("logical_and", x=w.op("greater_equal", x=slot, y=w.const(0)),
                    y=w.op("less_equal", x=slot, y=query))
        if window:
            nearest = w.op("sub", x=query, y=w.const(window))
            seen = w.op("logical_and", x=seen, y=w.op("greater", x=slot, y=nearest))
        hidden = w.op("sub", x=w.const(1.0), y=w.cast(seen, w.float))
        w.caches[one] = w.op("expand_dims", x=w.op("mul", x=hidden, y=w.const(_FLOOR[w.float])), axes=[1])
    tokens = q_index.type.shape[1]
    if heads > 1 and tokens != 1:
        w.caches[key] = w.op("tile", x=w.caches[one], reps=[1, 1, heads, 1])
    return w.caches.get(key, w.caches[one])


def factor_of(scale: float, width: int) -> float | None:
    """Return what queries are multiplied by before the operation, None when its own scale is the wanted one."""
    factor = scale * math.sqrt(width)
    return factor if abs(factor - 1.0) > 1e-9 else None


def _fused(w: MilWriter, q: Any, k: Any, v: Any, mask: Any, scale: float, width: int) -> Any:
    """The operation scales by 1 / sqrt(width) itself."""
    factor = factor_of(scale, width)
    if factor is not None:
        q = w.op("mul", x=q, y=w.const(factor))
    return w.op("scaled_dot_product_attention", query=q, key=k, value=v, attn_mask=mask)


def _length(value: Value) -> int:
    """Return the tokens of a call for a reshape: -1 when it is flexible."""
    tokens = value.type.shape[1]
    return tokens if isinstance(tokens, int) else -1


def attention(w: MilWriter, node: Node) -> None:
    """Query heads that share a KV head are more rows of its queries, so that keys and values are never repeated."""
    q, k, v, q_index, k_index = node.operands[:5]
    assert q is not None and k is not None and v is not None and q_index is not None and k_index is not None
    attrs = attrs_of(node)
    heads, width = int(str(q.type.shape[1])), int(str(q.type.shape[3]))
    groups, value_width = int(str(k.type.shape[1])), int(str(v.type.shape[3]))
    per, tokens = heads // groups, q.type.shape[2]
    query = w.as_float(q)
    flexible = not isinstance(tokens, int)
    if per > 1:
        rows = -1 if flexible else per * int(str(tokens))
        query = w.op("reshape", x=query, shape=[1, groups, rows, width])
    mask = _mask(w, q_index, k_index, int(attrs["window"]), per)
    y = _fused(w, query, w.as_float(k), w.as_float(v), mask, float(attrs["scale"]), width)
    if per > 1:
        y = w.op("reshape", x=y, shape=[1, heads, -1 if flexible else int(str(tokens)), value_width])
    w.bind(node.result, y)


def latent_attention(w: MilWriter, node: Node) -> None:
    """Absorbed: one KV head over the latent; naive: keys and values of every head from the latent."""
    q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index = node.operands[:8]
    assert q_nope is not None and q_rope is not None and latent is not None and rope_k is not None
    assert w_k is not None and w_v is not None and q_index is not None and k_index is not None
    attrs = attrs_of(node)
    heads, tokens = int(str(q_nope.type.shape[1])), q_nope.type.shape[2]
    nope, turned = int(str(q_nope.type.shape[3])), int(str(q_rope.type.shape[3]))
    width = int(str(latent.type.shape[2]))
    kept, keys = w.as_float(latent), w.as_float(rope_k)
    window, scale = int(attrs["window"]), float(attrs["scale"])
    kept4 = w.op("expand_dims", x=kept, axes=[1])
    keys4 = w.op("expand_dims", x=keys, axes=[1])
    up_k, up_v = (w.op("expand_dims", x=w.as_float(v), axes=[0]) for v in (w_k, w_v))
    # Each order rounds elsewhere.  In fp16 there is one, so that a prompt and its verification are the same numbers.
    if attrs["form"] == "naive" and not w.half:
        each = w.op("matmul", x=kept4, y=up_k, transpose_y=True)
        shared = w.op("tile", x=keys4, reps=[1, heads, 1, 1])
        key = w.op("concat", values=[each, shared], axis=3)
        value = w.op("matmul", x=kept4, y=up_v, transpose_y=True)
        query = w.op("concat", values=[w.as_float(q_nope), w.as_float(q_rope)], axis=3)
        mask = _mask(w, q_index, k_index, window, 1)
        w.bind(node.result, _fused(w, query, key, value, mask, scale, nope + turned))
        return
    flexible = not isinstance(tokens, int)
    moved = w.op("matmul", x=w.as_float(q_nope), y=up_k)
    query = w.op("concat", values=[moved, w.as_float(q_rope)], axis=3)
    rows = -1 if flexible else heads * int(str(tokens))
    query = w.op("reshape", x=query, shape=[1, 1, rows, width + turned])
    key = w.op("concat", values=[kept4, keys4], axis=3)
    mask = _mask(w, q_index, k_index, window, heads)
    y = _fused(w, query, key, kept4, mask, scale, width + turned)
    y = w.op("reshape", x=y, shape=[1, heads, -1 if flexible else int(str(tokens)), width])
    w.bind(node.result, w.op("matmul", x=y, y=up_v, transpose_y=True))
