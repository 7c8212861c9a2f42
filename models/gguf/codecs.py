"""Tensor types of GGUF: how their blocks lie in bytes and what numbers they stand for.

Source: ggml's ``ggml-common.h`` (layouts) and ``ggml-quants.c`` (``dequantize_row_*``, ``quantize_row_*_ref``).  All
arithmetic is f32 in the order ggml does it, so the numbers are its to the bit.  A block is a run of neighbouring
numbers of the innermost dim:

=======  ======  =====  =============================================================================
type     values  bytes  contents
=======  ======  =====  =============================================================================
Q8_0     32      34     f16 d; 32 i8 q                                   x = d q
Q4_0     32      18     f16 d; 32 nibbles q (first half low)             x = d (q - 8)
Q5_0     32      22     f16 d; 32 high bits; 32 nibbles                  x = d (q - 16)
Q4_K     256     144    f16 d, dmin; 8 pairs of 6-bit (s, m); nibbles    x = d s q - dmin m, by 32
Q5_K     256     176    as Q4_K, and 256 high bits                       x = d s q - dmin m, by 32
Q6_K     256     210    low nibbles, high pairs of bits, 16 i8 s, f16 d  x = d s (q - 32), by 16
=======  ======  =====  =============================================================================

Q8_0, Q4_0 and Q5_0 are the storage types ``i8<g32>``, ``i4<g32>`` and ``i5<g32>``.  Q6_K is ``i6<g16, f32>``: d s has
at most 19 significant bits, so an f32 scale holds it exactly.  Q4_K and Q5_K subtract a second product, which
no storage type does; they are read as f32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage

__all__ = ["CODECS", "TYPE_NAMES", "Codec", "encode_q4_0", "encode_q8_0", "pack_q4_0", "pack_q5_0", "pack_q8_0"]

TYPE_NAMES: Mapping[int, str] = dict(enumerate(
    ("F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
     "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
     "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8",
     "IQ4_NL_8_8", "MXFP4", "NVFP4"))
)  # fmt: skip

PIECE = 1 << 20
"""Numbers that are decoded at a time: several copies of them are held."""

Decode = Callable[[Array], Array]
Pack = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Codec:
    """One tensor type.

    Attributes:
        name: ggml's name.
        identity: its number in files.
        values: numbers of a block.
        bytes: bytes of a block.
        decode: u8[n, bytes] -> f32[n, values] (the plain types in their own dtype).
        storage: the storage type that holds the same codes, or None.
        codes: for a storage type, u8[n, bytes] -> (codes i8[n, values], scales [n, groups of the block]).
    """

    name: str
    identity: int
    values: int
    bytes: int
    decode: Decode
    storage: Storage | None = None
    codes: Pack | None = None

    def row_bytes(self, size: int) -> int:
        """Return the bytes of a row of ``size`` numbers, a multiple of the block."""
        return size // self.values * self.bytes

    def numbers(self, rows: Array) -> Array:
        """Return the numbers of u8[rows, bytes of a row]."""
        shape = (rows.shape[0], rows.shape[1] // self.bytes * self.values)
        if self.values == 1:
            return self.decode(rows.reshape(-1, self.bytes)).reshape(shape)
        numbers = np.empty(shape, np.float32)
        step = max(PIECE // max(shape[1], 1), 1)
        with np.errstate(invalid="ignore", over="ignore"):  # of damaged scales; whoever reads numbers checks them
            for start in range(0, shape[0], step):
                part = rows[start : start + step]
                numbers[start : start + step] = self.decode(part.reshape(-1, self.bytes)).reshape(-1, shape[1])
        return numbers

    def packed(self, rows: Array) -> QTensor:
        """Return u8[rows, bytes of a row] as codes and scales of ``storage``."""
        assert self.storage is not None and self.codes is not None
        with np.errstate(invalid="ignore"):
            codes, scales = self.codes(rows.reshape(-1, self.bytes))
        blocks = rows.shape[1] // self.bytes
        scales = scales.reshape(rows.shape[0], blocks * (self.values // self.storage.group))
        return QTensor(codes.reshape(rows.shape[0], blocks * self.values), scales, None, self.storage)


def _f16(blocks: Array, at: int) -> Array:
    """Return the f16 at byte ``at`` of every block: f16[n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _wide(blocks: Array, at: int) -> Array:
    return _f16(blocks, at).astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """Return the low halves of u8[n, k], then the high ones: u8[n, 2 k]."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def _plain(dtype: Any) -> Decode:
    return lambda blocks: np.ascontiguousarray(blocks).view(dtype)


def _q8_0(blocks: Array) -> tuple[Array, Array]:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _f16(blocks, 0)


def _q4_0(blocks: Array) -> tuple[Array, Array]:
    return _nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8), _f16(blocks, 0)


def _q5_0(blocks: Array) -> tuple[Array, Array]:
    high = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")
    return (_nibbles(blocks[:, 6:]) | high << np.uint8(4)).astype(np.int8) - np.int8(16), _f16(blocks, 0)


def _q6_k(blocks: Array) -> tuple[Array, Array]:
    """Return codes and f32 scales d s of groups of 16."""
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    nibbles = _nibbles(low).reshape(-1, 2, 4, 32)  # of a half of the block, numbers 0..31, 32..63, ...
    pairs = np.stack([high >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=2)
    codes = (nibbles | pairs << np.uint8(4)).astype(np.int8) - np.int8(32)
    steps = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return codes.reshape(-1, 256), _wide(blocks, 208) * steps


def _k_scales(packed: Array) -> tuple[Array, Array]:
    """Return the 6-bit scales and minima of u8[n, 12], f32[n, 8] each (``get_scale_min_k4``)."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    top = np.uint8(6)
    scale = np.concatenate([first & np.uint8(63), third & np.uint8(15) | first >> top << np.uint8(4)], axis=-1)
    least = np.concatenate([second & np.uint8(63), third >> np.uint8(4) | second >> top << np.uint8(4)], axis=-1)
    return scale.astype(np.float32), least.astype(np.float32)


def _k_numbers(blocks: Array, codes: Array) -> Array:
    """Return d s q - dmin m of u8[n, 8, 32] codes."""
    scale, least = _k_scales(blocks[:, 4:16])
    step, base = _wide(blocks, 0) * scale, _wide(blocks, 2) * least
    return (step[..., None] * codes.astype(np.float32) - base[..., None]).reshape(-1, 256)


def _q4_k(blocks: Array) -> Array:
    return _k_numbers(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Array) -> Array:
    high = np.stack([blocks[:, 16:48] >> np.uint8(bit) & np.uint8(1) for bit in range(8)], axis=1)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_numbers(blocks, low | high << np.uint8(4))


def _scaled(codes: Pack, group: int) -> Decode:
    """Return the numbers of codes with a scale: exact products but for the one rounding of f32."""
    def decode(blocks: Array) -> Array:
        found, scales = codes(blocks)
        grouped = found.reshape(len(found), -1, group).astype(np.float32)
        return (scales.astype(np.float32)[..., None] * grouped).reshape(found.shape)

    return decode


_EVERY = (
    Codec("F32", 0, 1, 4, _plain(np.float32)),
    Codec("F16", 1, 1, 2, _plain(np.float16)),
    Codec("BF16", 30, 1, 2, _plain(ml_dtypes.bfloat16)),
    Codec("Q8_0", 8, 32, 34, _scaled(_q8_0, 32), Storage("i8", 32), _q8_0),
    Codec("Q4_0", 2, 32, 18, _scaled(_q4_0, 32), Storage("i4", 32), _q4_0),
    Codec("Q5_0", 6, 32, 22, _scaled(_q5_0, 32), Storage("i5", 32), _q5_0),
    Codec("Q4_K", 12, 256, 144, _q4_k),
    Codec("Q5_K", 13, 256, 176, _q5_k),
    Codec("Q6_K", 14, 256, 210, _scaled(_q6_k, 16), Storage("i6", 16, scale="f32"), _q6_k),
)

CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _EVERY}
"""Every type omnic reads, by ggml's name."""


# -- writing --------------------------------------------------------------------------------------------


def pack_q8_0(q: QTensor) -> Array:
    """Return ``i8<g32>`` [rows, K] as blocks: u8[rows, bytes of a row]."""
    rows = q.codes.shape[0]
    codes = q.codes.reshape(-1, 32).view(np.uint8)
    return np.concatenate([_scale_bytes(q), codes], axis=-1).reshape(rows, -1)


def pack_q4_0(q: QTensor) -> Array:
    """Return ``i4<g32>`` [rows, K] as blocks: u8[rows, bytes of a row]."""
    rows = q.codes.shape[0]
    nibbles = (q.codes.reshape(-1, 32) + 8).astype(np.uint8)
    packed = nibbles[:, :16] | nibbles[:, 16:] << np.uint8(4)
    return np.concatenate([_scale_bytes(q), packed], axis=-1).reshape(rows, -1)


def pack_q5_0(q: QTensor) -> Array:
    """Return ``i5<g32>`` [rows, K] as blocks: u8[rows, bytes of a row]."""
    rows = q.codes.shape[0]
    codes = (q.codes.reshape(-1, 32) + 16).astype(np.uint8)
    high = np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")
    low = codes & np.uint8(15)
    return np.concatenate([_scale_bytes(q), high, low[:, :16] | low[:, 16:] << np.uint8(4)], axis=-1).reshape(rows, -1)


def _scale_bytes(q: QTensor) -> Array:
    return np.ascontiguousarray(q.scale.reshape(-1, 1).astype("<f2")).view(np.uint8)


def encode_q8_0(numbers: Array) -> QTensor:
    """Round f32[rows, K] as ``quantize_row_q8_0_ref`` does: d = max|x| / 127, q = roundf(x / d)."""
    blocks = numbers.reshape(-1, 32).astype(np.float32, copy=False)
    step = np.abs(blocks).max(axis=-1) / np.float32(127)
    codes = _away(blocks * _inverse(step)[:, None]).astype(np.int8)
    return _quantised(codes, step, numbers.shape, "i8")


def encode_q4_0(numbers: Array) -> QTensor:
    """Round f32[rows, K] as ``quantize_row_q4_0_ref`` does: d = (the x of most magnitude) / -8."""
    blocks = numbers.reshape(-1, 32).astype(np.float32, copy=False)
    most = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    step = most / np.float32(-8)
    shifted = blocks * _inverse(step)[:, None] + np.float32(8.5)
    codes = np.minimum(shifted.astype(np.int8), np.int8(15)) - np.int8(8)
    return _quantised(codes, step, numbers.shape, "i4")


def _inverse(step: Array) -> Array:
    return np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)


def _away(numbers: Array) -> Array:
    """Round to the nearest whole number, ties away from 0 (C's roundf)."""
    whole = np.trunc(numbers)
    return whole + np.where(np.abs(numbers - whole) >= np.float32(0.5), np.sign(numbers), np.float32(0))


def _quantised(codes: Array, step: Array, shape: tuple[int, ...], kind: Any) -> QTensor:
    with np.errstate(over="ignore"):
        scales = step.astype(np.float16)
    return QTensor(codes.reshape(shape), scales.reshape(*shape[:-1], -1), None, Storage(kind, 32))
