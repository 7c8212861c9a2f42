"""Products of matrices, convolutions, pools and fused attention, summed in f32.

The weights of ``linear`` and of a convolution of one element are read some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.ops.reduction import softmax

__all__ = ["TABLE"]

Array = NDArray[Any]
Handler = Callable[[Call], Any]


def _rows_product(c: Call, x: Array) -> Array:
    """Return x[..., K] times the transpose of ``weight`` [N, K, 1...]."""
    stored = c.stored("weight")
    if stored is None:
        weight = c("weight")
        return x @ weight.reshape(weight.shape[0], -1).T
    found = np.empty((*x.shape[:-1], stored.shape[0]), x.dtype)
    for a in range(0, stored.shape[0], stored.step()):
        b = min(a + stored.step(), stored.shape[0])
        found[..., a:b] = x @ c.working(stored.rows(a, b)).reshape(b - a, -1).T
    return found


def _linear(c: Call) -> Array:
    x = c("x")
    found = _rows_product(c, x).astype(x.dtype, copy=False)
    return found + c("bias") if c.has("bias") else found


def _matmul(c: Call) -> Array:
    x, y = c("x"), c("y")
    if c.flag("transpose_x"):
        x = np.swapaxes(x, -1, -2)
    if c.flag("transpose_y"):
        y = np.swapaxes(y, -1, -2)
    return np.matmul(x, y)


def _einsum(c: Call) -> Array:
    return np.einsum(c.text("equation").replace(" ", ""), *c.values("values", work=True), optimize=True)


def _attention(c: Call) -> Array:
    q, k, v = c("query"), c("key"), c("value")
    score = np.matmul(q, np.swapaxes(k, -1, -2)) / math.sqrt(q.shape[-1])
    if c.has("attn_mask"):
        mask = c("attn_mask")
        score = np.where(mask, score, -math.inf) if mask.dtype == np.bool_ else score + mask
    wide = score.astype(np.float64) if c.raw("query").dtype == np.float32 else score
    return np.matmul(softmax(wide, -1).astype(v.dtype), v)


def _padding(c: Call, sizes: tuple[int, ...], kernel: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """Return how many elements are put before and behind each spatial dim."""
    kind, rank = c.text("pad_type", "valid"), len(sizes)
    if kind == "custom":
        given = c.ints("pad") if c.has("pad") else [0] * 2 * rank
        return [(given[2 * i], given[2 * i + 1]) for i in range(rank)]
    if kind == "valid":
        return [(0, 0)] * rank
    if kind not in ("same", "same_lower"):
        raise ValueError(f"no pad_type '{kind}'")
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    return [(t - t // 2, t // 2) if kind == "same_lower" else (t // 2, t - t // 2) for t in total]


def _windows(x: Array, kernel: list[int], strides: list[int], dilations: list[int]) -> Array:
    """Return [N, C, *out, *kernel]."""
    rank = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(2, 2 + rank)))
    return seen[(slice(None), slice(None), *(slice(None, None, s) for s in strides),
                 *(slice(None, None, d) for d in dilations))]


def _conv(c: Call) -> Array:
    x, groups = c("x"), c.whole("groups", 1)
    stored = c.stored("weight")
    shape = stored.shape if stored is not None else c.raw("weight").shape
    rank = len(shape) - 2
    strides = c.ints("strides") if c.has("strides") else [1] * rank
    dilations = c.ints("dilations") if c.has("dilations") else [1] * rank
    kernel = list(shape[2:])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _padding(c, x.shape[2:], reach, strides)
    if all(k == s == 1 for k, s in zip(kernel, strides, strict=True)) and groups == 1 and not any(map(sum, pads)):
        found = np.moveaxis(_rows_product(c, np.moveaxis(x, 1, -1)), -1, 1)
    else:
        weight = c("weight")
        seen = _windows(np.pad(x, [(0, 0), (0, 0), *pads]), kernel, strides, dilations)
        out = seen.shape[2 : 2 + rank]
        seen = seen.reshape(seen.shape[0], groups, shape[1], *out, *kernel)
        seen = np.moveaxis(seen, 2, 2 + rank)  # [N, G, *out, C / G, *kernel]
        flat = seen.reshape(*seen.shape[: 2 + rank], -1)
        each = weight.reshape(groups, shape[0] // groups, -1)
        made = np.stack([flat[:, g] @ each[g].T for g in range(groups)], 1)  # [N, G, *out, O / G]
        found = np.moveaxis(made, -1, 2).reshape(x.shape[0], shape[0], *out)
    if c.has("bias"):
        found = found + c("bias").reshape((1, -1, *(1,) * rank))
    return found.astype(x.dtype, copy=False)


def _conv_transpose(c: Call) -> Array:
    x, weight, groups = c("x"), c("weight"), c.whole("groups", 1)
    rank = weight.ndim - 2
    strides = c.ints("strides") if c.has("strides") else [1] * rank
    dilations = c.ints("dilations") if c.has("dilations") else [1] * rank
    kernel = weight.shape[2:]
    if c.text("pad_type", "valid") not in ("valid", "custom"):
        raise ValueError("conv_transpose with pad_type 'same' is not known")
    n, out_channels = x.shape[0], weight.shape[1] * groups
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [(d - 1) * s + r for d, s, r in zip(x.shape[2:], strides, reach, strict=True)]
    pad = c.ints("pad") if c.has("pad") and c.text("pad_type", "valid") == "custom" else [0] * 2 * rank
    wanted = c.ints("output_shape")[2:] if c.has("output_shape") else [
        d - pad[2 * i] - pad[2 * i + 1] for i, d in enumerate(sizes)]
    room = [max(d, pad[2 * i] + wanted[i]) for i, d in enumerate(sizes)]
    found = np.zeros((n, out_channels, *room), x.dtype)
    per_in, per_out = x.shape[1] // groups, weight.shape[1]
    for g in range(groups):
        part, each = x[:, g * per_in : (g + 1) * per_in], weight[g * per_in : (g + 1) * per_in]
        for at in np.ndindex(*kernel):
            made = np.einsum("nc...,co->no...", part, each[(slice(None), slice(None), *at)])
            where = tuple(
                slice(k * dl, k * dl + (d - 1) * s + 1, s)
                for k, dl, d, s in zip(at, dilations, x.shape[2:], strides, strict=True)
            )
            found[(slice(None), slice(g * per_out, (g + 1) * per_out), *where)] += made
    found = found[(slice(None), slice(None), *(slice(pad[2 * i], pad[2 * i] + wanted[i]) for i in range(rank)))]
    return found + c("bias").reshape((1, -1, *(1,) * rank)) if c.has("bias") else found


def _pool(kind: str) -> Handler:
    def handler(c: Call) -> Array:
        x, kernel = c("x"), c.ints("kernel_sizes")
        rank = len(kernel)
        strides = c.ints("strides") if c.has("strides") else [1] * rank
        pads = _padding(c, x.shape[2:], kernel, strides)
        if c.flag("ceil_mode"):
            # One more window where a part of one is left over, if it begins inside what is padded before it.
            def more(i: int) -> int:
                low, high = pads[i]
                size = x.shape[2 + i] + low + high
                windows = -(-(size - kernel[i]) // strides[i]) + 1
                windows -= (windows - 1) * strides[i] >= x.shape[2 + i] + low
                return max(0, (windows - 1) * strides[i] + kernel[i] - size)
            extra = [more(i) for i in range(rank)]
        else:
            extra = [0] * rank
        filler = -np.inf if kind == "max" else 0.0
        widths = [(0, 0), (0, 0), *((a, b + e) for (a, b), e in zip(pads, extra, strict=True))]
        seen = _windows(np.pad(x, widths, constant_values=filler), kernel, strides, [1] * rank)
        axes = tuple(range(2 + rank, 2 + 2 * rank))
        if kind == "max":
            return seen.max(axes)
        if kind == "l2":
            return np.sqrt((seen * seen).sum(axes))
        ones = np.ones((1, 1, *x.shape[2:]), np.float32)
        if not c.flag("exclude_padding_from_average"):
            ones = np.pad(ones, [(0, 0), (0, 0), *pads], constant_values=1.0)
            ones = np.pad(ones, [(0, 0), (0, 0), *((0, e) for e in extra)])
        else:
            ones = np.pad(ones, widths)
        return seen.sum(axes) / _windows(ones, kernel, strides, [1] * rank).sum(axes)

    return handler


TABLE: Mapping[str, Handler] = {
    "linear": _linear, "matmul": _matmul, "einsum": _einsum, "scaled_dot_product_attention": _attention,
    "conv": _conv, "conv_transpose": _conv_transpose,
    "max_pool": _pool("max"), "avg_pool": _pool("avg"), "l2_pool": _pool("l2"),
}
