"""Core ops that move elements without changing them, and iota."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.dims import Dim, product
from omnic.ir.op import Array, Attr, In, Op, ShapeError, register
from omnic.ir.ops.elementwise import common_element
from omnic.ir.ops.reduce import check_axis
from omnic.ir.types import DType, ElementType, TensorType

__all__: list[str] = []


def _replaced(x: TensorType, axis: int, dim: Dim) -> TensorType:
    """Return the decoded type of ``x`` with one dim replaced."""
    return TensorType(x.decoded.element, (*x.shape[:axis], dim, *x.shape[axis + 1 :]))


@register
class Reshape(Op):
    """``y`` = the elements of x in row-major order under ``shape``."""

    name = "reshape"
    inputs = (In("x", "any"),)
    attrs = (Attr("shape", "dims"),)

    def infer(self, x: TensorType, *, shape: tuple[Dim, ...], **attrs: Any) -> TensorType:
        result = TensorType(x.decoded.element, shape)
        if result.size != x.size:
            raise ShapeError(f"reshape of {x} to [{', '.join(str(d) for d in shape)}] changes the number of elements "
                             f"from {x.size} to {product(shape)}")
        return result

    def reference(self, x: Array, *, shape: tuple[int, ...], **attrs: Any) -> Array:
        return x.reshape(shape)


@register
class Transpose(Op):
    """``y``: dim i of y is dim ``perm[i]`` of x."""

    name = "transpose"
    inputs = (In("x", "any"),)
    attrs = (Attr("perm", "ints"),)

    def infer(self, x: TensorType, *, perm: tuple[int, ...], **attrs: Any) -> TensorType:
        if sorted(perm) != list(range(x.rank)):
            raise ShapeError(f"transpose: {perm} does not order the {x.rank} dims of {x}")
        return TensorType(x.decoded.element, tuple(x.shape[p] for p in perm))

    def reference(self, x: Array, *, perm: tuple[int, ...], **attrs: Any) -> Array:
        return np.transpose(x, perm)


@register
class Broadcast(Op):
    """``y`` = x repeated to ``shape`` by numpy's rule: leading dims are added, dims of 1 are repeated."""

    name = "broadcast"
    inputs = (In("x", "any"),)
    attrs = (Attr("shape", "dims"),)

    def infer(self, x: TensorType, *, shape: tuple[Dim, ...], **attrs: Any) -> TensorType:
        tail = shape[len(shape) - x.rank :] if x.rank else ()
        if x.rank > len(shape) or any(a not in (1, b) for a, b in zip(x.shape, tail, strict=True)):
            raise ShapeError(f"broadcast: {x} does not fill [{', '.join(str(d) for d in shape)}]")
        return TensorType(x.decoded.element, shape)

    def reference(self, x: Array, *, shape: tuple[int, ...], **attrs: Any) -> Array:
        return np.broadcast_to(x, shape)


@register
class Slice(Op):
    """``y`` = x[start:stop] along ``axis``; start and stop are dims with 0 <= start <= stop <= size."""

    name = "slice"
    inputs = (In("x", "any"),)
    attrs = (Attr("axis", "int"), Attr("start", "dims"), Attr("stop", "dims"))

    def infer(self, x: TensorType, *, axis: int, start: tuple[Dim, ...], stop: tuple[Dim, ...],
              **attrs: Any) -> TensorType:
        at = check_axis("slice", axis, x)
        if len(start) != 1 or len(stop) != 1:
            raise ShapeError("slice: start and stop are one dim each")
        size, first, last = x.shape[at], start[0], stop[0]
        if isinstance(first, int) and isinstance(last, int) and not 0 <= first <= last:
            raise ShapeError(f"slice: {first}..{last} is not a range")
        if isinstance(size, int) and isinstance(last, int) and last > size:
            raise ShapeError(f"slice: stop {last} is beyond the {size} of dim {axis} of {x}")
        return _replaced(x, at, last - first)

    def reference(self, x: Array, *, axis: int, start: tuple[int, ...], stop: tuple[int, ...], **attrs: Any) -> Array:
        if not 0 <= start[0] <= stop[0] <= x.shape[axis]:
            raise ShapeError(f"slice: {start[0]}..{stop[0]} is not within the {x.shape[axis]} of dim {axis}")
        index: list[slice] = [slice(None)] * x.ndim
        index[axis] = slice(start[0], stop[0])
        return x[tuple(index)]


@register
class Concat(Op):
    """``y`` = the operands one after the other along ``axis``; their other dims are equal."""

    name = "concat"
    inputs = (In("xs", "any", variadic=True),)
    attrs = (Attr("axis", "int"),)

    def infer(self, xs: list[TensorType], *, axis: int, **attrs: Any) -> TensorType:
        if not xs:
            raise ShapeError("concat needs at least one operand")
        at = check_axis("concat", axis, xs[0])
        total: Dim = 0
        for x in xs:
            if x.rank != xs[0].rank or _replaced(x, at, 0).shape != _replaced(xs[0], at, 0).shape:
                raise ShapeError(f"concat: {x} and {xs[0]} differ in a dim other than {axis}")
            total = total + x.shape[at]
        return TensorType(common_element("concat", *xs), _replaced(xs[0], at, total).shape)

    def reference(self, xs: list[Array], *, axis: int, **attrs: Any) -> Array:
        return np.concatenate(xs, axis=axis)


@register
class Split(Op):
    """``y_0, y_1, ...`` = consecutive pieces of x along ``axis`` with the given ``sizes``, which sum to its size."""

    name = "split"
    inputs = (In("x", "any"),)
    attrs = (Attr("axis", "int"), Attr("sizes", "dims"))

    def infer(self, x: TensorType, *, axis: int, sizes: tuple[Dim, ...], **attrs: Any) -> tuple[TensorType, ...]:
        at = check_axis("split", axis, x)
        total: Dim = 0
        for size in sizes:
            total = total + size
        if not sizes or total != x.shape[at]:
            raise ShapeError(f"split: the sizes {', '.join(str(s) for s in sizes)} sum to {total}, dim {axis} of {x} "
                             f"has {x.shape[at]}")
        return tuple(_replaced(x, at, size) for size in sizes)

    def reference(self, x: Array, *, axis: int, sizes: tuple[int, ...], **attrs: Any) -> tuple[Array, ...]:
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


@register
class Pad(Op):
    """``y`` = x with ``before`` and ``after`` elements of ``value`` put around it along ``axis``."""

    name = "pad"
    inputs = (In("x", "number"),)
    attrs = (Attr("axis", "int"), Attr("before", "int", 0), Attr("after", "int", 0), Attr("value", "float", 0.0))

    def infer(self, x: TensorType, *, axis: int, before: int, after: int, value: float, **attrs: Any) -> TensorType:
        at = check_axis("pad", axis, x)
        if before < 0 or after < 0:
            raise ShapeError(f"pad: {before} before and {after} after must not be negative")
        return _replaced(x, at, x.shape[at] + (before + after))

    def reference(self, x: Array, *, axis: int, before: int, after: int, value: float, **attrs: Any) -> Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (before, after)
        return np.pad(x, width, constant_values=np.asarray(value).astype(x.dtype))


@register
class Iota(Op):
    """``y`` = 0, 1, ..., size - 1."""

    name = "iota"
    attrs = (Attr("size", "dims"), Attr("type", "element", DType.I64))

    def infer(self, *, size: tuple[Dim, ...], type: ElementType, **attrs: Any) -> TensorType:
        if len(size) != 1:
            raise ShapeError("iota: size is one dim")
        if not isinstance(type, DType) or type == DType.BOOL:
            raise ShapeError(f"iota of {type}: the type is a number type")
        return TensorType(type, size)

    def reference(self, *, size: tuple[int, ...], type: DType, **attrs: Any) -> Array:
        return np.arange(size[0]).astype(np.float64 if type.is_float else type.numpy)
