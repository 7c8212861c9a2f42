"""What the composites share: their base class, operand checks, and conversions inside decompositions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, Op, ShapeError, find_op
from omnic.ir.types import DType, ElementType, Storage, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["ACTIVATIONS", "GATE_ATTRS", "Composite", "activate", "as_element", "check_fits", "check_gate", "check_rank",
           "check_shape", "decompose_activation", "decompose_gate", "gate_of", "gated", "plain", "scalar", "select"]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")

GATE_ATTRS = (
    Attr("alpha", "float", 1.0, doc="silu(x) is x * sigmoid(alpha x)"),
    Attr("beta", "float", 0.0, doc="added to up"),
    Attr("limit", "float", None, doc="gate is at most limit, up within -limit..limit"),
)
"""What a gated activation has beside its kind: act(min(gate, limit)) * (clamp(up, -limit, limit) + beta)."""


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


def gate_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a node's attributes that are :data:`GATE_ATTRS`, defaults filled in."""
    return {a.name: attrs.get(a.name, a.default) for a in GATE_ATTRS}


def check_gate(op: str, attrs: Mapping[str, Any]) -> None:
    """Check the numbers of a gated activation.

    Raises:
        ShapeError: alpha of another kind than silu, or a limit that is not positive.
    """
    alpha, limit = attrs["alpha"], attrs["limit"]
    if alpha != 1.0 and attrs["kind"] != "silu":
        raise ShapeError(f"{op}: alpha = {alpha:g} is for kind silu, not for {attrs['kind']}")
    if limit is not None and not limit > 0:
        raise ShapeError(f"{op}: limit must be positive, got {limit:g}")


def gated(
    gate: Array, up: Array, kind: str, alpha: float = 1.0, beta: float = 0.0, limit: float | None = None
) -> Array:
    """Return ``act(min(gate, limit)) * (clamp(up, -limit, limit) + beta)``, elementwise (``limit`` None: no bounds)."""
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    opening = activate(gate, kind) if alpha == 1.0 else gate * _core("sigmoid", alpha * gate)
    return opening * (up if beta == 0.0 else up + beta)


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


def decompose_gate(
    b: FunctionBuilder, gate: Value, up: Value, kind: str, alpha: float = 1.0, beta: float = 0.0,
    limit: float | None = None
) -> Value:
    """Build :func:`gated` from core ops."""
    if limit is not None:
        gate, up = b.op("clamp", gate, max=limit), b.op("clamp", up, min=-limit, max=limit)
    if alpha == 1.0:
        opening = decompose_activation(b, gate, kind)
    else:
        opening = b.op("mul", gate, b.op("sigmoid", b.op("mul", gate, scalar(b, alpha, gate))))
    return b.op("mul", opening, up if beta == 0.0 else b.op("add", up, scalar(b, beta, up)))


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
