"""Normalisation over the last dim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, as_element, check_shape, plain, scalar
from omnic.ir.types import TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value


def _infer(op: str, x: TensorType, *vectors: TensorType | None) -> TensorType:
    if x.rank < 1:
        raise ShapeError(f"{op}: x must have at least 1 dim, got {x}")
    for name, vector in zip(("weight", "bias"), vectors, strict=False):
        if vector is not None:
            check_shape(op, name, vector, x.shape[-1])
    return x.with_element(plain(x))


@register
class RmsNorm(Composite):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dim."""

    name = "rms_norm"
    category = "norm"
    source = "arXiv:1910.07467"
    inputs = (In("x", "float", doc="[..., D]"), In("weight", "float", optional=True, doc="[D]"))
    attrs = (Attr("eps", "float", 1e-6, doc="added to the mean square"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        return _infer("rms_norm", *types)

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Over the last dim."""
        x, weight = arrays
        y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + attrs["eps"])
        return y if weight is None else y * weight

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """mul, mean, add, rsqrt, mul."""
        x, weight = values
        element = plain(x.type)
        x = as_element(b, x, element)
        square = b.op("mean", b.op("mul", x, x), axes=(x.type.rank - 1,), keepdims=True)
        y = b.op("mul", x, b.op("rsqrt", b.op("add", square, scalar(b, attrs["eps"], x))))
        return y if weight is None else b.op("mul", y, as_element(b, weight, element))


@register
class LayerNorm(Composite):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dim (variance divides by D)."""

    name = "layer_norm"
    category = "norm"
    source = "arXiv:1607.06450"
    inputs = (
        In("x", "float", doc="[..., D]"),
        In("weight", "float", optional=True, doc="[D]"),
        In("bias", "float", optional=True, doc="[D]"),
    )
    attrs = (Attr("eps", "float", 1e-6, doc="added to the variance"),)

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        return _infer("layer_norm", *types)

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Over the last dim."""
        x, weight, bias = arrays
        centred = x - np.mean(x, axis=-1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + attrs["eps"])
        if weight is not None:
            y = y * weight
        return y if bias is None else y + bias

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Centre, scale, weight, bias."""
        x, weight, bias = values
        element = plain(x.type)
        x = as_element(b, x, element)
        last = (x.type.rank - 1,)
        centred = b.op("sub", x, b.op("mean", x, axes=last, keepdims=True))
        variance = b.op("mean", b.op("mul", centred, centred), axes=last, keepdims=True)
        y = b.op("mul", centred, b.op("rsqrt", b.op("add", variance, scalar(b, attrs["eps"], x))))
        if weight is not None:
            y = b.op("mul", y, as_element(b, weight, element))
        return y if bias is None else b.op("add", y, as_element(b, bias, element))
