"""Storage-typed weights as the tensors that ONNX Runtime's kernels read, and back.

The kernels (MatMulNBits, GatherBlockQuantized, QMoE) read rows of 2-, 4- or 8-bit unsigned codes in blocks of 16
to 256 numbers, a power of two, each with an f32 scale and a zero point.  Other storage types are written so that
they stand for the same numbers:

* ``i3`` as 4 bits, ``i5`` and ``i6`` as 8, ``t2`` as 2: the codes are whole numbers already;
* ``fp4`` as 8 bits: twice its levels are whole numbers (0, 1, 2, 3, 4, 6, 8, 12), with half the scale;
* a group of several blocks repeats its scale and zero point (``row`` too), the tail of a row is filled up;
* ``f16`` and ``e8m0`` scales become f32; an ``s4`` scale becomes its product with the row's factor, which lies beside.

What has no such form (``nf4``; groups that no block of 16 divides; groups along another dim) is kept as 8-bit codes
and decoded by the program itself (:func:`parts_of_units`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir import packing
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.blocks import filled

__all__ = ["Blocks", "DTYPES", "blocks_of", "parts_of", "parts_of_units", "rows_back", "units_back", "units_shape"]

Array = NDArray[Any]

SMALLEST, LARGEST = 16, 256
_BITS = {"i8": 8, "i6": 8, "i5": 8, "fp4": 8, "i4": 4, "i3": 4, "i2": 2, "t2": 2}
#: what is added to a signed code of an asymmetric type to give the unsigned one that its zero point belongs to
_SHIFT = {"i8": 128, "i6": 32, "i5": 16, "i4": 8, "i3": 4, "i2": 2}
#: part of a weight -> type of its numbers in the data file
DTYPES: Mapping[str, Any] = {
    "": np.float32,
    "codes": np.uint8,
    "zero": np.uint8,
    "scale": np.float32,
    "row": np.float32,
    "units": np.int8,
    "units.scale": np.float32,
    "units.zero": np.uint8,
    "units.row": np.float32,
}


@dataclass(frozen=True)
class Blocks:
    """How rows of one storage type lie in blocks.

    Attributes:
        type: the storage type.
        width: numbers of a row.
        bits: of a code: 2, 4 or 8.
        block: numbers of a block.
    """

    type: Storage
    width: int
    bits: int
    block: int

    @property
    def count(self) -> int:
        """Blocks of a row, the last one filled up."""
        return -(-self.width // self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last block is filled up."""
        return self.width % self.block > 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's codes."""
        return self.count * self.block * self.bits // 8

    @property
    def per_group(self) -> int:
        """Blocks of a group."""
        group = self.type.group if 0 < self.type.group < self.width else self.count * self.block
        return group // self.block

    @property
    def activation(self) -> str | None:
        """The ``act`` that accuracy level 4 computes with, None where it computes in f32.

        Measured (tests/targets/onnx/test_blocks.py): 4 and 8 bits at every block size, 2 bits at 32 to 128.
        """
        wide = self.bits > 2 or 32 <= self.block <= 128
        return f"i8<g{self.block}>" if wide and not self.ragged else None

    def last(self, part: str) -> int:
        """Return the size of the last dim of a part."""
        return {
            "codes": self.row_bytes,
            "scale": self.count,
            "zero": -(-self.count * self.bits // 8),
            "row": 1,
        }[part]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a weight of this form has in the data file."""
        more = (("zero",) if self.type.asym else ()) + (("row",) if self.type.scale == "s4" else ())
        return ("codes", "scale", *more)


def blocks_of(type: Storage, width: int) -> Blocks | str:
    """Return how rows of ``width`` numbers lie in blocks, or why they cannot."""
    if type.kind not in _BITS:
        return f"the levels of {type.kind} are not evenly spaced"
    if type.axis != -1 or type.group == -1:
        return "the groups do not run along the contraction dim"
    group = type.group
    if group <= 0 or group >= width:
        sizes = [b for b in (256, 128, 64, 32, 16) if width % b == 0]
        return Blocks(type, width, _BITS[type.kind], sizes[0] if sizes else 32)
    block = group & -group
    if block < SMALLEST:
        return f"no block of {SMALLEST} or more divides groups of {group}"
    return Blocks(type, width, _BITS[type.kind], min(block, LARGEST))


# -- writing ---------------------------------------------------------------------------------------------
def parts_of(form: Blocks, q: QTensor) -> dict[str, Array]:
    """Return the parts of rows [..., N, K] in the file's layout."""
    width = int(np.prod(q.shape[1:], dtype=np.int64))
    return filled((0, q.shape[0]), width, lambda start, stop: _parts_of(form, q.pick(slice(start, stop))))


def _parts_of(form: Blocks, q: QTensor) -> dict[str, Array]:
    kind, half = form.type.kind, 1 << (form.bits - 1)
    units = (packing.FP4_LEVELS * 2)[q.codes].astype(np.int16) if kind == "fp4" else q.codes
    # Modulo 256 the sum is the same in a byte, whatever the sign.
    unsigned = units.astype(np.uint8) + np.uint8(_SHIFT[kind] if form.type.asym else half)
    fill = form.count * form.block - form.width
    if fill:
        unsigned = np.concatenate([unsigned, np.full((*unsigned.shape[:-1], fill), half, np.uint8)], axis=-1)
    found = {"codes": _packed(unsigned, form.bits), "scale": _spread(form, _scales(q))}
    if q.zero is not None:
        zero = _spread(form, q.zero)
        tail = -zero.shape[-1] % (8 // form.bits)
        found["zero"] = _packed(np.concatenate([zero, np.zeros((*zero.shape[:-1], tail), np.uint8)], -1), form.bits)
    if q.row is not None:
        found["row"] = q.row[..., None].astype(np.float32)
    return found


def _scales(q: QTensor) -> Array:
    """Return the scales as f32 numbers: of whole numbers, so half of fp4's."""
    scale = packing.scale_numbers(q)
    if q.row is not None:
        scale = scale * q.row[..., None]
    return scale * np.float32(0.5) if q.type.kind == "fp4" else scale


def _spread(form: Blocks, of_group: Array) -> Array:
    """Return one number a block from one a group."""
    return np.repeat(of_group, form.per_group, axis=-1)[..., : form.count]


def _packed(unsigned: Array, bits: int) -> Array:
    """Return codes in bytes, the lowest bits first."""
    per = 8 // bits
    if bits == 4:
        pairs = np.ascontiguousarray(unsigned).view(np.dtype("<u2"))
        return (pairs | pairs >> np.uint16(4)).astype(np.uint8)
    packed = np.zeros((*unsigned.shape[:-1], unsigned.shape[-1] // per), np.uint8)
    for place in range(per):
        packed |= unsigned[..., place::per] << np.uint8(place * bits)
    return packed


def _unpacked(packed: Array, bits: int) -> Array:
    per = 8 // bits
    found = np.empty((*packed.shape[:-1], packed.shape[-1] * per), np.uint8)
    for place in range(per):
        found[..., place::per] = (packed >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    return found


# -- reading back ----------------------------------------------------------------------------------------
def rows_back(form: Blocks, parts: Mapping[str, Array]) -> QTensor:
    """Undo :func:`parts_of`."""
    type, half = form.type, 1 << (form.bits - 1)
    unsigned = _unpacked(parts["codes"], form.bits)[..., : form.width].astype(np.int16)
    units = unsigned - (_SHIFT[type.kind] if type.asym else half)
    if type.kind == "fp4":
        levels = np.rint(packing.FP4_LEVELS * 2).astype(np.int16)
        place = np.zeros(int(levels.max()) * 2 + 1, np.int8)
        # The first of two codes for 0 is the one that is written.
        for code in reversed(range(len(levels))):
            place[levels[code] + levels.max()] = code
        units = place[units + levels.max()]
    every = slice(None, None, form.per_group)
    zero = _unpacked(parts["zero"], form.bits)[..., : form.count][..., every] if type.asym else None
    row = parts["row"][..., 0] if type.scale == "s4" else None
    scale = _stored_scale(type, parts["scale"][..., every], row)
    return QTensor(units.astype(np.int8), scale, zero, type, row)


def _stored_scale(type: Storage, scale: Array, row: Array | None) -> Array:
    if type.kind == "fp4":
        scale = scale * np.float32(2)
    if row is not None:
        factor = np.where(row > 0, row, np.float32(1))[..., None]
        return np.clip(np.rint(scale / factor), 1, 15).astype(np.uint8)
    return _rounded_back(type, scale)


def _rounded_back(type: Storage, scale: Array) -> Array:
    """Return f32 scales as the storage type keeps them."""
    if type.scale == "e8m0":
        return (np.frexp(scale)[1] + 126).astype(np.uint8)
    return scale.astype({"f16": np.float16, "s4": np.uint8}.get(type.scale, np.float32), copy=False)


# -- weights that the program decodes --------------------------------------------------------------------
def parts_of_units(q: QTensor) -> dict[str, Array]:
    """Return codes as they are, one to a byte, and the scales as f32."""
    found = {"units": q.codes, "units.scale": packing.scale_numbers(q)}
    if q.zero is not None:
        found["units.zero"] = q.zero
    if q.row is not None:
        found["units.row"] = q.row
    return found


def units_shape(type: Storage, shape: tuple[int, ...], part: str) -> tuple[int, ...] | None:
    """Return the shape of a part of a weight of ``shape``, None when the type has no such part."""
    scale = packing.scale_shape(type, shape)
    if part == "units":
        return shape
    if part == "units.scale":
        return scale
    if part == "units.zero":
        return scale if type.asym else None
    return scale[:-1] if type.scale == "s4" else None


def units_back(type: Storage, parts: Mapping[str, Array]) -> QTensor:
    """Undo :func:`parts_of_units`."""
    scale = _rounded_back(type, parts["units.scale"])
    return QTensor(parts["units"], scale, parts.get("units.zero"), type, parts.get("units.row"))
