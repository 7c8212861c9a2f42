"""Recurrences along time, and pooling of blocks of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim, floordiv
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, as_element, check_fits, check_rank, check_shape, plain, scalar, select
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

_SNAPSHOTS = Attr("snapshots", "bool", False, doc="also return the state after each token")


@register
class ShortConv(Composite):
    """y[t] = bias + sum_j w[:, j] * z[t + j] for j in 0..K-1, z = the state's K-1 inputs followed by x.

    A causal depthwise convolution.  new_state = the last K-1 inputs after length[b] tokens; with ``snapshots``,
    steps[:, t] = the state after token t, which is what a rollback to it needs.
    """

    name = "short_conv"
    category = "recurrent"
    source = "arXiv:2312.00752 (Mamba), section 3.4"
    inputs = (
        In("x", "float", doc="[B, T, C]"),
        In("w", "float", doc="[C, K]"),
        In("bias", "float", optional=True, doc="[C]"),
        In("state", "float", doc="[B, K-1, C], the inputs before this call (0 at the start)"),
        In("length", "index", optional=True, doc="[B] valid tokens; T when absent"),
    )
    attrs = (_SNAPSHOTS,)
    outputs = ("y", "new_state", "steps")
    updates = {"state": "new_state"}
    updates = {"state": "new_state"}

    def infer(self, *types: Any, **attrs: Any) -> tuple[TensorType, ...]:
        """Types of y [B, T, C], new_state [B, K-1, C], and steps [B, T, K-1, C] with ``snapshots``."""
        x, w, bias, state, length = types
        check_rank("short_conv", "x", x, 3)
        check_rank("short_conv", "w", w, 2)
        batch, tokens, channels = x.shape
        size = w.shape[1]
        if not isinstance(size, int) or size < 2:
            raise ShapeError(f"short_conv: a kernel of {size} has no past")
        check_fits("short_conv", "channels of x and w", channels, w.shape[0])
        check_shape("short_conv", "state", state, batch, size - 1, channels)
        if bias is not None:
            check_shape("short_conv", "bias", bias, channels)
        if length is not None:
            check_shape("short_conv", "length", length, batch)
        found = (x.with_element(plain(x)), state.with_element(plain(x)))
        return (*found, TensorType(plain(x), (batch, tokens, size - 1, channels))) if attrs["snapshots"] else found

    def reference(self, *arrays: Any, **attrs: Any) -> tuple[Array, ...]:
        """A sum of K shifted copies."""
        x, w, bias, state, length = arrays
        tokens: int = x.shape[1]
        past: int = w.shape[1] - 1
        z = np.concatenate([state, x], axis=1)
        y = np.zeros_like(x)
        for j in range(past + 1):
            y += z[:, j : j + tokens] * w[:, j]
        if bias is not None:
            y = y + bias
        ends = np.full(x.shape[0], tokens) if length is None else length
        last = np.take_along_axis(z, np.add(ends[:, None], np.arange(past))[:, :, None], axis=1)
        if not attrs["snapshots"]:
            return y, last
        return y, last, z[:, 1 + np.arange(tokens)[:, None] + np.arange(past)]

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> tuple[Value, ...]:
        """depthwise_conv1d over the state and x, gathers for the states."""
        x, w, bias, state, length = values
        element = plain(x.type)
        x, w, state = (as_element(b, v, element) for v in (x, w, state))
        batch, tokens = x.type.shape[:2]
        past = w.type.shape[1] - 1
        z = b.op("concat", state, x, axis=1)
        y = b.op("depthwise_conv1d", z, w, None if bias is None else as_element(b, bias, element))
        offsets = b.op("iota", size=(past,))
        if length is None:
            last = b.op("slice", z, axis=1, start=(tokens,), stop=(tokens + past,))
        else:
            at = b.op("add", b.reshape(length, batch, 1), b.reshape(offsets, 1, past))
            last = b.op("gather", z, b.reshape(at, batch, past, 1), axis=1)
        if not attrs["snapshots"]:
            return y, last
        after = b.op("add", b.op("iota", size=(tokens,)), b.constant(1, DType.I64))
        at = b.op("add", b.reshape(after, tokens, 1), b.reshape(offsets, 1, past))
        return y, last, b.op("index_select", z, at, axis=1)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * B * T * C * K."""
        x, w = types[:2]
        return 2 * x.shape[0] * x.shape[1] * x.shape[2] * w.shape[1]


@register
class LinearRecurrence(Composite):
    """S[t] = exp(log_decay[t]) * S[t-1] + k[t] v[t]^T, y[t] = S[t]^T q[t], per head; S[-1] = state, S is [K, V].

    log_decay has one number per key channel, or one per head (a last dim of 1), each at most 0.  new_state = S
    after length[b] tokens; with ``snapshots``, steps[:, t] = S[t].  ``form`` names the order of the work, never the
    result: ``step`` is the recurrence itself, for T = 1; ``chunked`` does ``chunk`` tokens at a time as products:
    with G the running sum of log_decay inside a chunk, y = ((q k^T) . exp(G_t - G_s), s <= t) v + (q exp(G)) S.
    """

    name = "linear_recurrence"
    category = "recurrent"
    source = "GLA arXiv:2312.06635, equations 4 to 7"
    inputs = (
        In("q", "float", doc="[B, H, T, K]"),
        In("k", "float", doc="[B, H, T, K]"),
        In("v", "float", doc="[B, H, T, V]"),
        In("log_decay", "float", doc="[B, H, T, K] or [B, H, T, 1]"),
        In("state", "float", doc="[B, H, K, V]"),
        In("length", "index", optional=True, doc="[B] valid tokens; T when absent"),
    )
    attrs = (
        Attr("form", "str", "chunked", choices=("chunked", "step"), doc="order of the work"),
        Attr("chunk", "int", 16, doc="tokens of a chunk"),
        _SNAPSHOTS,
    )
    outputs = ("y", "new_state", "steps")
    updates = {"state": "new_state"}
    updates = {"state": "new_state"}

    def infer(self, *types: Any, **attrs: Any) -> tuple[TensorType, ...]:
        """Types of y [B, H, T, V], new_state [B, H, K, V], and steps [B, T, H, K, V] with ``snapshots``."""
        q, k, v, log_decay, state, length = types
        check_rank("linear_recurrence", "q", q, 4)
        check_rank("linear_recurrence", "v", v, 4)
        check_rank("linear_recurrence", "log_decay", log_decay, 4)
        batch, heads, tokens, width = q.shape
        check_shape("linear_recurrence", "k", k, batch, heads, tokens, width)
        check_shape("linear_recurrence", "v", v, batch, heads, tokens, v.shape[3])
        if log_decay.shape[3] != 1:
            check_shape("linear_recurrence", "log_decay", log_decay, batch, heads, tokens, width)
        check_shape("linear_recurrence", "log_decay", log_decay, batch, heads, tokens, log_decay.shape[3])
        check_shape("linear_recurrence", "state", state, batch, heads, width, v.shape[3])
        if length is not None:
            check_shape("linear_recurrence", "length", length, batch)
        if attrs["form"] == "step" and tokens != 1:
            raise ShapeError(f"linear_recurrence: form step takes one token, got {tokens}")
        if attrs["chunk"] < 1:
            raise ShapeError(f"linear_recurrence: a chunk of {attrs['chunk']} tokens")
        element = plain(q)
        found = (TensorType(element, v.shape), TensorType(element, state.shape))
        if not attrs["snapshots"]:
            return found
        return (*found, TensorType(element, (batch, tokens, heads, width, v.shape[3])))

    def reference(self, *arrays: Any, **attrs: Any) -> tuple[Array, ...]:
        """A loop over chunks."""
        q, k, v, log_decay, state, length = arrays
        tokens: int = q.shape[2]
        decay = np.broadcast_to(log_decay, k.shape)
        if length is not None:
            valid = np.less(np.arange(tokens), length[:, None])[:, None, :, None]
            k, decay = k * valid, decay * valid
        y = np.empty_like(v)
        steps: list[Array] = []
        size = 1 if attrs["form"] == "step" else attrs["chunk"]
        for first in range(0, tokens, size):
            part = slice(first, first + size)
            qc, kc, vc = q[:, :, part], k[:, :, part], v[:, :, part]
            run = np.cumsum(decay[:, :, part], axis=2)
            apart = run[:, :, :, None] - run[:, :, None]
            causal = np.tril(np.ones((qc.shape[2], qc.shape[2]), bool))[:, :, None]
            weighted = np.exp(select(causal, apart, -np.inf)) * kc[:, :, None]
            scores = np.sum(qc[:, :, :, None] * weighted, axis=-1)
            y[:, :, part] = np.matmul(scores, vc) + np.matmul(qc * np.exp(run), state)
            if attrs["snapshots"]:
                grown = np.matmul(np.swapaxes(weighted, -1, -2), vc[:, :, None])
                steps.append(grown + np.exp(run)[..., None] * state[:, :, None])
            end = run[:, :, -1:]
            kept = np.swapaxes(np.exp(end), -1, -2) * state
            state = kept + np.matmul(np.swapaxes(kc * np.exp(end - run), -1, -2), vc)
        if not attrs["snapshots"]:
            return y, state
        return y, state, np.swapaxes(np.concatenate(steps, axis=2), 1, 2)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> tuple[Value, ...]:
        """``step``: the recurrence; ``chunked``: all T tokens as one chunk, so that T may be symbolic."""
        q, k, v, log_decay, state, length = values
        element = plain(q.type)
        q, k, v, decay, state = (as_element(b, x, element) for x in (q, k, v, log_decay, state))
        batch, heads, tokens, width = q.type.shape
        zero = scalar(b, 0.0, q)
        if length is not None:
            valid = b.op("lt", b.reshape(b.op("iota", size=(tokens,)), 1, tokens), b.reshape(length, batch, 1))
            valid = b.reshape(valid, batch, 1, tokens, 1)
            k, decay = b.op("where", valid, k, zero), b.op("where", valid, decay, zero)
        if attrs["form"] == "step":
            kept = b.op("mul", b.op("transpose", b.op("exp", decay), perm=(0, 1, 3, 2)), state)
            after = b.op("add", kept, b.op("matmul", k, v, ta=True))
            y = b.op("matmul", q, after)
            if not attrs["snapshots"]:
                return y, after
            return y, after, b.reshape(after, batch, 1, heads, width, v.type.shape[3])
        return self._whole(b, q, k, v, decay, state, attrs["snapshots"])

    def _whole(
        self, b: FunctionBuilder, q: Value, k: Value, v: Value, decay: Value, state: Value, snapshots: bool
    ) -> tuple[Value, ...]:
        batch, heads, tokens, width = q.type.shape
        zero = scalar(b, 0.0, q)
        channels, values = decay.type.shape[3], v.type.shape[3]
        run = b.op("cumsum", decay, axis=2)
        later = b.reshape(run, batch, heads, tokens, 1, channels)
        earlier = b.reshape(run, batch, heads, 1, tokens, channels)
        index = b.op("iota", size=(tokens,))
        causal = b.op("ge", b.reshape(index, tokens, 1), b.reshape(index, 1, tokens))
        causal = b.reshape(causal, 1, 1, tokens, tokens, 1)
        fade = b.op("exp", b.op("where", causal, b.op("sub", later, earlier), zero))
        fade = b.op("where", causal, fade, zero)
        weighted = b.op("mul", fade, b.reshape(k, batch, heads, 1, tokens, width))
        scores = b.op("sum", b.op("mul", weighted, b.reshape(q, batch, heads, tokens, 1, width)), axes=(4,))
        faded = b.op("exp", run)
        y = b.op("add", b.op("matmul", scores, v), b.op("matmul", b.op("mul", q, faded), state))
        end = b.op("slice", run, axis=2, start=(tokens - 1,), stop=(tokens,))
        kept = b.op("mul", b.op("transpose", b.op("exp", end), perm=(0, 1, 3, 2)), state)
        rest = b.op("mul", k, b.op("exp", b.op("sub", end, run)))
        after = b.op("add", kept, b.op("matmul", rest, v, ta=True))
        if not snapshots:
            return y, after
        grown = b.op("matmul", weighted, b.reshape(v, batch, heads, 1, tokens, values), ta=True)
        faded = b.reshape(faded, batch, heads, tokens, channels, 1)
        kept = b.op("mul", faded, b.reshape(state, batch, heads, 1, width, values))
        return y, after, b.op("transpose", b.op("add", grown, kept), perm=(0, 2, 1, 3, 4))

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """Of the recurrence: 4 * B * H * T * K * V (the update and the read)."""
        q, _, v = types[:3]
        batch, heads, tokens, width = q.shape
        return 4 * batch * heads * tokens * width * v.shape[3]


@register
class PoolBlocks(Composite):
    """y[b, g, n] = sum over the ``page`` keys s of block n of p[s] x[b, g, s]; p = 1/page (the mean), or, with a
    learned query, softmax over the block of query[g] . x[b, g, s].  S // page whole blocks; a tail is left out.
    """

    name = "pool_blocks"
    category = "recurrent"
    source = "mean: arXiv:2502.11089, equation 7 with a mean; query pooling: arXiv:1703.03130"
    inputs = (In("x", "float", doc="[B, G, S, D]"), In("query", "float", optional=True, doc="[G, D]"))
    attrs = (Attr("page", "int", doc="keys of a block"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [B, G, S // page, D]."""
        x, query = types
        check_rank("pool_blocks", "x", x, 4)
        if attrs["page"] < 1:
            raise ShapeError(f"pool_blocks: a block of {attrs['page']} keys")
        batch, groups, keys, width = x.shape
        if query is not None:
            check_shape("pool_blocks", "query", query, groups, width)
        blocks = floordiv(keys, attrs["page"])
        if blocks == 0:
            raise ShapeError(f"pool_blocks: {keys} keys make no block of {attrs['page']}")
        return TensorType(plain(x), (batch, groups, blocks, width))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """All blocks at once."""
        x, query = arrays
        batch, groups, keys, width = x.shape
        blocks = keys // attrs["page"]
        paged = x[:, :, : blocks * attrs["page"]].reshape(batch, groups, blocks, attrs["page"], width)
        if query is None:
            return np.mean(paged, axis=3)
        scores = np.matmul(paged, query[None, :, None, :, None])
        weights = np.exp(scores - np.max(scores, axis=3, keepdims=True))
        return np.sum(paged * (weights / np.sum(weights, axis=3, keepdims=True)), axis=3)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """slice, reshape, mean; or softmax and a weighted sum."""
        x, query = values
        element = plain(x.type)
        x = as_element(b, x, element)
        batch, groups, keys, width = x.type.shape
        blocks = floordiv(keys, attrs["page"])
        used = blocks * attrs["page"]
        whole = x if used == keys else b.op("slice", x, axis=2, start=(0,), stop=(used,))
        paged = b.reshape(whole, batch, groups, blocks, attrs["page"], width)
        if query is None:
            return b.op("mean", paged, axes=(3,))
        asked = b.reshape(as_element(b, query, element), 1, groups, 1, width, 1)
        weights = b.op("softmax", b.op("matmul", paged, asked), axis=3)
        return b.op("sum", b.op("mul", paged, weights), axes=(3,))
