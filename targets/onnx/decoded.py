"""Storage-typed weights that no operator reads as they lie: decoded by the program, once, when it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as onnx

from omnic.ir.graph import Value
from omnic.ir.packing import FP4_LEVELS, NF4_LEVELS
from omnic.ir.types import Storage
from omnic.targets.onnx.blocks import units_shape
from omnic.targets.onnx.tensors import Layout, Piece

if TYPE_CHECKING:
    from omnic.targets.onnx.writer import GraphWriter

__all__ = ["decode_weight"]


def decode_weight(w: GraphWriter, value: Value) -> onnx.Value:
    """Return the numbers of a storage-typed weight, computed from constants."""
    type, shape = value.type.element, tuple(d for d in value.type.shape if isinstance(d, int))
    assert isinstance(type, Storage)
    parts: dict[str, onnx.Value] = {}
    for part in ("units", "units.scale", "units.zero", "units.row"):
        size = units_shape(type, shape, part)
        if size is not None:
            piece = Piece(value.name, shape, part=part, type=str(type))
            layout = Layout(f"@{value.name}.{part}", size, (piece,), group=f"@{value.name}.units")
            parts[part] = w.tensor(layout)
    scale = parts["units.scale"]
    if "units.row" in parts:
        scale = w.op("Mul", scale, w.op("Unsqueeze", parts["units.row"], w.ints(-1)))
    if type.kind in ("nf4", "fp4"):
        levels = w.const(NF4_LEVELS if type.kind == "nf4" else FP4_LEVELS)
        units = w.op("Gather", levels, w.op("Cast", parts["units"], to=onnx.DataType.INT32))
    else:
        units = w.op("Cast", parts["units"], to=onnx.DataType.FLOAT)
    if "units.zero" in parts:
        zero = w.op("Cast", parts["units.zero"], to=onnx.DataType.FLOAT)
        half = w.const(np.float32(1 << (type.bits - 1)))
        units = w.op("Sub", units, _of_numbers(w, w.op("Sub", zero, half), type, shape))
    return w.op("Mul", units, _of_numbers(w, scale, type, shape))


def _of_numbers(w: GraphWriter, of_group: onnx.Value, type: Storage, shape: tuple[int, ...]) -> onnx.Value:
    """Return one number a number from one a group, ready to broadcast."""
    if type.group == -1:
        return w.op("Reshape", of_group, w.ints(shape[0], *[1] * (len(shape) - 1)))
    size, axis = shape[type.axis], len(shape) + type.axis
    group = type.group or size
    wide = w.op("Gather", of_group, w.const(np.arange(size) // group), axis=len(shape) - 1)
    if type.axis == -1:
        return wide
    last = len(shape) - 1
    return w.op("Transpose", wide, perm=[*range(axis), last, *range(axis, last)])
