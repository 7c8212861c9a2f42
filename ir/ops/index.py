"""Core ops that read or write at computed places, and the ones that order elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, Op, ShapeError, register
from omnic.ir.ops.elementwise import common_element
from omnic.ir.ops.reduce import check_axis
from omnic.ir.types import DType, TensorType

__all__ = ["check_indices", "stable_topk"]


def check_indices(op: str, index: Array, size: int) -> None:
    """Check that every index is in 0..size-1.

    Raises:
        InputError: one is not (negative indices do not count from the end).
    """
    if index.size and (int(index.min()) < 0 or int(index.max()) >= size):
        bad = index[(index < 0) | (index >= size)].flat[0]
        raise InputError(f"{op}: index {bad} is not in 0..{size - 1}")


def _descending(x: Array) -> Array:
    """Return a key whose ascending order is the descending order of ``x``."""
    return -(x.astype(np.int64) if x.dtype.kind == "u" else x)


def stable_topk(x: Array, k: int, axis: int = -1) -> tuple[Array, Array]:
    """Return the ``k`` greatest along ``axis`` and their indices, descending, equals by ascending index."""
    order = np.argsort(_descending(x), axis=axis, kind="stable")
    index = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, index, axis=axis), index.astype(np.int64)


def _aligned(op: str, x: TensorType, index: TensorType, axis: int) -> tuple[Dim, ...]:
    """Return the shape of an along-axis read of ``x`` at ``index``."""
    if x.rank != index.rank:
        raise ShapeError(f"{op}: {x} and the index {index} differ in rank")
    at = check_axis(op, axis, x)
    out: list[Dim] = []
    for place, (have, want) in enumerate(zip(x.shape, index.shape, strict=True)):
        if place != at and have != want and 1 not in (have, want):
            raise ShapeError(f"{op}: dim {place} of {x} and of the index {index} differ")
        out.append(want if place == at or have == 1 else have)
    return tuple(out)


@register
class Gather(Op):
    """``y[..., i, ...] = x[..., index[..., i, ...], ...]`` along ``axis`` (numpy.take_along_axis); the other dims
    of x and index are equal or 1 and broadcast.  Indices are in 0..size-1.
    """

    name = "gather"
    inputs = (In("x", "any"), In("index", "index"))
    attrs = (Attr("axis", "int"),)

    def infer(self, x: TensorType, index: TensorType, *, axis: int, **attrs: Any) -> TensorType:
        return TensorType(x.decoded.element, _aligned("gather", x, index, axis))

    def reference(self, x: Array, index: Array, *, axis: int, **attrs: Any) -> Array:
        check_indices("gather", index, x.shape[axis])
        return np.take_along_axis(x, index, axis=axis)


@register
class IndexSelect(Op):
    """``y`` = x with dim ``axis`` replaced by the dims of ``index`` (numpy.take): whole slices at the indices."""

    name = "index_select"
    inputs = (In("x", "any"), In("index", "index"))
    attrs = (Attr("axis", "int", 0),)

    def infer(self, x: TensorType, index: TensorType, *, axis: int, **attrs: Any) -> TensorType:
        at = check_axis("index_select", axis, x)
        return TensorType(x.decoded.element, (*x.shape[:at], *index.shape, *x.shape[at + 1 :]))

    def reference(self, x: Array, index: Array, *, axis: int, **attrs: Any) -> Array:
        check_indices("index_select", index, x.shape[axis])
        return np.take(x, index, axis=axis)


@register
class Scatter(Op):
    """``y`` = x with ``updates`` put (or added, repeats included) at ``index`` along ``axis``
    (numpy.put_along_axis).  With reduce ``none`` an index occurs once; the last one wins otherwise.
    """

    name = "scatter"
    inputs = (In("x", "any"), In("index", "index"), In("updates", "any"))
    attrs = (Attr("axis", "int"), Attr("reduce", "str", "none", ("none", "add")))

    def infer(self, x: TensorType, index: TensorType, updates: TensorType, *, axis: int, reduce: str,
              **attrs: Any) -> TensorType:
        at = check_axis("scatter", axis, x)
        fits = index.rank == x.rank and all(index.shape[p] in (1, d) for p, d in enumerate(x.shape) if p != at)
        want = tuple(index.shape[at] if p == at else d for p, d in enumerate(x.shape)) if fits else ()
        if not fits or updates.shape != want:
            raise ShapeError(f"scatter: updates {updates} at index {index} do not fit {x} along dim {axis}")
        common_element("scatter", x, updates)
        if reduce == "add" and x.decoded.dtype == DType.BOOL:
            raise ShapeError("scatter: bools cannot be added")
        return x.decoded

    def reference(self, x: Array, index: Array, updates: Array, *, axis: int, reduce: str, **attrs: Any) -> Array:
        check_indices("scatter", index, x.shape[axis])
        full = np.broadcast_to(index, updates.shape)
        y = x.copy()
        if reduce == "none":
            np.put_along_axis(y, full, updates.astype(y.dtype), axis=axis)
            return y
        places = list(np.ogrid[tuple(slice(0, s) for s in updates.shape)])
        places[axis] = full
        np.add.at(y, tuple(places), updates)
        return y


@register
class TopK(Op):
    """``values, indices`` = the k greatest along ``axis``, value descending; equal values by ascending index."""

    name = "topk"
    inputs = (In("x", "number"),)
    attrs = (Attr("k", "int"), Attr("axis", "int", -1))
    outputs = ("values", "indices")

    def infer(self, x: TensorType, *, k: int, axis: int, **attrs: Any) -> tuple[TensorType, TensorType]:
        at = check_axis("topk", axis, x)
        size = x.shape[at]
        if k < 1 or (isinstance(size, int) and k > size):
            raise ShapeError(f"topk: k = {k} is not in 1..{size}")
        shape = (*x.shape[:at], k, *x.shape[at + 1 :])
        return TensorType(x.decoded.element, shape), TensorType(DType.I64, shape)

    def reference(self, x: Array, *, k: int, axis: int, **attrs: Any) -> tuple[Array, Array]:
        if k > x.shape[axis]:
            raise InputError(f"topk: k = {k} is not in 1..{x.shape[axis]}")
        return stable_topk(x, k, axis)


@register
class Sort(Op):
    """``values, indices``: x in ascending (or ``descending``) order along ``axis``, stable: equals keep their order."""

    name = "sort"
    inputs = (In("x", "number"),)
    attrs = (Attr("axis", "int", -1), Attr("descending", "bool", False))
    outputs = ("values", "indices")

    def infer(self, x: TensorType, *, axis: int, descending: bool, **attrs: Any) -> tuple[TensorType, TensorType]:
        check_axis("sort", axis, x)
        return x.decoded, TensorType(DType.I64, x.shape)

    def reference(self, x: Array, *, axis: int, descending: bool, **attrs: Any) -> tuple[Array, Array]:
        index = np.argsort(_descending(x) if descending else x, axis=axis, kind="stable")
        return np.take_along_axis(x, index, axis=axis), index.astype(np.int64)
