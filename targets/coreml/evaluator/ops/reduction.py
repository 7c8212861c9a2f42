"""Reductions, softmax, norms, running sums and orders along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.types import NUMPY

__all__ = ["TABLE", "softmax"]

Array = NDArray[Any]
Handler = Callable[[Call], Any]


def _wide(c: Call, parameter: str = "x") -> Array:
    """Return an operand in the type that its sums are computed in: f64 for fp32, f32 for fp16, f64 for exact sums."""
    x = c.raw(parameter)
    if c.walk.exact:
        return c.working(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x.astype(np.float32) if x.dtype == np.float16 else x


def _axes(c: Call, rank: int) -> tuple[int, ...]:
    return tuple(a % rank for a in c.ints("axes")) if c.has("axes") else tuple(range(rank))


def _reduce(f: Callable[..., Array]) -> Handler:
    def handler(c: Call) -> Array:
        x = _wide(c)
        made = f(x, axis=_axes(c, x.ndim), keepdims=c.flag("keep_dims"))
        return np.asarray(made).astype(x.dtype)
    return handler


def _log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    summed = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return summed if keepdims else np.squeeze(summed, axis)


def _arg(f: Callable[..., Array]) -> Handler:
    def handler(c: Call) -> Array:
        made = f(c.raw("x"), axis=c.whole("axis", -1), keepdims=c.flag("keep_dims"))
        return np.asarray(made).astype(NUMPY[c.type.word])
    return handler


def softmax(x: Array, axis: int) -> Array:
    """Return the softmax; a row of -inf alone gives nan."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def _layer_norm(c: Call) -> Array:
    x = _wide(c)
    axes = _axes(c, x.ndim)
    mean = x.mean(axes, keepdims=True)
    found = (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + c.number("epsilon", 1e-5))
    shape = [d if i in axes else 1 for i, d in enumerate(x.shape)]
    if c.has("gamma"):
        found = found * c("gamma").reshape(shape)
    return found + c("beta").reshape(shape) if c.has("beta") else found


def _scaled(c: Call, found: Array) -> Array:
    shape = (1, -1, *(1,) * (found.ndim - 2))
    if c.has("gamma"):
        found = found * c("gamma").reshape(shape)
    return found + c("beta").reshape(shape) if c.has("beta") else found


def _batch_norm(c: Call) -> Array:
    x = _wide(c)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    spread = np.sqrt(_wide(c, "variance").reshape(shape) + c.number("epsilon", 1e-5))
    return _scaled(c, (x - c("mean").reshape(shape)) / spread)


def _instance_norm(c: Call) -> Array:
    x = _wide(c)
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdims=True)
    return _scaled(c, (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + c.number("epsilon", 1e-5)))


def _l2_norm(c: Call) -> Array:
    x = _wide(c)
    return x / np.sqrt((x**2).sum((-1, -2, -3), keepdims=True) + c.number("epsilon", 1e-6))


def _cumsum(c: Call) -> Array:
    x, axis = _wide(c), c.whole("axis", 0)
    x = np.flip(x, axis) if c.flag("reverse") else x
    made = np.cumsum(x, axis, dtype=x.dtype)
    made = made - x if c.flag("exclusive") else made
    return np.flip(made, axis) if c.flag("reverse") else made


def _order(x: Array, axis: int, ascending: bool) -> Array:
    """Return the stable order: of equals the lower index is first; NaN last."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    turned = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - turned


def _argsort(c: Call) -> Array:
    return _order(c.raw("x"), c.whole("axis", -1), c.flag("ascending")).astype(np.int32)


def _topk(c: Call) -> Any:
    x, axis, k = c.raw("x"), c.whole("axis", -1), c.whole("k", 1)
    at = np.take(_order(x, axis, c.flag("ascending")), np.arange(x.shape[axis] if k == -1 else k), axis)
    values = np.take_along_axis(x, at, axis)
    return values, at.astype(NUMPY[c.text("output_indices_dtype", "int32")])


TABLE: Mapping[str, Handler] = {
    "reduce_sum": _reduce(np.sum), "reduce_mean": _reduce(np.mean), "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min), "reduce_prod": _reduce(np.prod),
    "reduce_l1_norm": _reduce(lambda x, axis, keepdims: np.abs(x).sum(axis, keepdims=keepdims)),
    "reduce_l2_norm": _reduce(lambda x, axis, keepdims: np.sqrt((x * x).sum(axis, keepdims=keepdims))),
    "reduce_sum_square": _reduce(lambda x, axis, keepdims: (x * x).sum(axis, keepdims=keepdims)),
    "reduce_log_sum": _reduce(lambda x, axis, keepdims: np.log(x.sum(axis, keepdims=keepdims))),
    "reduce_log_sum_exp": _reduce(_log_sum_exp),
    "reduce_argmax": _arg(np.argmax), "reduce_argmin": _arg(np.argmin),
    "softmax": lambda c: softmax(_wide(c), c.whole("axis", -1)),
    "layer_norm": _layer_norm, "batch_norm": _batch_norm, "instance_norm": _instance_norm, "l2_norm": _l2_norm,
    "cumsum": _cumsum, "argsort": _argsort, "topk": _topk,
}
