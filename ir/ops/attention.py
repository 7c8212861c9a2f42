"""Attention over keys that carry their logical index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, as_element, check_rank, check_shape, plain, scalar, select
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["ancestors", "attend", "decompose_mix", "decompose_products", "decompose_shares", "decompose_values",
           "decompose_visible", "mix", "products", "shares", "values",
           "visible_keys"]

# Doublings of the parent relation when the number of tokens of a call is symbolic: trees of any depth up to 2^16.
_DOUBLINGS = 16


def ancestors(parents: Array) -> Array:
    """Return bool [B, T, T]: whether token j is token t or an ancestor of it, from ``parents`` [B, T] (-1 = root)."""
    tokens: int = parents.shape[1]
    direct = np.equal(parents[:, :, None], np.arange(tokens))
    reach = np.logical_or(direct, np.eye(tokens, dtype=bool)).astype(np.float32)
    for _ in range(_doublings(tokens)):
        reach = np.minimum(np.matmul(reach, reach), 1.0)
    return reach > 0.5


def _doublings(tokens: Dim) -> int:
    return max(tokens - 1, 1).bit_length() if isinstance(tokens, int) else _DOUBLINGS


def visible_keys(
    q_index: Array, k_index: Array, window: int, parents: Array | None = None, start: Array | None = None
) -> Array:
    """Return bool [B, T, S]: which keys each query sees (the rule of the op ``attention``)."""
    query, key = q_index[:, :, None], k_index[:, None, :]
    seen = (key >= 0) & (key <= query)
    if window:
        seen &= key > query - window
    if parents is None or start is None:
        return seen
    tokens = parents.shape[1]
    slot = k_index - start[:, None]
    inside = np.clip(slot, 0, tokens - 1)[:, None, :]
    related = np.take_along_axis(ancestors(parents), np.broadcast_to(inside, seen.shape), axis=2)
    return seen & ((slot < 0)[:, None, :] | related)


def attend(
    q: Array, k: Array, v: Array, seen: Array, scale: float, softcap: float = 0.0, sinks: Array | None = None
) -> Array:
    """Return [B, H, T, Dv]: masked softmax attention; ``seen`` is bool [B, T, S], KV heads are shared in order."""
    return mix(products(q, k), v, seen, scale, softcap, sinks)


def products(q: Array, k: Array) -> Array:
    """Return q.k of every query and key, [B, G, H/G, T, S], from q [B, H, T, D] and k [B, G, S, D]."""
    batch, heads, tokens, width = q.shape
    groups, slots = k.shape[1], k.shape[2]
    per = heads // groups
    scores = np.matmul(q.reshape(batch, groups, per * tokens, width), np.swapaxes(k, -1, -2))
    return scores.reshape(batch, groups, per, tokens, slots)


def mix(
    scores: Array, v: Array, seen: Array, scale: float, softcap: float = 0.0, sinks: Array | None = None
) -> Array:
    """Return [B, H, T, Dv] from the products q.k [B, G, H/G, T, S] (overwritten), the rest as in :func:`attend`."""
    weights, total = shares(scores, seen, scale, softcap, sinks)
    return values(weights, v) / total


def values(weights: Array, v: Array) -> Array:
    """Return the sums [B, H, T, Dv] of v [B, G, S, Dv] with weights [B, G, H/G, T, S]."""
    batch, groups, per, tokens, slots = weights.shape
    out = np.matmul(weights.reshape(batch, groups, per * tokens, slots), v)
    return out.reshape(batch, groups * per, tokens, v.shape[-1])


def shares(
    scores: Array, seen: Array, scale: float, softcap: float = 0.0, sinks: Array | None = None
) -> tuple[Array, Array]:
    """Return the weights [B, G, H/G, T, S] of each query's keys from the products q.k (overwritten), and what their
    sums are to be divided by, [B, H, T, 1].
    """
    batch, groups, per, tokens, _ = scores.shape
    scores *= scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = select(seen[:, None, None], scores, -np.inf)
    peak = np.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        peak = np.maximum(peak, sinks.reshape(1, groups, per, 1, 1))
    peak = select(np.isfinite(peak), peak, np.zeros_like(peak))
    scores -= peak
    weights = np.exp(scores, out=scores)
    total = np.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.reshape(1, groups, per, 1, 1) - peak)
    total = select(total > 0, total, np.ones_like(total))
    return weights, total.reshape(batch, groups * per, tokens, 1)


def check_index(op: str, batch: Dim, tokens: Dim, slots: Dim, types: dict[str, TensorType | None]) -> None:
    """Check q_index, k_index, parents and start against B, T and S.

    Raises:
        ShapeError: one does not fit, or only one of parents and start is present.
    """
    expected: dict[str, tuple[Dim, ...]] = {
        "q_index": (batch, tokens), "k_index": (batch, slots), "parents": (batch, tokens), "start": (batch,),
    }
    for name, shape in expected.items():
        type = types[name]
        if type is not None:
            check_shape(op, name, type, *shape)
    if types["parents"] is not None and types["start"] is None:
        raise ShapeError(f"{op}: parents needs start")


@register
class Attention(Composite):
    """o[t] = sum_s p[t, s] v[s], p[t, .] = softmax over the visible s of c(scale * q[t].k[s]).

    Key s is visible to query t iff 0 <= k_index[s] <= q_index[t], and k_index[s] > q_index[t] - window when
    window > 0 (so a window counts the current token), and, with ``parents``, a key of this call (k_index[s] >= start,
    its slot j = k_index[s] - start) only if token j is t or an ancestor of t.  c(x) = softcap * tanh(x / softcap) when
    softcap > 0, applied before the mask.  ``sinks``: one more logit per head in the denominator, with no value.
    A query that sees no key gives 0.  Query head h uses KV head h // (H/G): MHA G = H, MQA G = 1.
    """

    name = "attention"
    category = "attention"
    source = "arXiv:1706.03762; GQA arXiv:2305.13245; window arXiv:2004.05150; softcap arXiv:2408.00118; " \
             "sinks arXiv:2309.17453; tree mask arXiv:2305.09781"
    inputs = (
        In("q", "float", doc="[B, H, T, Dk]"),
        In("k", "float", doc="[B, G, S, Dk]"),
        In("v", "float", doc="[B, G, S, Dv]"),
        In("q_index", "index", doc="[B, T] logical index of each query"),
        In("k_index", "index", doc="[B, S] logical index of each key, -1 = empty"),
        In("sinks", "float", optional=True, doc="[H]"),
        In("parents", "index", optional=True, doc="[B, T] slot of the parent in this call, -1 = committed prefix"),
        In("start", "index", optional=True, doc="[B] tokens committed before this call"),
    )
    attrs = (
        Attr("scale", "float", doc="multiplies q.k"),
        Attr("window", "int", 0, doc="attended keys, the current one included; 0 = all"),
        Attr("softcap", "float", 0.0, doc="bound of the logits; 0 = none"),
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [B, H, T, Dv] in the element type of q."""
        q, k, v, q_index, k_index, sinks, parents, start = types
        for name, type in (("q", q), ("k", k), ("v", v)):
            check_rank("attention", name, type, 4)
        batch, heads, tokens, width = q.shape
        groups, slots = k.shape[1], k.shape[2]
        check_shape("attention", "k", k, batch, groups, slots, width)
        check_shape("attention", "v", v, batch, groups, slots, v.shape[3])
        if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups:
            raise ShapeError(f"attention: {heads} query heads cannot share {groups} KV heads evenly")
        index = {"q_index": q_index, "k_index": k_index, "parents": parents, "start": start}
        check_index("attention", batch, tokens, slots, index)
        if sinks is not None:
            check_shape("attention", "sinks", sinks, heads)
        if attrs["window"] < 0 or attrs["softcap"] < 0:
            raise ShapeError("attention: window and softcap must not be negative")
        return TensorType(plain(q), (batch, heads, tokens, v.shape[3]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """All heads and tokens at once."""
        q, k, v, q_index, k_index, sinks, parents, start = arrays
        seen = visible_keys(q_index, k_index, attrs["window"], parents, start)
        return attend(q, k, v, seen, attrs["scale"], attrs["softcap"], sinks)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Two products around a masked softmax written out, so that a query without keys gives 0."""
        q, k, v, q_index, k_index, sinks, parents, start = values
        element = plain(q.type)
        q, k, v = (as_element(b, x, element) for x in (q, k, v))
        seen = decompose_visible(b, q_index, k_index, attrs["window"], parents, start)
        return decompose_mix(b, decompose_products(b, q, k), v, seen, attrs["scale"], attrs["softcap"], sinks)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * B * H * T * S * (Dk + Dv), masked keys included."""
        q, k, v = types[:3]
        batch, heads, tokens, width = q.shape
        return 2 * batch * heads * tokens * k.shape[2] * (width + v.shape[3])


def decompose_products(b: FunctionBuilder, q: Value, k: Value) -> Value:
    """Build :func:`products` from core ops."""
    batch, heads, tokens, width = q.type.shape
    groups, slots = k.type.shape[1], k.type.shape[2]
    assert isinstance(heads, int)
    assert isinstance(groups, int)
    per = heads // groups
    grouped = b.reshape(q, batch, groups, per * tokens, width)
    return b.reshape(b.op("matmul", grouped, k, tb=True), batch, groups, per, tokens, slots)


def decompose_mix(
    b: FunctionBuilder, scores: Value, v: Value, seen: Value, scale: float, softcap: float, sinks: Value | None
) -> Value:
    """Build :func:`mix` from core ops; ``seen`` is bool [B, T, S]."""
    weights, total = decompose_shares(b, scores, seen, scale, softcap, sinks)
    return b.op("div", decompose_values(b, weights, v), total)


def decompose_values(b: FunctionBuilder, weights: Value, v: Value) -> Value:
    """Build :func:`values` from core ops."""
    batch, groups, per, tokens, slots = weights.type.shape
    assert isinstance(groups, int)
    flat = b.reshape(weights, batch, groups, per * tokens, slots)
    return b.reshape(b.op("matmul", flat, v), batch, groups * per, tokens, v.type.shape[3])


def decompose_shares(
    b: FunctionBuilder, scores: Value, seen: Value, scale: float, softcap: float, sinks: Value | None
) -> tuple[Value, Value]:
    """Build :func:`shares` from core ops; ``seen`` is bool [B, T, S]."""
    batch, groups, per, tokens, slots = scores.type.shape
    element = plain(scores.type)
    assert isinstance(groups, int)
    scores = b.op("mul", scores, scalar(b, scale, scores))
    if softcap:
        cap = scalar(b, softcap, scores)
        scores = b.op("mul", b.op("tanh", b.op("div", scores, cap)), cap)
    seen = b.reshape(seen, batch, 1, 1, tokens, slots)
    # A finite floor keeps rows without a visible key free of inf - inf; their weights are zeroed below.
    zero = scalar(b, 0.0, scores)
    peak = b.op("max", b.op("where", seen, scores, scalar(b, _floor(element), scores)), axes=(4,), keepdims=True)
    sink = None
    if sinks is not None:
        sink = b.reshape(as_element(b, sinks, element), 1, groups, per, 1, 1)
        peak = b.op("maximum", peak, sink)
    shifted = b.op("where", seen, b.op("sub", scores, peak), zero)
    weights = b.op("where", seen, b.op("exp", shifted), zero)
    total = b.op("sum", weights, axes=(4,), keepdims=True)
    if sink is not None:
        total = b.op("add", total, b.op("exp", b.op("sub", sink, peak)))
    total = b.op("where", b.op("gt", total, zero), total, scalar(b, 1.0, scores))
    return weights, b.reshape(total, batch, groups * per, tokens, 1)


def _floor(element: DType) -> float:
    """Return a number below every logit that the element type holds."""
    return -60000.0 if element == DType.F16 else -1e30


def decompose_visible(
    b: FunctionBuilder, q_index: Value, k_index: Value, window: int, parents: Value | None, start: Value | None
) -> Value:
    """Build :func:`visible_keys`, bool [B, T, S], from core ops."""
    batch, tokens = q_index.type.shape
    slots = k_index.type.shape[1]
    query, key = b.reshape(q_index, batch, tokens, 1), b.reshape(k_index, batch, 1, slots)
    seen = b.op("and", b.op("ge", key, b.constant(0, DType.I64)), b.op("le", key, query))
    if window:
        seen = b.op("and", seen, b.op("gt", key, b.op("sub", query, b.constant(window, DType.I64))))
    if parents is None or start is None:
        return seen
    slot = b.op("sub", key, b.reshape(start, batch, 1, 1))
    zero = b.constant(0, DType.I64)
    # The bounds only keep the index of keys from before this call inside; such keys are let through below.
    last = b.op("max", b.op("iota", size=(tokens,)), axes=(0,))
    inside = b.op("minimum", b.op("maximum", slot, zero), last)
    reach = decompose_ancestors(b, parents)
    related = b.op("gt", b.op("gather", reach, inside, axis=2), b.constant(0.5))
    return b.op("and", seen, b.op("or", b.op("lt", slot, zero), related))


def decompose_ancestors(b: FunctionBuilder, parents: Value) -> Value:
    """Build :func:`ancestors` as f32 0/1 [B, T, T]: the parent relation, squared until it is closed."""
    batch, tokens = parents.type.shape
    index = b.op("iota", size=(tokens,))
    direct = b.op("eq", b.reshape(parents, batch, tokens, 1), b.reshape(index, 1, 1, tokens))
    itself = b.op("eq", b.reshape(index, 1, tokens, 1), b.reshape(index, 1, 1, tokens))
    reach = b.op("cast", b.op("or", direct, itself), to=DType.F32)
    for _ in range(_doublings(tokens)):
        reach = b.op("minimum", b.op("matmul", reach, reach), b.constant(1.0))
    return reach
