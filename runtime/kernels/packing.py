"""Weights in the layout of the kernels: panels of 16 outputs, packed and read back, exactly.

What a storage type of the IR becomes (``panel_type`` says it; nothing is rounded):

===================  ======================================================================================
IR                   panels
===================  ======================================================================================
f32 f16 bf16         the same
i8 i5 i6, asym too   i8
i4 i3, asym too      i4 (i3 takes 4 bits)
i2 t2, asym i2 too   i2
fp4                  i8: twice its levels are whole (0, 1, 2, 3, 4, 6, 8, 12), so f32 scales of half the size
nf4                  f32, decoded: its 16 levels are not multiples of one number
groups not along k   f32, decoded
===================  ======================================================================================

Scales stay what they are (f16, f32, s4); ``e8m0`` becomes bf16, which holds every power of two that it has; ``one``
is an f32 scale of 1 for each row, ``head`` the same scale for each row.

Panels lie one after another, so rows can be packed slice by slice: the parts of slices of a multiple of 16 rows, one
behind the other, are the parts of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from omnic.errors import InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor, check_storage, code_units, decode
from omnic.ir.types import DType, ElementType, Storage
from omnic.runtime.kernels.abi import Weight

__all__ = ["CODES", "COLUMNS", "Packed", "PanelType", "pack", "pack_slices", "panel_type", "part_bytes", "unpack",
           "weight_of"]

#: outputs of a panel
COLUMNS = 16

Code = Literal["f32", "f16", "bf16", "i8", "i4", "i2"]
Scale = Literal["f32", "f16", "bf16", "s4"]
#: numbers of the types in omnic_kernels.h
CODES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 2, "i8": 3, "i4": 4, "i2": 5, "s4": 6}
_NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
#: k is padded to a multiple of this
_BLOCK: dict[str, int] = {"f32": 1, "f16": 1, "bf16": 1, "i8": 4, "i4": 32, "i2": 64}
_BITS: dict[str, int] = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "i4": 4, "i2": 2}
#: the code that stands for 0 without zero points, as the panels keep codes (i8: of the unsigned code)
_MIDDLE: dict[str, int] = {"i8": 128, "i4": 8, "i2": 2}
_AS_CODE: dict[str, Code] = {
    "i8": "i8", "i6": "i8", "i5": "i8", "i4": "i4", "i3": "i4", "i2": "i2", "t2": "i2", "fp4": "i8"}
_OFFSET = {"i8": 128, "i6": 32, "i5": 16, "i4": 8, "i3": 4, "i2": 2}


@dataclass(frozen=True)
class PanelType:
    """How a matrix [n, k] lies in panels.

    Attributes:
        code: type of the codes.
        scale: type of the scales, None for plain codes.
        group: numbers along k that share a scale; 0 = a whole row.
        asym: with zero points.
    """

    code: Code
    scale: Scale | None = None
    group: int = 0
    asym: bool = False

    def groups(self, k: int) -> int:
        """Return how many scales a row of k numbers has."""
        return -(-k // self.group) if self.group else 1


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix in panels: what an ``omnic_weight`` points at.

    Attributes:
        type: how it lies.
        n: outputs.
        k: numbers of a row.
        codes: u8 bytes, [ceil(n/16)][...] as omnic_kernels.h has them.
        scales: bytes of the scales, None for plain codes.
        zeros: u8 [ceil(n/16)][groups][16], None when symmetric.
        row: f32 [n] of s4 scales, else None.
    """

    type: PanelType
    n: int
    k: int
    codes: Array
    scales: Array | None = None
    zeros: Array | None = None
    row: Array | None = None

    def parts(self) -> dict[str, Array]:
        """Return the arrays that are there by name (codes, scales, zeros, row)."""
        every = {"codes": self.codes, "scales": self.scales, "zeros": self.zeros, "row": self.row}
        return {name: part for name, part in every.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts().values())


def panel_type(element: ElementType) -> PanelType:
    """Return the panels that hold a weight [n, k] of an element type without rounding.

    Raises:
        InputError: it is no type of weights.
    """
    if isinstance(element, DType):
        if not element.is_float:
            raise InputError(f"{element} is no type of a product's weight",
                             "weights are f32, f16, bf16 or a storage type")
        code: dict[DType, Code] = {DType.F32: "f32", DType.F16: "f16", DType.BF16: "bf16"}
        return PanelType(code[element])
    check_storage(element)
    if element.kind == "nf4" or element.axis != -1:
        return PanelType("f32")
    scales: dict[str, Scale] = {"f16": "f16", "f32": "f32", "s4": "s4", "e8m0": "bf16", "one": "f32"}
    scale = scales[element.scale]
    if element.kind == "fp4" and scale != "s4":
        scale = "f32"
    return PanelType(_AS_CODE[element.kind], scale, max(element.group, 0), element.asym)


def part_bytes(type: PanelType, n: int, k: int) -> dict[str, int]:
    """Return the bytes of each part of a matrix [n, k]."""
    panels, block = -(-n // COLUMNS), _BLOCK[type.code]
    found = {"codes": panels * COLUMNS * -(-k // block) * block * _BITS[type.code] // 8}
    if type.scale is None:
        return found
    scales = panels * COLUMNS * type.groups(k)
    found["scales"] = scales // 2 if type.scale == "s4" else scales * _NUMPY[type.scale].itemsize
    if type.asym:
        found["zeros"] = scales
    if type.scale == "s4":
        found["row"] = 4 * n
    return found


def pack(weight: QTensor | Array) -> Packed:
    """Return a matrix [n, k] in panels.

    Raises:
        InputError: it has other dims than two, or numbers that are no weights.
    """
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise InputError(f"panels hold a matrix [n, k], got the shape {list(weight.shape)}")
    n, k = (int(size) for size in weight.shape)
    if not isinstance(weight, QTensor):
        names = {kind: name for name, kind in _NUMPY.items()}
        if weight.dtype not in names:
            raise InputError(f"a matrix of {weight.dtype} has no panels", "weights are f32, f16, bf16 or quantised")
        return _plain(weight, PanelType(panel_type(DType(names[weight.dtype])).code))
    type = panel_type(weight.type)
    if type.scale is None:
        return _plain(np.asarray(decode(weight)), type)
    scale = _scales(weight, type)
    zeros = None if weight.zero is None else _by_rows(weight.zero, n, k, type)
    codes = _kept(weight, type)
    padded = np.full((_up(n, COLUMNS), _up(k, _BLOCK[type.code])), _MIDDLE[type.code], np.uint8)
    padded[:n, :k] = codes
    if zeros is not None:
        padded[:n, k:] = zeros[:, -1:]
        zeros = _panels(zeros, _MIDDLE[type.code])
    row = None
    if type.scale == "s4":
        assert weight.row is not None
        row = np.ascontiguousarray(weight.row, np.float32)
        if weight.type.kind == "fp4":
            row = row * np.float32(0.5)
        steps = _panels(scale, 0)
        packed_scale = steps[..., :8] | steps[..., 8:] << np.uint8(4)
    else:
        packed_scale = _panels(scale, 0)
    return Packed(type, n, k, _codes(padded, type.code), _bytes(packed_scale),
                  None if zeros is None else _bytes(zeros), row)


def pack_slices(slices: Iterable[QTensor | Array]) -> Iterator[Packed]:
    """Pack a matrix that comes as slices of rows, each but the last of a multiple of 16 rows: put one behind the other,
    their parts are those of the whole.

    Raises:
        InputError: a slice that is not the last has other rows, or a slice is no matrix.
    """
    rows = 0
    for part in slices:
        if rows % COLUMNS:
            raise InputError(f"a slice of {rows} rows is not the last: slices have a multiple of {COLUMNS} rows")
        rows = int(part.shape[0])
        yield pack(part)


def unpack(packed: Packed, to: Storage | None = None) -> QTensor | Array:
    """Return what :func:`pack` packed: a plain array, or the tensor of the storage type ``to``.

    Raises:
        InputError: the panels do not hold ``to``, or a part has the wrong size.
    """
    type, n, k = packed.type, packed.n, packed.k
    for name, size in part_bytes(type, n, k).items():
        part = packed.parts().get(name)
        if part is None or part.nbytes != size:
            raise InputError(f"{name} of panels [{n}, {k}] are {size} bytes, got {0 if part is None else part.nbytes}")
    if type.scale is None:
        panels = packed.codes.view(_NUMPY[type.code]).reshape(-1, k, COLUMNS)
        return np.ascontiguousarray(panels.transpose(0, 2, 1).reshape(-1, k)[:n])
    if to is None or panel_type(to) != type:
        raise InputError(f"panels of {type} do not hold {to}")
    assert packed.scales is not None
    groups = type.groups(k)
    units = _open(packed.codes, type.code, k)[:n, :k]
    zero = None if packed.zeros is None else _columns(packed.zeros.reshape(-1, groups, COLUMNS), n)
    row = packed.row
    if type.scale == "s4":
        assert row is not None
        pairs = packed.scales.reshape(-1, groups, COLUMNS // 2)
        scale = _columns(np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1), n)
    else:
        scale = _columns(packed.scales.view(_NUMPY[type.scale]).reshape(-1, groups, COLUMNS), n)
    if to.kind == "fp4":
        codes = _fp4_codes(units.astype(np.int16) - 128)
        if row is not None:
            row = row * np.float32(2)
        else:
            scale = scale * np.float32(2)
    else:
        offset = _OFFSET[to.kind] if to.asym else _MIDDLE[type.code]
        codes = (units.astype(np.int16) - offset).astype(np.int8)
    return QTensor(codes, _stored(scale, to), zero if to.group != -1 or zero is None else zero[:, 0], to, row)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _plain(weight: Array, type: PanelType) -> Packed:
    n, k = weight.shape
    padded = weight
    if n % COLUMNS:
        padded = np.zeros((_up(n, COLUMNS), k), weight.dtype)
        padded[:n] = weight
    return Packed(type, n, k, _bytes(padded.reshape(-1, COLUMNS, k).transpose(0, 2, 1)))


def _by_rows(part: Array, n: int, k: int, type: PanelType) -> Array:
    """Return scales or zero points as [n, groups]: those of ``head`` are of a row, and ``one`` has one for all."""
    return np.broadcast_to(part.reshape(n, -1), (n, type.groups(k)))


def _scales(weight: QTensor, type: PanelType) -> Array:
    """Return the scales [n, groups] as the panels keep them; of s4 the steps."""
    n, k = weight.shape
    scale = weight.scale
    if weight.type.scale == "one":
        return np.full((n, type.groups(k)), 0.5 if weight.type.kind == "fp4" else 1.0, np.float32)
    if weight.type.scale == "e8m0":
        scale = np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
    if weight.type.kind == "fp4" and type.scale != "s4":
        halved = scale.astype(np.float32) * np.float32(0.5)
        if not np.array_equal(halved * np.float32(2), scale.astype(np.float32)):
            raise InputError(f"{weight.type}: a scale is too small to be halved in f32")
        scale = halved
    kept = scale if type.scale == "s4" else scale.astype(_NUMPY[str(type.scale)])
    return _by_rows(kept, n, k, type)


def _stored(scale: Array, to: Storage) -> Array:
    """Return scales [n, groups] of panels as the storage type keeps them."""
    if to.scale == "e8m0":
        _, exponent = np.frexp(scale.astype(np.float32))
        scale = (exponent + 126).astype(np.uint8)
    elif to.scale == "one":
        scale = np.ones_like(scale)
    elif to.scale == "f16":
        scale = scale.astype(np.float16)
    return np.ascontiguousarray(scale[:, 0] if to.group == -1 else scale)


def _kept(weight: QTensor, type: PanelType) -> Array:
    """Return the codes [n, k] without sign, as the panels keep them."""
    kind = weight.type.kind
    if kind == "fp4":
        twice = code_units(weight.codes, weight.type) * np.float32(2)
        return (twice.astype(np.int16) + 128).astype(np.uint8)
    offset = _OFFSET[kind] if weight.zero is not None else _MIDDLE[type.code]
    return (weight.codes.astype(np.int16) + offset).astype(np.uint8)


def _fp4_codes(twice: Array) -> Array:
    size = np.searchsorted(np.array([0, 1, 2, 3, 4, 6, 8, 12]), np.abs(twice))
    return np.where(twice < 0, size + 8, size).astype(np.int8)


def _panels(values: Array, filling: int) -> Array:
    """Return [n, groups] as [panels, groups, 16], the columns that are not there filled."""
    n, groups = values.shape
    padded = np.full((_up(n, COLUMNS), groups), filling, values.dtype)
    padded[:n] = values
    return np.ascontiguousarray(padded.reshape(-1, COLUMNS, groups).transpose(0, 2, 1))


def _columns(panels: Array, n: int) -> Array:
    """Undo :func:`_panels`."""
    return np.ascontiguousarray(panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:n])


def _codes(padded: Array, code: str) -> Array:
    """Return codes [n, k] (both padded, without sign) in the bytes of panels."""
    panels, k = padded.shape[0] // COLUMNS, padded.shape[1]
    if code == "i8":
        return _bytes((padded ^ np.uint8(128)).reshape(panels, COLUMNS, k // 4, 4).transpose(0, 2, 1, 3))
    per = 2 if code == "i4" else 4
    parts = padded.reshape(panels, COLUMNS, k // (4 * per), per, 4)
    packed = np.zeros((panels, COLUMNS, k // (4 * per), 4), np.uint8)
    for place in range(per):
        packed |= parts[:, :, :, place] << np.uint8(place * 8 // per)
    return _bytes(packed.transpose(0, 2, 1, 3))


def _open(codes: Array, code: str, k: int) -> Array:
    """Undo :func:`_codes`: codes [n, k], both padded, without sign."""
    size = _up(k, _BLOCK[code])
    if code == "i8":
        return (codes ^ np.uint8(128)).reshape(-1, size // 4, COLUMNS, 4).transpose(0, 2, 1, 3).reshape(-1, size)
    per = 2 if code == "i4" else 4
    packed = codes.reshape(-1, size // (4 * per), COLUMNS, 4).transpose(0, 2, 1, 3)
    mask = np.uint8(2 ** (8 // per) - 1)
    parts = np.stack([packed >> np.uint8(place * 8 // per) & mask for place in range(per)], axis=3)
    return parts.reshape(-1, size)


def weight_of(packed: Packed) -> Weight:
    """Return the ``omnic_weight`` of panels, which must outlive it."""
    type = packed.type
    return Weight(
        packed.codes.ctypes.data, None if packed.scales is None else packed.scales.ctypes.data,
        None if packed.zeros is None else packed.zeros.ctypes.data,
        None if packed.row is None else packed.row.ctypes.data,
        packed.n, packed.k, type.group or packed.k, CODES[type.code], CODES[type.scale or "f32"])
