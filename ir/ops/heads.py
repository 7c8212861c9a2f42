"""The language-model head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, as_element, check_fits, check_rank, check_shape, scalar
from omnic.ir.ops.index import check_indices
from omnic.ir.ops.linear import check_activation, decompose_quantise_activation, quantise_activation
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value


@register
class LmHead(Composite):
    """logits[b, r] = c(w x[b, rows[b, r]] + bias), every token when ``rows`` is absent;
    c(z) = softcap * tanh(z / softcap) when softcap > 0.  Only the wanted rows are multiplied.  ``act`` says how x is
    quantised before the product, as for ``linear``.
    """

    name = "lm_head"
    category = "head"
    source = "definition; softcap arXiv:2408.00118"
    inputs = (
        In("x", "float", doc="[B, T, D]"),
        In("w", "float", doc="[V, D]; the embedding table when tied"),
        In("rows", "index", optional=True, doc="[B, R], each in 0..T-1: an index into this call's tokens"),
        In("bias", "float", optional=True, doc="[V]"),
    )
    attrs = (
        Attr("softcap", "float", 0.0, doc="bound of the logits; 0 = none"),
        Attr("act", "str", "none", doc="none, bf16, i8<per_token> or i8<gN>"),
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """Result f32 [B, R, V]."""
        x, w, rows, bias = types
        check_rank("lm_head", "x", x, 3)
        check_rank("lm_head", "w", w, 2)
        check_fits("lm_head", "last dim of x and of w", x.shape[2], w.shape[1])
        if rows is not None:
            check_rank("lm_head", "rows", rows, 2)
            check_shape("lm_head", "rows", rows, x.shape[0], rows.shape[1])
        if bias is not None:
            check_shape("lm_head", "bias", bias, w.shape[0])
        if attrs["softcap"] < 0:
            raise ShapeError("lm_head: softcap must not be negative")
        check_activation("lm_head", attrs["act"], x.shape[2])
        return TensorType(DType.F32, (x.shape[0], x.shape[1] if rows is None else rows.shape[1], w.shape[0]))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """One product over the wanted rows."""
        x, w, rows, bias = arrays
        if rows is not None:
            check_indices("lm_head", rows, x.shape[1])
        wanted = x if rows is None else np.take_along_axis(x, rows[:, :, None], axis=1)
        logits = quantise_activation(wanted, attrs["act"]).reshape(-1, x.shape[-1]) @ w.T
        if bias is not None:
            logits = logits + bias
        if attrs["softcap"]:
            logits = attrs["softcap"] * np.tanh(logits / attrs["softcap"])
        return logits.reshape(*wanted.shape[:2], w.shape[0])

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """gather, matmul, bias, softcap."""
        x, w, rows, bias = values
        if rows is not None:
            batch, count = rows.type.shape
            x = b.op("gather", x, b.reshape(rows, batch, count, 1), axis=1)
        x = decompose_quantise_activation(b, as_element(b, x, DType.F32), attrs["act"])
        logits = b.op("matmul", x, as_element(b, w, DType.F32), tb=True)
        if bias is not None:
            logits = b.op("add", logits, as_element(b, bias, DType.F32))
        if not attrs["softcap"]:
            return logits
        cap = scalar(b, attrs["softcap"], logits)
        return b.op("mul", b.op("tanh", b.op("div", logits, cap)), cap)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * rows * V * D."""
        x, w, rows, _ = types
        count = x.shape[1] if rows is None else rows.shape[1]
        return 2 * x.shape[0] * count * w.shape[0] * w.shape[1]
