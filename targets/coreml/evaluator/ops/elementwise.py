"""Operations of one element at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.ops.elementwise import erf
from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.types import NUMPY, is_float

__all__ = ["TABLE", "sigmoid"]

Array = NDArray[Any]
Handler = Callable[[Call], Any]


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _unary(f: Callable[[Array], Array]) -> Handler:
    return lambda c: f(c("x"))


def _binary(f: Callable[[Array, Array], Array]) -> Handler:
    return lambda c: f(c("x"), c("y"))


def _real_div(c: Call) -> Array:
    x, y = c("x"), c("y")
    # Of whole numbers the quotient is cut towards zero.
    return np.divide(x, y) if x.dtype.kind == "f" else np.trunc(np.true_divide(x, y)).astype(x.dtype)


def _with_epsilon(f: Callable[[Array], Array], epsilon: float) -> Handler:
    return lambda c: f(c("x") + c.number("epsilon", epsilon))


def _cast(c: Call) -> Array:
    x, word = c.raw("x"), c.text("dtype")
    if word not in NUMPY:
        raise ValueError(f"no type '{word}'")
    dtype: Any = NUMPY[word]
    if is_float(word):
        if c.walk.exact:
            return x.astype(np.float64)
        return x.astype(np.float32) if word == "fp16" else x.astype(dtype)  # rounded to fp16 where it is kept
    return np.trunc(x).astype(dtype) if x.dtype.kind == "f" and word != "bool" else x.astype(dtype)


def _gelu(c: Call) -> Array:
    x, mode = c("x"), c.text("mode", "EXACT")
    if mode == "EXACT":
        return x * 0.5 * (1 + erf(x * math.sqrt(0.5)))
    if mode == "TANH_APPROXIMATION":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(1.702 * x)
    raise ValueError(f"no mode '{mode}' of gelu")


def _channels(values: Array, x: Array) -> Array:
    return values.reshape((1, -1, *(1,) * (x.ndim - 2)))


def _prelu(c: Call) -> Array:
    x = c("x")
    return np.where(x >= 0, x, x * _channels(c("alpha"), x))


def _softplus_parametric(c: Call) -> Array:
    x = c("x")
    return _channels(c("alpha"), x) * _softplus(_channels(c("beta"), x) * x)


def _elu(c: Call) -> Array:
    x = c("x")
    return np.where(x > 0, x, c.number("alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _leaky(c: Call) -> Array:
    x = c("x")
    return np.where(x >= 0, x, x * c.number("alpha", 0.01))


def _thresholded(c: Call) -> Array:
    x = c("x")
    return np.where(x >= c.number("alpha", 1.0), x, np.zeros_like(x))


def _select(c: Call) -> Array:
    cond, a, b = c.raw("cond"), c.raw("a"), c.raw("b")
    if cond.ndim and a.ndim == 0 == b.ndim and c.type.shape == ():
        raise ValueError("select of two scalars takes one condition")
    return np.where(cond, a, b)


def _clip(c: Call) -> Array:
    return np.minimum(np.maximum(c("x"), c.number("alpha", 0.0)), c.number("beta", 1.0))


def _affine(f: Callable[[Array, Any, Any], Array]) -> Handler:
    return lambda c: f(c("x"), c.number("alpha", 1.0), c.number("beta", 1.0))


def _quantize(c: Call) -> Array:
    x = c("input")
    scale, zero = _along(c, "scale", x), _along(c, "zero_point", x) if c.has("zero_point") else 0
    dtype: Any = NUMPY[c.text("output_dtype")]
    limits = np.iinfo(dtype)
    found = np.rint(x / scale) + np.asarray(zero, np.float32)
    return np.clip(found, limits.min, limits.max).astype(dtype)


def _dequantize(c: Call) -> Array:
    x = c.raw("input").astype(np.float64 if c.walk.exact else np.float32)
    scale, zero = _along(c, "scale", x), _along(c, "zero_point", x) if c.has("zero_point") else 0
    return (x - np.asarray(zero, np.float32)) * scale


def _along(c: Call, parameter: str, x: Array) -> Array:
    values = c(parameter)
    if values.ndim == 0:
        return values
    return values.reshape([-1 if i == c.whole("axis", 0) % x.ndim else 1 for i in range(x.ndim)])


TABLE: Mapping[str, Handler] = {
    "abs": _unary(np.abs), "acos": _unary(np.arccos), "asin": _unary(np.arcsin), "atan": _unary(np.arctan),
    "atanh": _unary(np.arctanh), "ceil": _unary(np.ceil), "cos": _unary(np.cos), "cosh": _unary(np.cosh),
    "erf": _unary(erf), "exp": _unary(np.exp), "exp2": _unary(np.exp2), "floor": _unary(np.floor),
    "round": _unary(np.rint), "sign": _unary(np.sign), "sin": _unary(np.sin), "sinh": _unary(np.sinh),
    "sqrt": _unary(np.sqrt), "square": _unary(np.square), "tan": _unary(np.tan), "tanh": _unary(np.tanh),
    "identity": lambda c: c.raw("x"), "logical_not": lambda c: ~c.raw("x"), "cast": _cast,
    "inverse": _with_epsilon(np.reciprocal, 1e-4), "log": _with_epsilon(np.log, 1e-45),
    "rsqrt": _with_epsilon(lambda x: 1 / np.sqrt(x), 1e-12),
    "threshold": lambda c: np.maximum(c("x"), c.number("alpha", 0.0)), "clip": _clip,
    "add": _binary(np.add), "sub": _binary(np.subtract), "mul": _binary(np.multiply), "real_div": _real_div,
    "floor_div": _binary(np.floor_divide), "mod": _binary(np.mod), "pow": _binary(np.power),
    "maximum": _binary(np.maximum), "minimum": _binary(np.minimum), "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal), "greater": _binary(np.greater), "greater_equal": _binary(np.greater_equal),
    "less": _binary(np.less), "less_equal": _binary(np.less_equal), "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or), "logical_xor": _binary(np.logical_xor), "select": _select,
    "relu": _unary(lambda x: np.maximum(x, 0)), "relu6": _unary(lambda x: np.clip(x, 0, 6)),
    "sigmoid": _unary(sigmoid), "silu": _unary(lambda x: x * sigmoid(x)), "softplus": _unary(_softplus),
    "softsign": _unary(lambda x: x / (1 + np.abs(x))), "gelu": _gelu, "elu": _elu, "leaky_relu": _leaky,
    "prelu": _prelu, "softplus_parametric": _softplus_parametric, "thresholded_relu": _thresholded,
    "sigmoid_hard": _affine(lambda x, a, b: np.clip(a * x + b, 0, 1)),
    "clamped_relu": _affine(lambda x, a, b: np.minimum(np.where(x >= 0, x, a * x), b)),
    "linear_activation": _affine(lambda x, a, b: a * x + b), "scaled_tanh": _affine(lambda x, a, b: a * np.tanh(b * x)),
    "quantize": _quantize, "dequantize": _dequantize,
}
