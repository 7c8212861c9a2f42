"""Multi-head latent attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.attention import (
    attend,
    check_index,
    decompose_products,
    decompose_shares,
    decompose_values,
    decompose_visible,
    products,
    shares,
    visible_keys,
)
from omnic.ir.ops.attention import values as sums
from omnic.ir.ops.block_attention import by_slot, decompose_by_slot, decompose_places, decompose_recent, recent_at
from omnic.ir.ops.cache_blocks import places
from omnic.ir.ops.composite import Composite, as_element, check_rank, check_shape, plain, scalar, select
from omnic.ir.types import TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value


@register
class Mla(Composite):
    """o[h, t] = sum_s p[h, t, s] (w_v[h] latent[s]), with
    p[h, t, .] = softmax over the visible s of c(scale * (q_nope[h, t].(w_k[h] latent[s]) + q_rope[h, t].rope_k[s])).

    Visibility, window, softcap (c), parents and start as in ``attention``.  Keys share one latent (after its norm) and
    one rotated key part.  ``form`` names the order of the products, never the result: ``naive`` expands keys and
    values per head; ``absorbed`` moves w_k into the query and w_v behind the softmax, (q w_k).latent = q.(w_k latent),
    so only the latent is read: what decoding wants.

    With ``recent`` the latent of token j is taken from there at the queries t at which it counts as recent (as in
    ``block_attention``): ``block * (j // block + 1) + keep > q_index[t] + 1``.  There is no token tree then, and the
    order of the products is the absorbed one.
    """

    name = "mla"
    category = "attention"
    source = "DeepSeek-V2 arXiv:2405.04434"
    inputs = (
        In("q_nope", "float", doc="[B, H, T, N]"),
        In("q_rope", "float", doc="[B, H, T, R], rotated"),
        In("latent", "float", doc="[B, S, L]"),
        In("rope_k", "float", doc="[B, S, R], rotated"),
        In("w_k", "float", doc="[H, N, L]"),
        In("w_v", "float", doc="[H, V, L]"),
        In("q_index", "index", doc="[B, T]"),
        In("k_index", "index", doc="[B, S], -1 = empty"),
        In("parents", "index", optional=True, doc="[B, T]"),
        In("start", "index", optional=True, doc="[B]"),
        In("recent", "float", optional=True, doc="[B, N, L] latents as they were before quantisation"),
        In("recent_index", "index", optional=True, doc="[B, N] logical index of each, -1 = none"),
    )
    attrs = (
        Attr("form", "str", "absorbed", choices=("naive", "absorbed"), doc="order of the products"),
        Attr("scale", "float", doc="multiplies the score; 1/sqrt(N + R)"),
        Attr("window", "int", 0, doc="attended keys, the current one included; 0 = all"),
        Attr("softcap", "float", 0.0, doc="bound of the logits; 0 = none"),
        Attr("block", "int", 1, doc="with recent: tokens of a block"),
        Attr("keep", "int", 0, doc="with recent: recent tokens before the open block"),
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [B, H, T, V] in the element type of q_nope."""
        q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index, parents, start, recent, recent_index = types
        check_rank("mla", "q_nope", q_nope, 4)
        check_rank("mla", "q_rope", q_rope, 4)
        check_rank("mla", "latent", latent, 3)
        check_rank("mla", "w_v", w_v, 3)
        batch, heads, tokens, nope = q_nope.shape
        slots, width = latent.shape[1], latent.shape[2]
        turned = q_rope.shape[3]
        check_shape("mla", "q_rope", q_rope, batch, heads, tokens, turned)
        check_shape("mla", "latent", latent, batch, slots, width)
        check_shape("mla", "rope_k", rope_k, batch, slots, turned)
        check_shape("mla", "w_k", w_k, heads, nope, width)
        check_shape("mla", "w_v", w_v, heads, w_v.shape[1], width)
        index = {"q_index": q_index, "k_index": k_index, "parents": parents, "start": start}
        check_index("mla", batch, tokens, slots, index)
        if attrs["window"] < 0 or attrs["softcap"] < 0:
            raise ShapeError("mla: window and softcap must not be negative")
        if (recent is None) != (recent_index is None) or (recent is not None and parents is not None):
            raise ShapeError("mla: recent latents come with their indices, and without a token tree")
        if recent is not None:
            check_shape("mla", "recent", recent, batch, recent.shape[1], width)
            check_shape("mla", "recent_index", recent_index, batch, recent.shape[1])
        if attrs["keep"] < 0 or attrs["block"] < 1:
            raise ShapeError("mla: keep is not negative, and a block holds a token")
        return TensorType(plain(q_nope), (batch, heads, tokens, w_v.shape[1]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """In the order of ``form``."""
        q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index, parents, start, recent, recent_index = arrays
        seen = visible_keys(q_index, k_index, attrs["window"], parents, start)
        values = np.swapaxes(w_v, -1, -2)
        if recent is not None:
            fresh = by_slot(recent, places(recent_index, k_index))
            is_recent = recent_at(q_index, k_index, attrs["block"], attrs["keep"])[:, None, None]
            q = np.matmul(q_nope, w_k)
            scores = select(is_recent, products(q, fresh[:, None]), products(q, latent[:, None]))
            scores = scores + products(q_rope, rope_k[:, None])
            weights, total = shares(scores, seen, attrs["scale"], attrs["softcap"])
            old = sums(weights * ~is_recent, latent[:, None])
            return np.matmul((old + sums(weights * is_recent, fresh[:, None])) / total, values)
        if attrs["form"] == "naive":
            keys = np.matmul(latent[:, None], np.swapaxes(w_k, -1, -2))
            shared = np.broadcast_to(rope_k[:, None], (*keys.shape[:3], rope_k.shape[-1]))
            q, k = np.concatenate([q_nope, q_rope], axis=-1), np.concatenate([keys, shared], axis=-1)
            return attend(q, k, np.matmul(latent[:, None], values), seen, attrs["scale"], attrs["softcap"])
        q = np.concatenate([np.matmul(q_nope, w_k), q_rope], axis=-1)
        k = np.concatenate([latent, rope_k], axis=-1)[:, None]
        mixed = attend(q, k, latent[:, None], seen, attrs["scale"], attrs["softcap"])
        return np.matmul(mixed, values)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """``attention`` between the products, in the order of ``form``."""
        q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index, parents, start, recent, recent_index = values
        element = plain(q_nope.type)
        q_nope, q_rope, latent, rope_k, w_k, w_v = (
            as_element(b, x, element) for x in (q_nope, q_rope, latent, rope_k, w_k, w_v)
        )
        batch, heads = q_nope.type.shape[:2]
        slots, width = latent.type.shape[1], latent.type.shape[2]
        turned = rope_k.type.shape[2]
        common = {k: attrs[k] for k in ("scale", "window", "softcap")}
        latents = b.reshape(latent, batch, 1, slots, width)
        turned_k = b.reshape(rope_k, batch, 1, slots, turned)
        if recent is not None:
            place = decompose_places(b, recent_index, k_index)
            fresh = decompose_by_slot(b, as_element(b, recent, element), place, slots)
            fresh = b.reshape(fresh, batch, 1, slots, width)
            tokens = q_index.type.shape[1]
            is_recent = decompose_recent(b, q_index, k_index, attrs["block"], attrs["keep"])
            is_recent = b.reshape(is_recent, batch, 1, 1, tokens, slots)
            q = b.op("matmul", q_nope, w_k)
            scores = b.op("where", is_recent, decompose_products(b, q, fresh), decompose_products(b, q, latents))
            scores = b.op("add", scores, decompose_products(b, q_rope, turned_k))
            seen = decompose_visible(b, q_index, k_index, attrs["window"], None, None)
            weights, total = decompose_shares(b, scores, seen, attrs["scale"], attrs["softcap"], None)
            zero = scalar(b, 0.0, weights)
            old = decompose_values(b, b.op("where", is_recent, zero, weights), latents)
            new = decompose_values(b, b.op("where", is_recent, weights, zero), fresh)
            return b.op("matmul", b.op("div", b.op("add", old, new), total), w_v, tb=True)
        if attrs["form"] == "naive":
            keys = b.op("matmul", latents, w_k, tb=True)
            shared = b.op("broadcast", turned_k, shape=(batch, heads, slots, turned))
            k = b.op("concat", keys, shared, axis=3)
            q = b.op("concat", q_nope, q_rope, axis=3)
            v = b.op("matmul", latents, w_v, tb=True)
            return b.op("attention", q, k, v, q_index, k_index, None, parents, start, **common)
        q = b.op("concat", b.op("matmul", q_nope, w_k), q_rope, axis=3)
        k = b.op("concat", latents, turned_k, axis=3)
        mixed = b.op("attention", q, k, latents, q_index, k_index, None, parents, start, **common)
        return b.op("matmul", mixed, w_v, tb=True)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """Of the products in the order of ``form``, masked keys included."""
        q_nope, q_rope, latent, _, _, w_v = types[:6]
        batch, heads, tokens, nope = q_nope.shape
        slots, width = latent.shape[1], latent.shape[2]
        turned, value = q_rope.shape[3], w_v.shape[1]
        if attrs["form"] == "naive":
            expand = 2 * batch * heads * slots * width * (nope + value)
            return expand + 2 * batch * heads * tokens * slots * (nope + turned + value)
        absorb = 2 * batch * heads * tokens * width * (nope + value)
        return absorb + 2 * batch * heads * tokens * slots * (width + turned + width)
