"""Products with weights, embeddings, activations and quantisation noise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir import packing
from omnic.ir.dims import Dim, product
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import (
    ACTIVATIONS,
    GATE_ATTRS,
    Composite,
    activate,
    as_element,
    check_fits,
    check_gate,
    check_rank,
    check_shape,
    decompose_activation,
    decompose_gate,
    gate_of,
    gated,
    plain,
    scalar,
    select,
)
from omnic.ir.ops.elementwise import round_to
from omnic.ir.ops.index import check_indices
from omnic.ir.types import DType, Storage, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["activation_group", "check_activation", "quantise_activation"]

_ACT = re.compile(r"none|bf16|i8<(?:per_token|g([1-9]\d*))>")


def activation_group(act: str, op: str = "linear") -> int | None:
    """Return the group of an ``act`` attribute: None for ``none`` and ``bf16``, 0 for a whole token, else its size.

    Raises:
        ShapeError: it is none of ``none``, ``bf16``, ``i8<per_token>``, ``i8<gN>``.
    """
    match = _ACT.fullmatch(act)
    if not match:
        raise ShapeError(f"{op}: act must be none, bf16, i8<per_token> or i8<gN>, got '{act}'")
    if act in ("none", "bf16"):
        return None
    return int(match.group(1)) if match.group(1) else 0


def check_activation(op: str, act: str, size: Dim) -> None:
    """Check that a last dim of ``size`` can be quantised as ``act`` says.

    Raises:
        ShapeError: ``act`` has another form, or its group does not divide the dim.
    """
    group = activation_group(act, op)
    if group and (not isinstance(size, int) or size % group):
        raise ShapeError(f"{op}: activation group {group} does not divide {size}")


def quantise_activation(x: Array, act: str) -> Array:
    """Return ``x`` as the product sees it.

    Codes of 8 bits, dynamic and symmetric along the last dim: ``s = max|x| / 127`` over the group (1 where all are
    zero), ``s * round_half_even(x / s)``.  ``bf16``: every number rounded to bf16, half to even.
    """
    if act == "bf16":
        return round_to(x, DType.BF16)
    group = activation_group(act)
    if group is None:
        return x
    shaped = x if group == 0 else x.reshape(*x.shape[:-1], x.shape[-1] // group, group)
    peak = np.max(np.abs(shaped), axis=-1, keepdims=True)
    step = select(peak > 0, peak / 127.0, np.ones_like(peak))
    return (np.round(shaped / step) * step).reshape(x.shape)


def decompose_quantise_activation(b: FunctionBuilder, x: Value, act: str) -> Value:
    """Build :func:`quantise_activation` from core ops."""
    if act == "bf16":
        return as_element(b, b.op("cast", x, to=DType.BF16), plain(x.type))
    group = activation_group(act)
    if group is None:
        return x
    shape = x.type.shape
    width = shape[-1]
    assert isinstance(width, int)
    shaped = x if group == 0 else b.reshape(x, *shape[:-1], width // group, group)
    peak = b.op("max", b.op("abs", shaped), axes=(shaped.type.rank - 1,), keepdims=True)
    step = b.op("where", b.op("gt", peak, scalar(b, 0.0, x)), b.op("div", peak, scalar(b, 127.0, x)), scalar(b, 1.0, x))
    rounded = b.op("mul", b.op("round", b.op("div", shaped, step)), step)
    return rounded if group == 0 else b.reshape(rounded, *shape)


@register
class Linear(Composite):
    """y[..., n] = sum_k x[..., k] * w[n, k] + bias[n].

    ``act`` says how x is rounded before the product: ``i8<per_token>`` over the whole last dim,
    ``i8<gN>`` over groups of N of it, symmetric, scale max|x|/127, round half to even; ``bf16`` number by
    number, half to even.  The rounded x is what the product sees, so the attribute is meaning, not a hint.
    """

    name = "linear"
    category = "linear"
    source = "definition"
    inputs = (
        In("x", "float", doc="[..., K]"),
        In("w", "float", doc="[N, K]"),
        In("bias", "float", optional=True, doc="[N]"),
    )
    attrs = (Attr("act", "str", "none", doc="none, bf16, i8<per_token> or i8<gN>"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [..., N] in the element type of x."""
        x, w, bias = types
        check_rank("linear", "w", w, 2)
        if x.rank < 1:
            raise ShapeError(f"linear: x must have at least 1 dim, got {x}")
        check_fits("linear", "last dim of x and of w", x.shape[-1], w.shape[1])
        if bias is not None:
            check_shape("linear", "bias", bias, w.shape[0])
        check_activation("linear", attrs["act"], x.shape[-1])
        return TensorType(plain(x), (*x.shape[:-1], w.shape[0]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """One product over all leading dims."""
        x, w, bias = arrays
        y = quantise_activation(x, attrs["act"]).reshape(-1, x.shape[-1]) @ w.T
        if bias is not None:
            y = y + bias
        return y.reshape(*x.shape[:-1], w.shape[0])

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Matmul with the transposed weight, then the bias."""
        x, w, bias = values
        element = plain(x.type)
        x = decompose_quantise_activation(b, as_element(b, x, element), attrs["act"])
        flat = x if x.type.rank > 1 else b.reshape(x, 1, x.type.shape[0])
        y = b.op("matmul", flat, as_element(b, w, element), tb=True)
        if x.type.rank == 1:
            y = b.reshape(y, w.type.shape[0])
        return y if bias is None else b.op("add", y, as_element(b, bias, element))

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * rows * N * K."""
        x, w, _ = types
        return 2 * product(x.shape[:-1]) * w.shape[0] * w.shape[1]


@register
class Embedding(Composite):
    """y[..., :] = w[tokens[...], :], in f32 whatever w is stored in."""

    name = "embedding"
    category = "linear"
    source = "definition"
    inputs = (In("w", "float", doc="[V, D]"), In("tokens", "index", doc="[...], each in 0..V-1"))

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result [..., D]."""
        w, tokens = types
        check_rank("embedding", "w", w, 2)
        return TensorType(DType.F32, (*tokens.shape, w.shape[1]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Rows of the table."""
        w, tokens = arrays
        check_indices("embedding", tokens, len(w))
        return np.take(w, tokens, axis=0)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """index_select, decoded (a storage type is decoded as a whole table first)."""
        w, tokens = values
        if isinstance(w.type.element, Storage):
            w = b.op("dequantise", w)
        return as_element(b, b.op("index_select", w, tokens), DType.F32)


@register
class Act(Composite):
    """gelu: x * (1 + erf(x / sqrt 2)) / 2; gelu_tanh: x * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2;
    relu: max(x, 0); relu2: max(x, 0)^2; silu: x * sigmoid(x).
    """

    name = "act"
    category = "linear"
    source = "GELU arXiv:1606.08415; relu2 arXiv:2109.08668; SiLU arXiv:1702.03118"
    inputs = (In("x", "float", doc="any shape"),)
    attrs = (Attr("kind", "str", choices=ACTIVATIONS, doc="which one"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        return types[0].with_element(plain(types[0]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Elementwise."""
        return activate(arrays[0], attrs["kind"])

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Elementwise core ops."""
        x = values[0]
        return decompose_activation(b, as_element(b, x, plain(x.type)), attrs["kind"])


@register
class GatedAct(Composite):
    """y = act(gate) * up; SwiGLU is kind = silu, GEGLU kind = gelu.

    With ``limit``, gate is min(gate, limit) and up is clamp(up, -limit, limit) before; ``alpha`` makes silu
    x * sigmoid(alpha x), and ``beta`` is added to up: the clamped SwiGLU of gpt-oss has alpha = 1.702, beta = 1 and
    limit = 7.
    """

    name = "gated_act"
    category = "linear"
    source = "GLU variants arXiv:2002.05202; clamped arXiv:2508.10925"
    inputs = (In("gate", "float", doc="any shape"), In("up", "float", doc="the shape of gate"))
    attrs = (Attr("kind", "str", choices=ACTIVATIONS, doc="act, as the op act"), *GATE_ATTRS)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of gate."""
        gate, up = types
        check_shape("gated_act", "up", up, *gate.shape)
        if plain(gate) != plain(up):
            raise ShapeError(f"gated_act: gate is {gate.element} and up is {up.element}")
        check_gate("gated_act", attrs)
        return gate.with_element(plain(gate))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Elementwise."""
        gate, up = arrays
        return gated(gate, up, attrs["kind"], **gate_of(attrs))

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """The activation, times up."""
        element = plain(values[0].type)
        gate, up = (as_element(b, v, element) for v in values)
        return decompose_gate(b, gate, up, attrs["kind"], **gate_of(attrs))


@register
class FakeQuant(Composite):
    """y = decode(encode(x)) for the element type ``to``: the error of storing x, without storing it.

    The rounding is the packing's own, so training with it equals what the exported weights give.
    """

    name = "fake_quant"
    category = "linear"
    source = "quantisation-aware training arXiv:1712.05877"
    inputs = (In("x", "float", doc="any shape"),)
    attrs = (Attr("to", "element", doc="a storage type, f16 or bf16"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        if not attrs["to"].is_float:
            raise ShapeError(f"fake_quant: {attrs['to']} holds no floating point numbers")
        return types[0].with_element(plain(types[0]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Quantise and dequantise, or cast there and back."""
        x = arrays[0]
        if isinstance(attrs["to"], Storage):
            return packing.decode(packing.quantise(x, attrs["to"]), x.dtype)
        return round_to(x, attrs["to"])

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Quantise and dequantise, or two casts."""
        x = as_element(b, values[0], plain(values[0].type))
        element = plain(x.type)
        if isinstance(attrs["to"], Storage):
            return as_element(b, b.op("dequantise", b.op("quantise", x, to=attrs["to"])), element)
        return as_element(b, b.op("cast", x, to=attrs["to"]), element)
