"""Core ops between numbers and storage types."""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.op import Array, Attr, In, Op, ShapeError, register
from omnic.ir.ops.elementwise import round_to
from omnic.ir.types import DType, ElementType, Storage, TensorType

__all__: list[str] = []


@register
class Quantise(Op):
    """``y`` = x in the storage type ``to``: codes and scales by the rules of ``omnic.ir.packing``."""

    name = "quantise"
    inputs = (In("x"),)
    attrs = (Attr("to", "element"),)

    def infer(self, x: TensorType, *, to: ElementType, **attrs: Any) -> TensorType:
        if not isinstance(to, Storage):
            raise ShapeError(f"quantise to {to}: a plain type is made by cast")
        try:
            packing.check_storage(to, tuple(1 for _ in x.shape))
        except InputError as error:
            raise ShapeError(f"quantise: {error.message}", error.hint) from error
        return x.with_element(to)

    def reference(self, x: Array, *, to: Storage, **attrs: Any) -> Any:
        return packing.quantise(x, to)


@register
class Dequantise(Op):
    """``y`` = the numbers a storage-typed x stands for, as ``to`` (rounded to nearest even for f16 and bf16)."""

    name = "dequantise"
    inputs = (In("x"),)
    attrs = (Attr("to", "element", DType.F32),)

    def infer(self, x: TensorType, *, to: ElementType, **attrs: Any) -> TensorType:
        if not isinstance(x.element, Storage):
            raise ShapeError(f"dequantise takes a storage type, got {x}")
        if not isinstance(to, DType) or not to.is_float:
            raise ShapeError(f"dequantise to {to}: the result is f32, f16 or bf16")
        return x.with_element(to)

    def reference(self, x: Array, *, to: DType, **attrs: Any) -> Array:
        return round_to(x, to)
