"""What the composites share: their base class, operand checks, and conversions inside decompositions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Op, ShapeError, find_op
from omnic.ir.types import DType, ElementType, Storage, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["ACTIVATIONS", "Composite", "activate", "as_element", "check_fits", "check_rank",
           "check_shape", "decompose_activation", "plain", "scalar", "select"]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")


class Composite(Op):
    """An op that is a graph of core ops."""

    composite: ClassVar[bool] = True
    category: ClassVar[str] = "composite"


def shape_text(shape: tuple[Dim, ...]) -> str:
    """Return a shape as the text form writes it."""
    return f"[{', '.join(str(d) for d in shape)}]"


def check_shape(op: str, name: str, type: TensorType, *expected: Dim) -> None:
    """Check that the operand ``name`` has exactly the shape ``expected``.

    Raises:
        ShapeError: it has another.
    """
    if type.shape != tuple(expected):
        raise ShapeError(f"{op}: {name} must be {shape_text(tuple(expected))}, got {shape_text(type.shape)}")


def check_rank(op: str, name: str, type: TensorType, *ranks: int) -> None:
    """Check that the operand ``name`` has one of ``ranks`` dims.

    Raises:
        ShapeError: it has not.
    """
    if type.rank not in ranks:
        raise ShapeError(f"{op}: {name} must have {' or '.join(str(r) for r in ranks)} dims, got {type}")


def check_fits(op: str, what: str, left: Dim, right: Dim) -> None:
    """Check that two dims that must agree do.

    Raises:
        ShapeError: they differ.
    """
    if left != right:
        raise ShapeError(f"{op}: {what}: {left} against {right}")


def plain(type: TensorType) -> DType:
    """Return the element type that arithmetic on ``type`` has: its own, f32 for a storage type."""
    return DType.F32 if isinstance(type.element, Storage) else type.element


def as_element(b: FunctionBuilder, value: Value, element: ElementType) -> Value:
    """Return ``value`` as numbers of ``element``: decoded, cast, or itself."""
    have = value.type.element
    if have == element:
        return value
    if isinstance(have, Storage):
        value = b.op("dequantise", value)
    return value if value.type.element == element else b.op("cast", value, to=element)


def scalar(b: FunctionBuilder, number: float, like: Value) -> Value:
    """Return a constant of the element type of ``like``."""
    return b.constant(float(number), plain(like.type))


def select(condition: Array, yes: Array, no: Array | float) -> Array:
    """Return numpy.where, typed."""
    return np.where(condition, yes, no)


def activate(x: Array, kind: str) -> Array:
    """Return ``act(x)``: gelu (erf), gelu_tanh, relu, relu2 or silu, elementwise."""
    if kind == "relu":
        return _core("relu", x)
    if kind == "relu2":
        rectified = _core("relu", x)
        return rectified * rectified
    if kind == "silu":
        return x * _core("sigmoid", x)
    if kind == "gelu":
        return 0.5 * x * (1.0 + _core("erf", x * 0.7071067811865476))
    return 0.5 * x * (1.0 + _core("tanh", 0.7978845608028654 * (x + 0.044715 * (x * x * x))))


def _core(op: str, x: Any) -> Array:
    """Evaluate a unary core op."""
    y = find_op(op).reference(x)
    assert not isinstance(y, tuple)
    return y


def decompose_activation(b: FunctionBuilder, x: Value, kind: str) -> Value:
    """Build ``act(x)`` from core ops."""
    if kind == "relu":
        return b.op("relu", x)
    if kind == "relu2":
        rectified = b.op("relu", x)
        return b.op("mul", rectified, rectified)
    if kind == "silu":
        return b.op("mul", x, b.op("sigmoid", x))
    half = b.op("mul", x, scalar(b, 0.5, x))
    one = scalar(b, 1.0, x)
    if kind == "gelu":
        inner = b.op("erf", b.op("mul", x, scalar(b, 0.7071067811865476, x)))
        return b.op("mul", half, b.op("add", inner, one))
    cube = b.op("mul", b.op("mul", x, x), x)
    inner = b.op("add", x, b.op("mul", cube, scalar(b, 0.044715, x)))
    return b.op("mul", half, b.op("add", b.op("tanh", b.op("mul", inner, scalar(b, 0.7978845608028654, x))), one))
