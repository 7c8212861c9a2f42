"""The core convolution along time."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.dims import Dim, product
from omnic.ir.op import Array, In, Op, ShapeError, register
from omnic.ir.ops.elementwise import common_element
from omnic.ir.types import TensorType

__all__: list[str] = []


@register
class DepthwiseConv1d(Op):
    """``y[b, t, c] = bias[c] + sum_k w[c, k] * x[b, t + k, c]`` for t in 0..T-K: a valid (unpadded) correlation of
    each channel with its own kernel.  2 FLOPs per multiply-add.
    """

    name = "depthwise_conv1d"
    inputs = (In("x", doc="[B, T, C]"), In("w", doc="[C, K]"), In("bias", optional=True, doc="[C]"))

    def infer(self, x: TensorType, w: TensorType, bias: TensorType | None, **attrs: Any) -> TensorType:
        if x.rank != 3 or w.rank != 2 or x.shape[2] != w.shape[0] or (bias and bias.shape != (w.shape[0],)):
            given = f"x {x}, w {w}{f', bias {bias}' if bias else ''}"
            raise ShapeError(f"depthwise_conv1d: {given} are not [B, T, C], [C, K], [C]")
        length = x.shape[1] - w.shape[1] + 1
        if isinstance(length, int) and length < 1:
            raise ShapeError(f"depthwise_conv1d: {x} is shorter than the kernel of {w}")
        return TensorType(common_element("depthwise_conv1d", x, w), (x.shape[0], length, x.shape[2]))

    def reference(self, x: Array, w: Array, bias: Array | None, **attrs: Any) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[1], axis=1)
        y = np.einsum("btck,ck->btc", windows, w)
        return y if bias is None else y + bias

    def flops(self, x: TensorType, w: TensorType, bias: TensorType | None = None, **attrs: Any) -> Dim:
        return product(self.infer(x, w, bias).shape) * w.shape[1] * 2
