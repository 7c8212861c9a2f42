"""Storage types in numbers: how floats become codes and scales, and how codes lie in bytes.

Every step of quantisation is done in f32 (sums in f64), so that a torch or C twin gives the same codes.  With ``x`` one
group of numbers, ``m`` = max|x| and round() to the nearest whole number, ties to even:

* ``i8 i6 i5 i4 i3 i2`` symmetric: ``q = clamp(round(x / s), -Q - 1, Q)``, ``s = scale(m / Q)``,
  Q = 127, 31, 15, 7, 3, 1;
* asymmetric, over the range that also holds 0: ``s = scale((max - min) / L)``, L = 255, 63, 31, 15, 7, 3,
  ``zero = clamp(round(-min / s), 0, L)``, ``q = clamp(round(x / s) + zero, 0, L)``, x ~ ``(q - zero) s``;
  codes are kept as the signed ``q - (L + 1) / 2``, and the zero point as a u8;
* ``nf4``: ``s = scale(m)`` and the nearest of the 16 levels of QLoRA (arXiv:2305.14314, appendix E), a tie to
  the lower one; ``fp4``: ``s = scale(m / 6)`` and the nearest E2M1 number (OCP Microscaling Formats 1.0, 5.3.3),
  ties to the even mantissa;
* ``t2``: ``s = scale(mean|x|)``, ``q = clamp(round(x / s), -1, 1)`` (BitNet b1.58, arXiv:2402.17764).

``scale()`` rounds to f16, or leaves f32.  ``s4`` scales: ``row = max over groups(v) / 15`` with v the scale before
rounding and one f32 ``row`` per row, ``s = step * row``.  Of the steps ``clamp(n + i, 1, 15)``, n = ceil(v / row),
i = 0, -1, -2, 1 in turn, a group takes the first whose codes have the least squared error (summed in f64); zero
points follow their step.
A group of zeros has scale 0 and codes 0 (with s4: scale 1 times its row).  ``one`` scales are 1 whatever the numbers
are, and are not stored: numbers outside the range of the codes are clamped.  ``e8m0`` scales are the smallest power of
two that is not below the scale before rounding (2^-127 at least), so that no number is clamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from omnic.errors import InputError
from omnic.ir.op import Array
from omnic.ir.types import DType, Storage

__all__ = ["FP4_LEVELS", "NF4_LEVELS", "QTensor", "check_storage", "code_units", "decode", "layout", "nearest_codes",
           "pack_codes", "pack_scales", "packed_parts", "peak_of", "powers", "quantise", "round_scales",
           "scale_numbers", "scale_shape", "unpack_codes", "unpack_scales", "zeros"]

_PEAK = {"i8": 127.0, "i6": 31.0, "i5": 15.0, "i4": 7.0, "i3": 3.0, "i2": 1.0, "nf4": 1.0, "fp4": 6.0, "t2": 1.0}
_OFFSET = {"i8": 128, "i6": 32, "i5": 16, "i4": 8, "i3": 4, "i2": 2, "nf4": 0, "fp4": 0, "t2": 1}
_INTEGERS = ("i8", "i6", "i5", "i4", "i3", "i2")
_SCALE_TYPES = {"f16": np.float16, "f32": np.float32, "s4": np.uint8, "e8m0": np.uint8, "one": np.float32}
#: steps of an s4 scale that are tried, from the one that just holds a group's range
STEP_SHIFTS = (0, -1, -2, 1)

NF4_LEVELS = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)
FP4_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantised tensor, unpacked.

    Attributes:
        codes: int8, of the tensor's shape (fp4 and nf4: 0..15; t2: -1..1; integers: signed).
        scale: the other dims in order, then the groups ([shape[0]] for ``head``): f16 or f32 numbers, u8 in
            1..15 with s4, u8 exponents in 0..254 with e8m0, or f32 ones that are not stored.
        zero: u8 of the shape of ``scale``, or None when symmetric.
        type: the storage type.
        row: with s4 the f32 factor of each row, shape of the other dims, else None.
    """

    codes: Array
    scale: Array
    zero: Array | None
    type: Storage
    row: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the canonical packing."""
        return self.type.bytes(self.shape)

    def parts(self) -> dict[str, Array]:
        """Return the arrays that are present by name (codes, scale, zero, row)."""
        every = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "row": self.row}
        return {name: part for name, part in every.items() if part is not None}

    @classmethod
    def of_parts(cls, type: Storage, parts: Mapping[str, Array]) -> QTensor:
        """Return the tensor of :meth:`parts`."""
        return cls(parts["codes"], parts["scale"], parts.get("zero"), type, parts.get("row"))

    def copy(self) -> QTensor:
        """Return a copy with arrays of its own."""
        return QTensor.of_parts(self.type, {name: part.copy() for name, part in self.parts().items()})

    def pick(self, index: Any) -> QTensor:
        """Return the part at ``index``, which selects along dims before the grouped one (rows stay whole)."""
        return QTensor.of_parts(self.type, {name: part[index] for name, part in self.parts().items()})


def check_storage(type: Storage, shape: tuple[int, ...] | None = None) -> None:
    """Check that a storage type has a meaning, and that a tensor of ``shape`` can have it.

    Raises:
        InputError: it has none.
    """
    if type.asym and type.kind not in _INTEGERS:
        raise InputError(f"{type}: {type.kind} has no zero point", f"only {', '.join(_INTEGERS)} can be asym")
    if type.scale == "s4" and (type.kind == "t2" or type.group == -1):
        raise InputError(f"{type}: s4 scales need groups along a row and a kind other than t2")
    if type.scale == "one" and type.asym:
        raise InputError(f"{type}: a scale of one is not stored, so neither is a zero point")
    if type.group == -1 and type.axis != -1:
        raise InputError(f"{type}: a head scale covers all dims but the first, so it takes no axis")
    if shape is not None and len(shape) < max(-type.axis, 2 if type.group == -1 else 1):
        raise InputError(f"{type}: a tensor of {len(shape)} dims has no such dim to group")


def scale_shape(type: Storage, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of ``scale`` (and ``zero``) for a tensor of ``shape``."""
    if type.group == -1:
        return (shape[0],)
    axis = len(shape) + type.axis
    return (*shape[:axis], *shape[axis + 1 :], type.groups(shape[axis]))


def layout(type: Storage, shape: tuple[int, ...]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of each tensor that holds a quantised tensor of ``shape`` in a file, by name suffix."""
    axis = len(shape) + type.axis
    others = (*shape[:axis], *shape[axis + 1 :])
    scale = scale_shape(type, shape)
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "": (np.dtype(np.uint8), (*others, -(-shape[axis] * type.bits // 8)))}
    if type.scale == "s4":
        found[".scale"] = (np.dtype(np.uint8), (*others, -(-scale[-1] // 2)))
    elif type.scale != "one":
        found[".scale"] = (np.dtype(_SCALE_TYPES[type.scale]), scale)
    if type.asym:
        found[".zero"] = (np.dtype(np.uint8), scale)
    if type.scale == "s4":
        found[".row"] = (np.dtype(np.float32), others)
    return found


def _grouped(x: Array, type: Storage) -> Array:
    """Return ``x`` as [..., groups, size of a group], a ragged tail filled with zeros."""
    if type.group == -1:
        return x.reshape(x.shape[0], -1)
    moved = np.moveaxis(x, type.axis, -1)
    size = moved.shape[-1]
    group = size if type.group == 0 else type.group
    tail = -size % group
    if tail:
        moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], tail), x.dtype)], axis=-1)
    return moved.reshape(*moved.shape[:-1], -1, group)


def _ungrouped(grouped: Array, type: Storage, shape: tuple[int, ...]) -> Array:
    """Undo :func:`_grouped`."""
    if type.group == -1:
        return grouped.reshape(shape)
    flat = grouped.reshape(*grouped.shape[:-2], -1)[..., : shape[type.axis]]
    return np.ascontiguousarray(np.moveaxis(flat, -1, type.axis))


def _absolute_mean(x: Array, type: Storage, shape: tuple[int, ...]) -> Array:
    """Return mean|x| of each group; the tail's filling does not count."""
    # Summed in f64, so that the order of the sum, which differs from twin to twin, cannot be seen.
    total = np.sum(np.abs(x), axis=-1, dtype=np.float64).astype(np.float32)
    if type.group == -1:
        return np.asarray(total / np.float32(x.shape[-1]))
    size, group = shape[type.axis], x.shape[-1]
    counts = np.full(x.shape[-2], group, np.float32)
    counts[-1] = size - group * (x.shape[-2] - 1)
    return np.asarray(total / counts)


def round_scales(value: Array, type: Storage) -> tuple[Array, Array | None, Array]:
    """Return wanted f32 scales [..., groups] as stored, the rows of s4, and the stored scales as f32 numbers.

    Raises:
        InputError: a scale is beyond f16.
    """
    if type.scale == "one":
        return np.ones_like(value), None, np.ones_like(value)
    if type.scale == "f32":
        return value, None, value
    if type.scale == "f16":
        with np.errstate(over="ignore"):
            stored = value.astype(np.float16)
        if np.isinf(stored).any():
            raise InputError(f"{type}: the scale {float(value.max()):.3g} is beyond f16", "use an f32 scale")
        return stored, None, stored.astype(np.float32)
    if type.scale == "e8m0":
        _, above = np.frexp(value)
        exponent = np.where(value == np.ldexp(np.float32(1), above - 1), above - 1, above)
        powered = np.clip(exponent.astype(np.int32) + 127, 0, 254).astype(np.uint8)
        return powered, None, powers(powered)
    row = (np.max(value, axis=-1) / np.float32(15)).astype(np.float32)
    factor: Array = np.where(row > 0, row, np.float32(1))
    steps = np.clip(np.ceil(value / factor[..., None]), 1, 15).astype(np.uint8)
    return steps, row, steps * row[..., None]


def quantise(x: Array, type: Storage) -> QTensor:
    """Return ``x`` in the storage type (the rules are in the module's docstring).

    Raises:
        InputError: the type has no meaning for this shape, a number is not finite, or a scale is beyond f16.
    """
    check_storage(type, x.shape)
    if not np.isfinite(x).all():
        raise InputError(f"{type}: cannot quantise a tensor with NaN or infinite numbers")
    groups = _grouped(x.astype(np.float32, copy=False), type)
    if type.asym:
        low = np.minimum(np.min(groups, axis=-1), np.float32(0))
        high = np.maximum(np.max(groups, axis=-1), np.float32(0))
        value: Array = (high - low) / np.float32(2**type.bits - 1)
    elif type.kind == "t2":
        value = _absolute_mean(groups, type, x.shape)
    else:
        value = np.max(np.abs(groups), axis=-1) / np.float32(_PEAK[type.kind])
    scale, row, numbers = round_scales(value, type)
    codes, zero = _nearest(groups, numbers, type)
    if row is not None:
        scale, codes, zero = _best_steps(groups, scale, row, type)
    return QTensor(_ungrouped(codes, type, x.shape), scale, zero, type, row)


def _nearest(groups: Array, numbers: Array, type: Storage) -> tuple[Array, Array | None]:
    """Return the nearest codes of groups [..., groups, size] with f32 scales [..., groups], and their zero points."""
    divisor: Array = np.where(numbers > 0, numbers, np.float32(1))
    if not type.asym:
        units: Array = groups / divisor[..., None]
        units[numbers <= 0] = 0
        return nearest_codes(units, type), None
    levels = np.float32(2**type.bits - 1)
    low = np.minimum(np.min(groups, axis=-1), np.float32(0))
    shift: Array = np.clip(np.rint(-low / divisor), 0, levels)
    units = np.clip(np.rint(groups / divisor[..., None]) + shift[..., None], 0, levels)
    return (units - _OFFSET[type.kind]).astype(np.int8), shift.astype(np.uint8)


def _best_steps(groups: Array, steps: Array, row: Array, type: Storage) -> tuple[Array, Array, Array | None]:
    """Return the s4 steps near ``steps`` [..., groups] whose codes err least, with the codes and the zero points."""
    best: list[Array] = []
    least: Array = np.zeros(0)
    for shift in STEP_SHIFTS:
        tried = np.clip(steps.astype(np.int16) + shift, 1, 15).astype(np.uint8)
        numbers: Array = tried * row[..., None]
        codes, zero = _nearest(groups, numbers, type)
        units = code_units(codes, type)
        if zero is not None:
            units = units - (zero.astype(np.float32) - np.float32(_OFFSET[type.kind]))[..., None]
        error = np.square(groups - units * numbers[..., None]).sum(axis=-1, dtype=np.float64)
        found = [tried, codes] if zero is None else [tried, codes, zero]
        if not best:
            best, least = found, error
            continue
        better = error < least
        least = np.where(better, error, least)
        best = [np.where(better[..., None] if new.ndim > better.ndim else better, new, old)
                for new, old in zip(found, best, strict=True)]
    return best[0], best[1], best[2] if len(best) > 2 else None


def powers(scale: Array, dtype: DTypeLike = np.float32) -> Array:
    """Return what e8m0 scales stand for: 2^(s - 127); exact in f32 for s up to 254 (255 is not a number there)."""
    return np.ldexp(np.ones((), dtype), scale.astype(np.int32) - 127)


def scale_numbers(q: QTensor, dtype: DTypeLike = np.float32) -> Array:
    """Return the stored scales of ``q`` as numbers; of s4 the steps, still to be multiplied by ``row``."""
    return powers(q.scale, dtype) if q.type.scale == "e8m0" else q.scale.astype(dtype)


def peak_of(type: Storage) -> float:
    """Return the largest magnitude that a symmetric type keeps, in units of its scale."""
    return _PEAK[type.kind]


def code_units(codes: Array, type: Storage, dtype: DTypeLike = np.float32) -> Array:
    """Return what codes stand for in units of their scale; of an asymmetric type before the zero point."""
    kind = np.dtype(dtype)
    if type.kind == "nf4":
        return NF4_LEVELS.astype(kind)[codes]
    if type.kind == "fp4":
        return FP4_LEVELS.astype(kind)[codes]
    return codes.astype(kind)


def nearest_codes(units: Array, type: Storage) -> Array:
    """Return the codes nearest to numbers already divided by their scale, of a symmetric type."""
    if type.kind == "nf4":
        middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / np.float32(2)
        return np.searchsorted(middles, units, side="left").astype(np.int8)
    if type.kind == "fp4":
        size = np.minimum(np.abs(units), np.float32(6))
        step = np.where(size < 2, np.float32(0.5), np.where(size < 4, np.float32(1), np.float32(2)))
        number = np.rint(size / step) * step
        code = np.searchsorted(FP4_LEVELS[:8], number).astype(np.int8)
        return np.where((units < 0) & (code > 0), code + np.int8(8), code)
    peak = int(_PEAK[type.kind])
    whole = np.rint(units)
    return np.clip(whole, -1 if type.kind == "t2" else -peak - 1, peak, out=whole).astype(np.int8)


def decode(q: QTensor, dtype: DTypeLike = np.float32, to: DType | None = None) -> Array:
    """Return the numbers of ``q`` in ``dtype`` (f32 or f64).

    With ``to``, f16 or bf16, they are what arithmetic in it makes of them: levels and numbers are rounded to it.
    """
    type = q.type
    kind = np.dtype(dtype)
    groups = _grouped(code_units(q.codes, type, kind), type)
    if to is not None:
        groups = groups.astype(to.numpy).astype(kind)
    if q.zero is not None:
        shift: Array = q.zero.astype(kind)
        groups -= (shift - _OFFSET[type.kind])[..., None]
    groups *= scale_numbers(q, kind)[..., None]
    if q.row is not None:
        groups *= q.row.astype(kind)[..., None, None]
    if to is not None:
        with np.errstate(over="ignore"):
            groups = groups.astype(to.numpy).astype(kind)
    return _ungrouped(groups, type, q.shape)


def zeros(type: Storage, shape: tuple[int, ...]) -> QTensor:
    """Return the tensor of ``shape`` whose codes, scales and zero points are all 0 (it decodes to 0)."""
    check_storage(type, shape)
    scale = scale_shape(type, shape)
    kind = _SCALE_TYPES[type.scale]
    zero = np.zeros(scale, np.uint8) if type.asym else None
    row = np.zeros(scale[:-1], np.float32) if type.scale == "s4" else None
    start = np.ones(scale, kind) if type.scale == "one" else np.zeros(scale, kind)
    # 0 is the eighth level of nf4; elsewhere code 0 stands for it, or any code with scale 0 does.
    code = 7 if type.kind == "nf4" and type.scale == "one" else 0
    return QTensor(np.full(shape, code, np.int8), start, zero, type, row)


def pack_codes(codes: Array, type: Storage) -> Array:
    """Return codes in the canonical packing: u8 [other dims..., ceil(size * bits / 8)], lowest bits = lowest index.

    Signed integers are stored offset (``i4`` as q + 8, ``i2`` as q + 2, ...), ``t2`` as q + 1, ``i8`` as its two's
    complement byte.  Codes of 3, 5 and 6 bits run on over the ends of bytes.
    """
    moved = np.moveaxis(codes, type.axis, -1)
    if type.bits == 8:
        return np.ascontiguousarray(moved.astype(np.int8)).view(np.uint8)
    unsigned = (moved + _OFFSET[type.kind]).astype(np.uint8)
    if 8 % type.bits:
        bits = np.unpackbits(unsigned[..., None], axis=-1, bitorder="little")[..., : type.bits]
        return np.packbits(bits.reshape(*bits.shape[:-2], -1), axis=-1, bitorder="little")
    per = 8 // type.bits
    tail = -unsigned.shape[-1] % per
    if tail:
        unsigned = np.concatenate([unsigned, np.zeros((*unsigned.shape[:-1], tail), np.uint8)], axis=-1)
    packed = np.zeros((*unsigned.shape[:-1], unsigned.shape[-1] // per), np.uint8)
    for place in range(per):
        packed |= unsigned[..., place::per] << np.uint8(place * type.bits)
    return packed


def unpack_codes(packed: Array, type: Storage, shape: tuple[int, ...]) -> Array:
    """Return the codes (int8, of ``shape``) of bytes in the canonical packing.

    Raises:
        InputError: the bytes have another shape than the packing of ``shape``.
    """
    axis = len(shape) + type.axis
    size = shape[axis]
    want = (*shape[:axis], *shape[axis + 1 :], -(-size * type.bits // 8))
    if packed.shape != want or packed.dtype != np.uint8:
        raise InputError(f"packed codes of {type} for {list(shape)} are u8 {list(want)}, "
                         f"got {packed.dtype} {list(packed.shape)}")
    if type.bits == 8:
        return np.ascontiguousarray(np.moveaxis(packed.view(np.int8), -1, axis))
    codes = _unsigned(packed, type.bits, size).astype(np.int8) - np.int8(_OFFSET[type.kind])
    return np.ascontiguousarray(np.moveaxis(codes, -1, axis))


def _unsigned(packed: Array, bits: int, size: int) -> Array:
    """Return ``size`` unsigned codes of each row of bytes."""
    if 8 % bits:
        single = np.unpackbits(packed, axis=-1, count=size * bits, bitorder="little")
        codes = np.packbits(single.reshape(*packed.shape[:-1], size, bits), axis=-1, bitorder="little")
        return codes[..., 0]
    per = 8 // bits
    unsigned = np.empty((*packed.shape[:-1], packed.shape[-1] * per), np.uint8)
    for place in range(per):
        unsigned[..., place::per] = (packed >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    return unsigned[..., :size]


def packed_parts(q: QTensor) -> dict[str, Array]:
    """Return the tensors that hold ``q`` in a file or in memory, by name suffix, as :func:`layout` declares them."""
    scale = q.scale if q.row is None else pack_scales(q.scale)
    parts = {"": pack_codes(q.codes, q.type), ".scale": scale, ".zero": q.zero, ".row": q.row}
    if q.type.scale == "one":
        del parts[".scale"]
    return {suffix: part for suffix, part in parts.items() if part is not None}


def pack_scales(scale: Array) -> Array:
    """Return s4 scales (1..15) two to a byte along the last dim, the lower index in the low bits."""
    odd = scale.shape[-1] % 2
    even = np.concatenate([scale, np.zeros((*scale.shape[:-1], 1), np.uint8)], axis=-1) if odd else scale
    return even[..., 0::2] | even[..., 1::2] << np.uint8(4)


def unpack_scales(packed: Array, groups: int) -> Array:
    """Return the ``groups`` s4 scales of each row that :func:`pack_scales` packed."""
    pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :groups]
