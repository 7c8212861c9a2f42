"""Core ops that reduce or scan along dims: sum, max, mean, argmax, cumsum, softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, Op, ShapeError, register
from omnic.ir.types import DType, TensorType

__all__ = ["check_axis", "softmax"]


def check_axis(op: str, axis: int, x: TensorType) -> int:
    """Return ``axis`` counted from the front.

    Raises:
        ShapeError: ``x`` has no such dim.
    """
    if not -x.rank <= axis < x.rank:
        raise ShapeError(f"{op}: axis {axis} is not a dim of {x}")
    return axis % x.rank


def softmax(x: Array, axis: int = -1) -> Array:
    """Return the softmax of ``x`` along ``axis``; -inf entries get 0, a row of nothing but -inf gets 0 everywhere."""
    top: Array = np.max(x, axis=axis, keepdims=True)
    finite = np.where(np.equal(top, -np.inf), np.zeros_like(top), top)
    power: Array = np.asarray(x - finite)
    np.exp(power, out=power)
    total: Array = np.sum(power, axis=axis, keepdims=True)
    divisor = np.where(np.equal(total, 0), np.ones_like(total), total)
    return np.divide(power, divisor, out=power)


class _Reduce(Op):
    inputs = (In("x", "number"),)
    attrs = (Attr("axes", "ints"), Attr("keepdims", "bool", False))

    def infer(self, x: TensorType, *, axes: tuple[int, ...], keepdims: bool, **attrs: Any) -> TensorType:
        found = [check_axis(self.name, a, x) for a in axes]
        if not found or len(set(found)) != len(found):
            raise ShapeError(f"{self.name}: axes {axes} must name at least one dim, each once")
        shape: list[Dim] = []
        for index, dim in enumerate(x.shape):
            if index not in found:
                shape.append(dim)
            elif keepdims:
                shape.append(1)
        return TensorType(x.decoded.element, tuple(shape))


@register
class Sum(_Reduce):
    """``y`` = the sum over ``axes``."""

    name = "sum"

    def reference(self, x: Array, *, axes: tuple[int, ...], keepdims: bool, **attrs: Any) -> Array:
        return np.asarray(np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype))


@register
class Max(_Reduce):
    """``y`` = the greatest along ``axes``; NaN if one is."""

    name = "max"

    def reference(self, x: Array, *, axes: tuple[int, ...], keepdims: bool, **attrs: Any) -> Array:
        return np.asarray(np.max(x, axis=axes, keepdims=keepdims))


@register
class Mean(_Reduce):
    """``y`` = the mean over ``axes``."""

    name = "mean"
    inputs = (In("x"),)

    def reference(self, x: Array, *, axes: tuple[int, ...], keepdims: bool, **attrs: Any) -> Array:
        return np.asarray(np.mean(x, axis=axes, keepdims=keepdims, dtype=x.dtype))


@register
class ArgMax(Op):
    """``y`` = the index (i64) of the greatest along ``axis``, which is dropped; the lowest index of equals."""

    name = "argmax"
    inputs = (In("x", "number"),)
    attrs = (Attr("axis", "int"),)

    def infer(self, x: TensorType, *, axis: int, **attrs: Any) -> TensorType:
        at = check_axis("argmax", axis, x)
        return TensorType(DType.I64, x.shape[:at] + x.shape[at + 1 :])

    def reference(self, x: Array, *, axis: int, **attrs: Any) -> Array:
        return np.asarray(np.argmax(x, axis=axis), np.int64)


@register
class CumSum(Op):
    """``y[i] = x[0] + ... + x[i]`` along ``axis``."""

    name = "cumsum"
    inputs = (In("x", "number"),)
    attrs = (Attr("axis", "int"),)

    def infer(self, x: TensorType, *, axis: int, **attrs: Any) -> TensorType:
        check_axis("cumsum", axis, x)
        return x.decoded

    def reference(self, x: Array, *, axis: int, **attrs: Any) -> Array:
        return np.cumsum(x, axis=axis, dtype=x.dtype)


@register
class Softmax(Op):
    """``y = e ** (x - m) / sum(e ** (x - m))`` along ``axis``, m the greatest.  Entries of -inf give 0; a row of
    nothing but -inf gives 0 everywhere (not NaN).
    """

    name = "softmax"
    inputs = (In("x"),)
    attrs = (Attr("axis", "int", -1),)

    def infer(self, x: TensorType, *, axis: int, **attrs: Any) -> TensorType:
        check_axis("softmax", axis, x)
        return x.decoded

    def reference(self, x: Array, *, axis: int, **attrs: Any) -> Array:
        return softmax(x, axis)
