"""Caches of attention in the layout of ``omnic_cache``, made of states and back."""

from __future__ import annotations

from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from omnic.errors import InputError
from omnic.ir.packing import QTensor, pack_codes, unpack_codes
from omnic.ir.types import Storage
from omnic.runtime.kernels.abi import Cache, Number

__all__ = ["HeldCache", "hold"]

Array = np.ndarray[Any, Any]
_PLAIN = {np.dtype(np.float32): Number.F32, np.dtype(np.float16): Number.F16,
          np.dtype(ml_dtypes.bfloat16): Number.BF16}


@dataclass(frozen=True, eq=False)
class HeldCache:
    """A state [B, G, S, D] or [B, S, D] as the kernels read and write it.

    Attributes:
        shape: [B, G, S, D]; G is 1 for a state without heads.
        data: numbers, or packed codes.
        scales: of a storage type, [B, G, S, D / group].
        zeros: of an asymmetric one, the same shape.
        type: the storage type, None for plain numbers.
        ring: slots are reused modulo S.
        blocks: i32 [B, N] block numbers of a paged cache, whose data is one pool of slots for all rows; else None.
        block: tokens of a block.
    """

    shape: tuple[int, int, int, int]
    data: Array
    scales: Array | None
    zeros: Array | None
    type: Storage | None
    ring: bool = False
    blocks: Array | None = None
    block: int = 0

    @property
    def group(self) -> int:
        """Numbers that share a scale; the whole row for plain types."""
        return self.type.group if self.type is not None and self.type.group > 0 else self.shape[3]

    def struct(self) -> Cache:
        """Return the C structure; it points into this object's arrays."""
        _, heads, slots, d = self.shape
        code = Number.I8 if self.type is not None and self.type.kind == "i8" else Number.I4
        kind = _PLAIN[self.data.dtype] if self.type is None else code
        scale_type = Number.F16 if self.scales is not None and self.scales.dtype == np.float16 else Number.F32
        pool = self.blocks is not None
        pages = self.data.shape[2] if pool else slots
        return Cache(
            _at(self.data), _at(self.scales), _at(self.zeros), slots, d, self.group,
            0 if pool else heads * slots * d, pages * d, d,
            _at(self.blocks), 0 if self.blocks is None else self.blocks.shape[1], self.block,
            int(kind), int(scale_type), int(self.ring))

    def state(self) -> Array | QTensor:
        """Return a copy of the state, [B, G, S, D]."""
        if self.type is None:
            return self.data.copy()
        assert self.scales is not None
        shape = (*self.data.shape[:-1], self.shape[3])
        zero = None if self.zeros is None else self.zeros.copy()
        return QTensor(unpack_codes(self.data, self.type, shape), self.scales.copy(), zero, self.type)


def _at(array: Array | None) -> c_void_p | None:
    return None if array is None else c_void_p(array.ctypes.data)


def _with_heads(part: Array, without: bool) -> Array:
    return np.ascontiguousarray(part[:, None] if without else part).copy()


def hold(state: Array | QTensor, ring: bool = False) -> HeldCache:
    """Return a copy of a state as a cache.

    Args:
        state: [B, G, S, D] or [B, S, D] of f32, f16 or bf16, or codes i8 or i4 in groups along D.
        ring: slots are reused modulo S.

    Raises:
        InputError: the kernels have no cache of this type or shape.
    """
    if len(state.shape) not in (3, 4):
        raise InputError(f"a cache is [B, S, D] or [B, G, S, D], not {list(state.shape)}")
    flat = len(state.shape) == 3
    batch, slots, d = state.shape[0], state.shape[-2], state.shape[-1]
    shape = (batch, 1 if flat else state.shape[1], slots, d)
    if not isinstance(state, QTensor):
        if state.dtype not in _PLAIN:
            raise InputError(f"a cache holds f32, f16, bf16, i8 or i4, not {state.dtype}")
        return HeldCache(shape, _with_heads(state, flat), None, None, None, ring)
    kind = state.type
    if kind.kind not in ("i8", "i4") or kind.axis != -1 or kind.group < 0 or kind.scale not in ("f16", "f32"):
        raise InputError(f"the kernels have no cache of {kind}",
                         "i8 or i4 in groups along the last dim, with scales f16 or f32")
    if kind.kind == "i4" and d % 2:
        raise InputError(f"a cache of i4 has rows of an even number of codes, not {d}")
    zeros = None if state.zero is None else _with_heads(state.zero, flat)
    codes = pack_codes(state.codes, kind)
    return HeldCache(shape, _with_heads(codes, flat), _with_heads(state.scale, flat), zeros, kind, ring)
