"""The most likely token, without all logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omnic.ir.dims import Dim
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, check_rank, check_shape
from omnic.ir.ops.heads import LmHead
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value


@register
class LmArgmax(Composite):
    """logit[b, r] = the largest of ``lm_head(x, w, rows)``, token[b, r] its id, the lowest among equals.

    ``basis`` Q, ``screen`` U and ``reach`` only say where to look first and never change the result.  With p = Q x, p'
    = p rounded to 8 bits in groups of 32 and y = x - Q^T p, the logit of v lies within reach[:, v] . (|y|, |p - p'|,
    |x|) of u_v . p' (``omnic.ir.shortlist``): rows whose bound lies below a logit already known need no product.  The
    pass ``fast-head`` makes them.
    """

    name = "lm_argmax"
    category = "head"
    source = "definition; search bounded by the Cauchy-Schwarz inequality"
    inputs = (
        In("x", "float", doc="[B, T, D]"),
        In("w", "float", doc="[V, D]"),
        In("rows", "index", optional=True, doc="[B, R], each in 0..T-1: an index into this call's tokens"),
        In("basis", "float", optional=True, doc="[r, D], nearly orthonormal rows"),
        In("screen", "float", optional=True, doc="[V, r]"),
        In("reach", "float", optional=True, doc="[3, V], all >= 0; given with basis and screen or not at all"),
    )
    attrs = (Attr("act", "str", "none", doc="as that of lm_head"),)
    outputs = ("token", "logit")

    def infer(self, *types: Any, **attrs: Any) -> tuple[TensorType, TensorType]:
        """Results i64 [B, R] and f32 [B, R]."""
        x, w, rows, basis, screen, reach = types
        logits = LmHead().infer(x, w, rows, None, softcap=0.0, act=attrs["act"])
        given = [t is not None for t in (basis, screen, reach)]
        if any(given) and not all(given):
            raise ShapeError("lm_argmax: basis, screen and reach go together")
        if all(given):
            check_rank("lm_argmax", "basis", basis, 2)
            check_shape("lm_argmax", "basis", basis, basis.shape[0], x.shape[2])
            check_shape("lm_argmax", "screen", screen, w.shape[0], basis.shape[0])
            check_shape("lm_argmax", "reach", reach, 3, w.shape[0])
        return TensorType(DType.I64, logits.shape[:2]), TensorType(DType.F32, logits.shape[:2])

    def reference(self, *arrays: Any, **attrs: Any) -> tuple[Array, Array]:
        """The argmax of all logits."""
        x, w, rows = arrays[:3]
        logits = LmHead().reference(x, w, rows, None, softcap=0.0, act=attrs["act"])
        return logits.argmax(-1), logits.max(-1)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> tuple[Value, Value]:
        """lm_head, argmax, max."""
        x, w, rows = values[:3]
        logits = b.op("lm_head", x, w, rows, act=attrs["act"])
        return b.op("argmax", logits, axis=-1), b.op("max", logits, axes=(-1,))

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """2 * rows * V * D: of the full product."""
        return LmHead().flops(*types[:3], None)
