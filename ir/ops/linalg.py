"""The core matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.dims import Dim, product
from omnic.ir.op import Array, Attr, In, Op, ShapeError, broadcast_shapes, register
from omnic.ir.ops.elementwise import common_element
from omnic.ir.types import TensorType

__all__: list[str] = []


@register
class MatMul(Op):
    """``y[..., m, n] = sum_k a[..., m, k] * b[..., k, n]``; ``ta`` and ``tb`` read the last two dims of a and b
    swapped.  Leading dims broadcast.  2 FLOPs per multiply-add.
    """

    name = "matmul"
    inputs = (In("a", "number"), In("b", "number"))
    attrs = (Attr("ta", "bool", False), Attr("tb", "bool", False))

    def infer(self, a: TensorType, b: TensorType, *, ta: bool, tb: bool, **attrs: Any) -> TensorType:
        if a.rank < 2 or b.rank < 2:
            raise ShapeError(f"matmul needs at least two dims, got {a} and {b}")
        m, ka = (a.shape[-1], a.shape[-2]) if ta else (a.shape[-2], a.shape[-1])
        kb, n = (b.shape[-1], b.shape[-2]) if tb else (b.shape[-2], b.shape[-1])
        if ka != kb:
            raise ShapeError(f"matmul of {a}{' transposed' if ta else ''} and {b}{' transposed' if tb else ''} "
                             f"contracts {ka} with {kb}")
        return TensorType(common_element("matmul", a, b), (*broadcast_shapes(a.shape[:-2], b.shape[:-2]), m, n))

    def reference(self, a: Array, b: Array, *, ta: bool, tb: bool, **attrs: Any) -> Array:
        left = np.swapaxes(a, -1, -2) if ta else a
        right = np.swapaxes(b, -1, -2) if tb else b
        if right.ndim == 2 and left.ndim > 2 and not ta:
            # One product of all rows instead of one per batch entry.
            return (left.reshape(-1, left.shape[-1]) @ right).reshape(*left.shape[:-1], right.shape[-1])
        return np.matmul(left, right)

    def flops(self, a: TensorType, b: TensorType, *, ta: bool = False, tb: bool = False, **attrs: Any) -> Dim:
        result = self.infer(a, b, ta=ta, tb=tb)
        return product(result.shape) * (a.shape[-2] if ta else a.shape[-1]) * 2
