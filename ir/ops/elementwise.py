"""Core ops on single elements: arithmetic, functions, casts, constants.

Operands broadcast as in numpy.  Operands of different float types give f32; integers must agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, Op, ShapeError, broadcast_shapes, register
from omnic.ir.types import DType, ElementType, TensorType

__all__ = ["common_element", "round_to"]


def common_element(op: str, *types: TensorType) -> DType:
    """Return the element type of an op on ``types``: their own when equal, f32 for different floats.

    Raises:
        ShapeError: integers of different types, or a mix of floats, integers and bools.
    """
    found = [t.decoded.dtype for t in types]
    if all(f == found[0] for f in found):
        return found[0]
    if all(f.is_float for f in found):
        return DType.F32
    raise ShapeError(f"{op}: operands are {' and '.join(str(t) for t in types)}", "make them one type with cast")


def round_to(x: Array, element: ElementType) -> Array:
    """Return ``x`` rounded to the nearest f16 or bf16 number, in the dtype it has; other floats are left alone."""
    if element in (DType.F16, DType.BF16):
        with np.errstate(over="ignore"):
            return x.astype(element.numpy).astype(x.dtype)
    return x


class _Binary(Op):
    inputs = (In("a", "number"), In("b", "number"))

    def infer(self, a: TensorType, b: TensorType, **attrs: Any) -> TensorType:
        return TensorType(common_element(self.name, a, b), broadcast_shapes(a.shape, b.shape))


@register
class Add(_Binary):
    """``y = a + b``."""

    name = "add"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return a + b


@register
class Sub(_Binary):
    """``y = a - b``."""

    name = "sub"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return a - b


@register
class Mul(_Binary):
    """``y = a * b``."""

    name = "mul"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return a * b


@register
class Div(_Binary):
    """``y = a / b`` of floats; 0 / 0 is NaN and x / 0 is infinite, as in IEEE 754."""

    name = "div"
    inputs = (In("a"), In("b"))

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return a / b


@register
class Pow(_Binary):
    """``y = a ** b`` of floats; a negative base with a fractional exponent is NaN."""

    name = "pow"
    inputs = (In("a"), In("b"))

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.power(a, b)


@register
class Minimum(_Binary):
    """``y = min(a, b)``; NaN if either is."""

    name = "minimum"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.minimum(a, b)


@register
class Maximum(_Binary):
    """``y = max(a, b)``; NaN if either is."""

    name = "maximum"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.maximum(a, b)


@register
class FloorDiv(_Binary):
    """``y = floor(a / b)``: rounds towards minus infinity.  An integer divisor must not be 0."""

    name = "floordiv"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.floor_divide(a, b)


@register
class Mod(_Binary):
    """``y = a - b * floor(a / b)``: the sign of the divisor.  An integer divisor must not be 0."""

    name = "mod"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.mod(a, b)


class _Unary(Op):
    inputs = (In("x"),)

    def infer(self, x: TensorType, **attrs: Any) -> TensorType:
        return x.decoded


@register
class Neg(_Unary):
    """``y = -x``."""

    name = "neg"
    inputs = (In("x", "number"),)

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.negative(x)


@register
class Abs(_Unary):
    """``y = |x|``."""

    name = "abs"
    inputs = (In("x", "number"),)

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.abs(x)


@register
class Exp(_Unary):
    """``y = e ** x``."""

    name = "exp"

    def reference(self, x: Array, **attrs: Any) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(x)


@register
class Log(_Unary):
    """``y = ln x``; minus infinity at 0, NaN below."""

    name = "log"

    def reference(self, x: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(x)


@register
class Sqrt(_Unary):
    """``y = x ** (1/2)``; NaN below 0."""

    name = "sqrt"

    def reference(self, x: Array, **attrs: Any) -> Array:
        with np.errstate(invalid="ignore"):
            return np.sqrt(x)


@register
class Rsqrt(_Unary):
    """``y = x ** (-1/2)``; infinite at 0, NaN below."""

    name = "rsqrt"

    def reference(self, x: Array, **attrs: Any) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 / np.sqrt(x))


@register
class Sin(_Unary):
    """``y = sin x``, x in radians."""

    name = "sin"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.sin(x)


@register
class Cos(_Unary):
    """``y = cos x``, x in radians."""

    name = "cos"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.cos(x)


@register
class Tanh(_Unary):
    """``y = tanh x``."""

    name = "tanh"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.tanh(x)


@register
class Sigmoid(_Unary):
    """``y = 1 / (1 + e ** -x)``, computed as ``(1 + tanh(x / 2)) / 2``, which cannot overflow."""

    name = "sigmoid"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


@register
class Erf(_Unary):
    """``y = 2 / sqrt(pi) * integral of e ** (-t ** 2) from 0 to x`` (Abramowitz and Stegun, 7.1.1)."""

    name = "erf"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return erf(x)


@register
class Round(_Unary):
    """``y`` = the nearest whole number; a half goes to the even one (IEEE 754 roundTiesToEven)."""

    name = "round"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.rint(x)


@register
class Relu(_Unary):
    """``y = max(x, 0)``."""

    name = "relu"

    def reference(self, x: Array, **attrs: Any) -> Array:
        return np.maximum(x, 0)


@register
class Clamp(_Unary):
    """``y = min(max(x, min), max)``; a bound that is absent does not act."""

    name = "clamp"
    inputs = (In("x", "number"),)
    attrs = (Attr("min", "float", None), Attr("max", "float", None))

    def infer(self, x: TensorType, *, min: float | None, max: float | None, **attrs: Any) -> TensorType:
        if min is None and max is None:
            raise ShapeError("clamp needs min, max or both")
        if min is not None and max is not None and min > max:
            raise ShapeError(f"clamp: min {min} is above max {max}")
        return x.decoded

    def reference(self, x: Array, *, min: float | None, max: float | None, **attrs: Any) -> Array:
        if min is not None:
            x = np.maximum(x, np.asarray(min, x.dtype))
        if max is not None:
            x = np.minimum(x, np.asarray(max, x.dtype))
        return x


@register
class Cast(Op):
    """``y`` = x as ``to``.  A float rounds to the nearest f16 or bf16, ties to even; float to integer drops the
    fraction; anything but 0 is true.  The reference keeps its own precision for f32.
    """

    name = "cast"
    inputs = (In("x", "any"),)
    attrs = (Attr("to", "element"),)

    def infer(self, x: TensorType, *, to: ElementType, **attrs: Any) -> TensorType:
        if not isinstance(to, DType):
            raise ShapeError(f"cast to {to}: a storage type is made by quantise")
        return x.with_element(to)

    def reference(self, x: Array, *, to: DType, **attrs: Any) -> Array:
        if not to.is_float:
            return x.astype(to.numpy)
        return round_to(x if x.dtype.kind == "f" else x.astype(np.float64), to)


@register
class Constant(Op):
    """``y`` = ``values`` in row-major order with the given shape; one value fills any shape."""

    name = "constant"
    attrs = (Attr("values", "floats"), Attr("shape", "dims"), Attr("type", "element"))

    def infer(self, *, values: tuple[float, ...], shape: tuple[Dim, ...], type: ElementType,
              **attrs: Any) -> TensorType:
        result = TensorType(type, shape)
        if not isinstance(type, DType):
            raise ShapeError(f"constant of {type}: a storage type is made by quantise")
        if not type.is_float and any(v != int(v) for v in values):
            raise ShapeError(f"constant of {type} holds a fraction")
        if len(values) != 1 and result.size != len(values):
            raise ShapeError(f"constant has {len(values)} values for the shape of {result}")
        return result

    def reference(self, *, values: tuple[float, ...], shape: tuple[int, ...], type: DType, **attrs: Any) -> Array:
        kind = np.float64 if type.is_float else type.numpy
        flat = np.asarray(values, kind)
        return round_to(np.full(shape, flat[0]) if len(values) == 1 else flat.reshape(shape), type)


# erf: W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969).
_ERF_SMALL = ((1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
               3.20937758913846947e3),
              (2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3))
_ERF_MIDDLE = ((2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
                2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
                1.23033935479799725e3),
               (1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3))
_ERF_LARGE = ((1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
               1.60837851487422766e-2, 6.58749161529837803e-4),
              (2.56852019228982242e0, 1.87295284992346047e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
               2.33520497626869185e-3))
_SQRT_PI_INVERSE = 5.6418958354775628695e-1


def _rational(z: Array, over: tuple[float, ...], under: tuple[float, ...]) -> Array:
    numerator, denominator = over[0] * z, z.copy()
    for a, b in zip(over[1:-1], under[:-1], strict=True):
        numerator = (numerator + a) * z
        denominator = (denominator + b) * z
    return (numerator + over[-1]) / (denominator + under[-1])


def erf(x: Array) -> Array:
    """Return the error function of ``x`` to about 1e-16 (Cody 1969), in the dtype of ``x``."""
    value = x.astype(np.float64)
    size = np.abs(value)
    small = np.minimum(size, 0.46875)
    inner = value * _rational(small * small, *_ERF_SMALL)
    middle = np.clip(size, 0.46875, 4.0)
    large = np.clip(size, 4.0, 27.0)
    inverse = 1 / (large * large)
    tail = np.exp(-large * large) / large * (_SQRT_PI_INVERSE - inverse * _rational(inverse, *_ERF_LARGE))
    rest = np.where(size <= 4.0, np.exp(-middle * middle) * _rational(middle, *_ERF_MIDDLE), tail)
    outer = np.sign(value) * (1 - rest)
    return np.where(size <= 0.46875, inner, np.where(np.isnan(value), value, outer)).astype(x.dtype)
