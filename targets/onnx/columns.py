"""Rows of 8-bit codes with one scale each as products of integers read them: [K, N], unsigned.

The kernels multiply unsigned by unsigned codes exactly on every processor; signed weights saturate where there is
neither VNNI nor AMX (``bench/onnx_prefill8.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir import packing
from omnic.ir.graph import Node, Value
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage

__all__ = ["CODES", "DTYPES", "SCALE", "ZERO", "back", "is_product", "is_table", "parts_of", "placed"]

Array = NDArray[Any]

CODES, SCALE = "columns", "columns.scale"
DTYPES: Mapping[str, Any] = {CODES: np.uint8, SCALE: np.float32}
#: the unsigned code of 0
ZERO = 128


def is_table(value: Value | None) -> bool:
    """Whether a value is a matrix of symmetric 8-bit codes with a scale a row."""
    if value is None or not value.weight or not isinstance(value.type.element, Storage) or value.type.rank != 2:
        return False
    type = value.type.element
    whole = type.group == 0 and type.axis == -1
    return type.kind == "i8" and whole and not type.asym and type.scale in ("f16", "f32")


def is_product(node: Node) -> bool:
    """Whether a ``linear`` multiplies 8-bit activations, one scale a token, with such a matrix."""
    return node.op == "linear" and node.attrs.get("act") == "i8<per_token>" and is_table(node.operands[1])


def placed(part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a part of a weight [N, K]."""
    return (shape[1], shape[0]) if part == CODES else (shape[0],)


def parts_of(rows: QTensor) -> dict[str, Array]:
    """Return the parts of rows [N, K] as they are before the codes are turned."""
    # Modulo 256 the sum is the same in a byte, whatever the sign.
    return {CODES: rows.codes.astype(np.uint8) + np.uint8(ZERO), SCALE: packing.scale_numbers(rows).reshape(-1)}


def back(type: Storage, parts: Mapping[str, Array]) -> QTensor:
    """Undo :func:`parts_of`."""
    codes = (parts[CODES] - np.uint8(ZERO)).astype(np.int8)
    scale = parts[SCALE].reshape(-1, 1).astype(np.float16 if type.scale == "f16" else np.float32)
    return QTensor(codes, scale, None, type)
