"""Operations that move elements: shapes, slices, joins, pads, generated numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.types import NUMPY

__all__ = ["TABLE", "slices"]

Array = NDArray[Any]
Handler = Callable[[Call], Any]


def slices(c: Call, x: Array) -> tuple[Any, ...]:
    """Return the slice that ``begin``, ``end``, ``stride`` and the masks say: numpy's, per dim."""
    rank = x.ndim
    begin, end = c.ints("begin"), c.ints("end")
    stride = c.ints("stride") if c.has("stride") else [1] * rank
    first, last, squeezed = (c.flags(p, rank) for p in ("begin_mask", "end_mask", "squeeze_mask"))
    found: list[Any] = []
    for i in range(rank):
        if squeezed[i]:
            found.append(0 if first[i] else begin[i])
        else:
            found.append(slice(None if first[i] else begin[i], None if last[i] else end[i], stride[i]))
    return tuple(found)


def _slice_by_size(c: Call) -> Array:
    x, begin, size = c.raw("x"), c.ints("begin"), c.ints("size")
    begin = [b + d if b < 0 else b for b, d in zip(begin, x.shape, strict=True)]
    ends = [d if s == -1 else b + s for b, s, d in zip(begin, size, x.shape, strict=True)]
    if any(b < 0 or e > d for b, e, d in zip(begin, ends, x.shape, strict=True)):
        raise ValueError(f"begin {begin} and size {size} reach beyond the shape {list(x.shape)}")
    return x[tuple(slice(b, e) for b, e in zip(begin, ends, strict=True))]


def _slice_update(c: Call) -> Array:
    x, update = np.array(c("x")), c("update")
    where = slices(c, x)
    if x[where].shape != update.shape:
        raise ValueError(f"the slice has the shape {list(x[where].shape)}, and the update {list(update.shape)}")
    x[where] = update
    return x


def _reshape(c: Call) -> Array:
    x, shape = c.raw("x"), c.ints("shape")
    for i, d in enumerate(shape):
        if d == 0 and x.size:  # counted from the last dim since iOS 17, from the first before
            at = x.ndim - (len(shape) - i) if c.modern else i
            shape[i] = x.shape[at] if 0 <= at < x.ndim else 1
    return x.reshape(shape)


def _squeeze(c: Call) -> Array:
    return np.squeeze(c.raw("x"), tuple(c.ints("axes")) if c.has("axes") else None)


def _concat(c: Call) -> Array:
    values, axis = c.values("values"), c.whole("axis", 0)
    values = [np.atleast_1d(v) for v in values]
    if not c.flag("interleave"):
        return np.concatenate(values, axis)
    joined = np.stack(values, axis % values[0].ndim + 1)
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return joined.reshape(shape)


def _split(c: Call) -> Any:
    x, axis = c.raw("x"), c.whole("axis", 0)
    if c.has("split_sizes"):
        sizes = c.ints("split_sizes")
        if sum(sizes) != x.shape[axis]:
            raise ValueError(f"sizes {sizes} of a dim of {x.shape[axis]}")
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))
    return tuple(np.split(x, c.whole("num_splits", 1), axis))


def _pad(c: Call) -> Array:
    x, amounts, mode = c.raw("x"), c.ints("pad"), c.text("mode", "constant")
    pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        value = c.raw("constant_val").reshape(()) if c.has("constant_val") else 0
        return np.pad(x, pairs, constant_values=value)
    modes: Mapping[str, Any] = {"reflect": "reflect", "replicate": "edge"}
    return np.pad(x, pairs, mode=modes[mode])


def _tile(c: Call) -> Array:
    x, reps = c.raw("x"), c.ints("reps")
    if len(reps) != x.ndim:
        raise ValueError(f"{len(reps)} repeats of {x.ndim} dims")
    return np.tile(x, reps)


def _expand(c: Call) -> Array:
    return np.expand_dims(c.raw("x"), tuple(c.ints("axes")))


def _reverse(c: Call) -> Array:
    return np.flip(c.raw("x"), tuple(c.ints("axes")) if c.has("axes") else None)


def _reverse_sequence(c: Call) -> Array:
    x, seq, batch = np.array(c.raw("x")), c.whole("seq_axis", 0), c.whole("batch_axis", 0)
    moved = np.moveaxis(x, (batch, seq), (0, 1))
    for row, length in zip(moved, c.ints("lengths"), strict=True):
        row[:length] = row[:length][::-1].copy()
    return x


def _range(c: Call) -> Array:
    start, end, step = (c(p).reshape(()) for p in ("start", "end", "step"))
    return np.arange(start.item(), end.item(), step.item()).astype(start.dtype)


def _fill(c: Call) -> Array:
    value = c.raw("value").reshape(()) if c.has("value") else np.float32(0)
    return np.full(c.ints("shape"), value)


def _fill_like(c: Call) -> Array:
    value = c.raw("value").reshape(()) if c.has("value") else np.float32(0)
    return np.full(c.raw("ref_tensor").shape, value)


def _band_part(c: Call) -> Array:
    x, lower, upper = c.raw("x"), c.whole("lower", -1), c.whole("upper", -1)
    row, column = np.indices(x.shape[-2:])
    kept = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))


def _one_hot(c: Call) -> Array:
    indices, size, axis = c.raw("indices"), c.whole("one_hot_vector_size", 1), c.whole("axis", -1)
    on, off = (c.raw(p).reshape(()) if c.has(p) else np.array(v, NUMPY[c.type.word])
               for p, v in (("on_value", 1), ("off_value", 0)))
    hot = indices[..., None] == np.arange(size)
    return np.moveaxis(np.where(hot, on, off), -1, axis % hot.ndim)


def _flatten(c: Call) -> Array:
    x = c.raw("x")
    lead = int(np.prod(x.shape[: c.whole("axis", 1)], dtype=np.int64))
    return x.reshape(lead, -1 if x.size else 0)


def _blocks_to_space(c: Call, parameter: str, depth_first: bool) -> Array:
    """Depth to space (the block's position before the channel) and pixel shuffle (behind it)."""
    x, r = c.raw("x"), c.whole(parameter, 1)
    n, depth, h, w = x.shape
    if depth_first:
        moved = x.reshape(n, r, r, depth // r**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, depth // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, depth // r**2, h * r, w * r)


def _space_to_blocks(c: Call, parameter: str, depth_first: bool) -> Array:
    x, r = c.raw("x"), c.whole(parameter, 1)
    n, depth, h, w = x.shape
    cut = x.reshape(n, depth, h // r, r, w // r, r)
    moved = cut.transpose(0, 3, 5, 1, 2, 4) if depth_first else cut.transpose(0, 1, 3, 5, 2, 4)
    return moved.reshape(n, depth * r * r, h // r, w // r)


def _windows(c: Call) -> Array:
    x, axis, size, stride = c.raw("x"), c.whole("axis", 0) % c.raw("x").ndim, c.whole("size", 1), c.whole("stride", 1)
    seen = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    taken = np.take(seen, np.arange(0, seen.shape[axis], stride), axis)
    return np.moveaxis(taken, -1, axis + 1)


def _nearest(c: Call) -> Array:
    x = c.raw("x")
    factors = [c.raw(f"scale_factor_{d}").reshape(()) if c.has(f"scale_factor_{d}") else 1 for d in ("height", "width")]
    if any(float(f) != int(f) for f in factors):
        raise ValueError("a scale that is no whole number")
    return np.repeat(np.repeat(x, int(factors[0]), -2), int(factors[1]), -1)


def _crop(c: Call) -> Array:
    x, rows, columns = c.raw("x"), c.ints("crop_height"), c.ints("crop_width")
    return x[..., rows[0] : x.shape[-2] - rows[1], columns[0] : x.shape[-1] - columns[1]]


def _shape(c: Call) -> Array:
    return np.array(c.raw("x").shape, NUMPY[c.type.word])


TABLE: Mapping[str, Handler] = {
    "slice_by_index": lambda c: c.raw("x")[slices(c, c.raw("x"))], "slice_by_size": _slice_by_size,
    "slice_update": _slice_update, "reshape": _reshape, "squeeze": _squeeze, "expand_dims": _expand,
    "transpose": lambda c: c.raw("x").transpose(c.ints("perm")), "concat": _concat, "split": _split,
    "stack": lambda c: np.stack(c.values("values"), c.whole("axis", 0)), "tile": _tile, "pad": _pad,
    "reverse": _reverse, "reverse_sequence": _reverse_sequence, "shape": _shape, "range_1d": _range, "fill": _fill,
    "fill_like": _fill_like, "band_part": _band_part, "one_hot": _one_hot, "flatten2d": _flatten,
    "non_zero": lambda c: np.argwhere(c.raw("x")).astype(np.int32),
    "depth_to_space": lambda c: _blocks_to_space(c, "block_size", True),
    "pixel_shuffle": lambda c: _blocks_to_space(c, "upscale_factor", False),
    "space_to_depth": lambda c: _space_to_blocks(c, "block_size", True),
    "pixel_unshuffle": lambda c: _space_to_blocks(c, "downscale_factor", False),
    "sliding_windows": _windows, "upsample_nearest_neighbor": _nearest, "crop": _crop,
}
