"""States that are not plain blocks of floats: codes with their scales, and floats whose slots fill no whole blocks.

A :class:`Rows` holds exactly the bytes of its type, in u8 codes, f16 or f32 scales and u8 zero points; a read decodes
the live slots of one row into new f32 numbers.  The rules of rounding are those of :mod:`omnic.ir.packing`, in the same
f32 steps, so that equal numbers give equal codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.errors import InputError
from omnic.ir.packing import NF4_LEVELS
from omnic.ir.types import DType, ElementType, Storage

__all__ = ["Rows", "cache_close", "dequantise", "new_rows", "quantise"]

_FLOATS = {DType.F32: torch.float32, DType.F16: torch.float16, DType.BF16: torch.bfloat16}
_PEAK = {"i8": 127.0, "i4": 7.0, "i2": 1.0, "nf4": 1.0}
_OFFSET = {"i8": 128.0, "i4": 8.0, "i2": 2.0, "nf4": 0.0}
_LEVELS = torch.from_numpy(NF4_LEVELS.copy())
_MIDDLES = (_LEVELS[1:] + _LEVELS[:-1]) / 2


def _pack(units: Tensor, bits: int) -> Tensor:
    """Return whole numbers 0..2^bits-1 packed along the last dim, lowest bits first."""
    codes = units.to(torch.uint8)
    if bits == 8:
        return codes
    per = 8 // bits
    codes = F.pad(codes, (0, -codes.shape[-1] % per)).unflatten(-1, (-1, per))
    packed = codes[..., 0]
    for place in range(1, per):
        packed = packed | codes[..., place] << (place * bits)
    return packed


def _unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """Undo :func:`_pack` for a last dim of ``size``; f32 numbers."""
    if bits == 8:
        return packed.float()
    parts = [packed >> place & (2**bits - 1) for place in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)[..., :size].float()


def _groups(x: Tensor, size: int) -> Tensor:
    """Return x [..., K] as [..., groups, size]; a ragged tail is filled with zeros."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def quantise(x: Tensor, type: Storage) -> dict[str, Tensor]:
    """Return codes, scale and zero of x f32[..., K] in groups along its last dim, packed.

    Raises:
        InputError: a scale is beyond f16, or a number is not finite.
    """
    if not torch.isfinite(x).all():
        raise InputError(f"{type}: cannot quantise a state with NaN or infinite numbers")
    width = x.shape[-1]
    groups = _groups(x, type.group or width)
    levels = float(2**type.bits - 1)
    if type.asym:
        low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
        scale, zero = (high - low) / levels, low
    else:
        scale, zero = groups.abs().amax(-1) / _PEAK[type.kind], None
    if type.scale == "one":
        scale = torch.ones_like(scale)
    stored = scale.half() if type.scale == "f16" else scale
    if not torch.isfinite(stored).all():
        raise InputError(f"{type}: the scale of a state is beyond f16", "keep it in f16 or f32")
    numbers = stored.float()
    divisor = torch.where(numbers > 0, numbers, 1.0)
    parts = {} if type.scale == "one" else {"scale": stored}
    if zero is not None:
        shift = (-zero / divisor).round().clamp(0, levels)
        units = ((groups / divisor[..., None]).round() + shift[..., None]).clamp(0, levels)
        parts["zero"] = shift.to(torch.uint8)
    else:
        units = torch.where(numbers[..., None] > 0, groups / divisor[..., None], 0.0)
        if type.kind == "nf4":
            units = torch.bucketize(units, _MIDDLES)
        else:
            peak = _PEAK[type.kind]
            units = units.round().clamp(-peak - 1, peak) + _OFFSET[type.kind]
    return {"codes": _pack(units.flatten(-2)[..., :width], type.bits), **parts}


def dequantise(parts: dict[str, Tensor], type: Storage, width: int) -> Tensor:
    """Return the f32 numbers [..., width] of what :func:`quantise` made."""
    codes = _unpack(parts["codes"], type.bits, width)
    if type.kind == "nf4":
        codes = _LEVELS[codes.long()]
    if type.scale == "one":
        return codes if type.kind == "nf4" else codes - _OFFSET[type.kind]
    groups = _groups(codes, type.group or width)
    shift = parts["zero"].float()[..., None] if type.asym else _OFFSET[type.kind]
    return ((groups - shift) * parts["scale"].float()[..., None]).flatten(-2)[..., :width]


@dataclass
class Rows:
    """One state.

    Attributes:
        element: its type.
        shape: [B, ..., S, D].
        parts: its tensors.  Tokens one by one: [B, S, ..., bytes or groups]; groups along the slots:
            [B, ..., D, bytes or groups]; plain floats: ``codes`` [B, S, ..., D].
    """

    element: ElementType
    shape: tuple[int, ...]
    parts: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(p.numel() * p.element_size() for p in self.parts.values())

    @property
    def blocks(self) -> int:
        """Tokens that share a scale, 0 where each has its own."""
        return self.element.group if isinstance(self.element, Storage) and self.element.axis == -2 else 0

    def clone(self) -> Rows:
        """Return a copy with tensors of its own."""
        return Rows(self.element, self.shape, {n: p.clone() for n, p in self.parts.items()})

    def write(self, row: Tensor, slot: Tensor, x: Tensor) -> None:
        """Round x f32[n, ..., D] and write it to slots ``slot`` [n] of rows ``row`` [n]."""
        fresh = quantise(x, self.element) if isinstance(self.element, Storage) else {"codes": x}
        for name, part in self.parts.items():
            part[row, slot] = fresh[name].to(part.dtype)

    def move(self, row: Tensor, read: Tensor, write: Tensor) -> None:
        """Copy slot ``read`` to ``write`` of each row."""
        for part in self.parts.values():
            part[row, write] = part[row, read]

    def live(self, row: int | slice, slots: int) -> Tensor:
        """Return the first ``slots`` slots of a row (or of rows) as f32 [..., S first, heads..., D].

        That is [slots, ..., D] for one row and [B, slots, ..., D] for a slice.
        """
        if not isinstance(self.element, Storage):
            return self._cut(self.parts["codes"], row, slots).float()
        if self.blocks:
            return self._live_blocks(row, slots)
        parts = {name: self._cut(part, row, slots) for name, part in self.parts.items()}
        return dequantise(parts, self.element, self.shape[-1])

    @staticmethod
    def _cut(part: Tensor, row: int | slice, slots: int) -> Tensor:
        return part[row, :slots]

    def _live_blocks(self, row: int | slice, slots: int) -> Tensor:
        assert isinstance(self.element, Storage)
        size = -(-slots // self.blocks) * self.blocks
        cuts = {"codes": -(-size * self.element.bits // 8), "scale": size // self.blocks, "zero": size // self.blocks}
        parts = {n: p[row][..., : cuts[n]] for n, p in self.parts.items()}
        numbers = dequantise(parts, self.element, min(size, self.shape[-2]))[..., :slots]
        return numbers.movedim(-1, 0 if isinstance(row, int) else 1)

    def every(self) -> Tensor:
        """Return all numbers in the order of the IR, f32 [B, ..., S, D]."""
        return self.live(slice(None), self.shape[-2]).movedim(1, -2)

    def fill(self, x: Tensor) -> None:
        """Write every slot, x [B, ..., S, D]."""
        if self.blocks:
            assert isinstance(self.element, Storage)
            along = Storage(self.element.kind, self.element.group, self.element.asym, self.element.scale)
            for name, part in quantise(x.transpose(-1, -2).contiguous(), along).items():
                self.parts[name].copy_(part)
            return
        batch, slots = self.shape[0], self.shape[-2]
        row, slot = torch.arange(batch).repeat_interleave(slots), torch.arange(slots).repeat(batch)
        self.write(row, slot, x.movedim(-2, 1).flatten(0, 1))


def new_rows(element: ElementType, shape: tuple[int, ...]) -> Rows:
    """Return an empty state of ``shape`` [B, ..., S, D]: it reads as zeros."""
    batch, *middle, slots, width = shape
    if not isinstance(element, Storage):
        return Rows(element, shape, {"codes": torch.zeros((batch, slots, *middle, width), dtype=_FLOATS[element])})
    along = element.axis == -2
    lead = (batch, *middle, width) if along else (batch, slots, *middle)
    size = slots if along else width
    parts = {"codes": torch.zeros((*lead, -(-size * element.bits // 8)), dtype=torch.uint8)}
    if element.scale == "one":
        zero = 7.0 if element.kind == "nf4" else _OFFSET[element.kind]
        codes = _pack(torch.full((size,), zero), element.bits)
        parts["codes"] += codes
    else:
        groups = (*lead, element.groups(size))
        parts["scale"] = torch.zeros(groups, dtype=torch.float16 if element.scale == "f16" else torch.float32)
        if element.asym:
            parts["zero"] = torch.zeros(groups, dtype=torch.uint8)
    return Rows(element, shape, parts)


def cache_close(
    state: Rows, recent: Tensor, index: Tensor, start: Tensor, length: Tensor, *, ring: bool = False
) -> Rows:
    """Quantise, in place, the blocks that end in this call; tokens from ``recent`` [B, ..., N, D] by ``index`` [B, N].

    Blocks of a ring lie modulo its slots.

    Raises:
        InputError: a token of such a block is not recent.
    """
    element, size = state.element, state.blocks
    assert isinstance(element, Storage)
    first, last = start // size, (start + length) // size
    row, step = (torch.arange(int((last - first).max())) < (last - first)[:, None]).nonzero(as_tuple=True)
    block = first[row] + step
    if not len(row):
        return state
    token = block[:, None] * size + torch.arange(size)
    found = index[row][:, None, :] == token[:, :, None]
    if not found.any(-1).all():
        raise InputError("cache_close: a block ends, and not all its tokens are recent")
    place = found.to(torch.uint8).argmax(-1)
    tokens = recent.movedim(-2, 1)[row[:, None], place]
    along = Storage(element.kind, element.group, element.asym, element.scale)
    fresh = quantise(tokens.movedim(1, -1).contiguous(), along)
    wide = size * element.bits // 8
    if ring:
        block = block % (state.shape[-2] // size)
    for name, part in state.parts.items():
        step = wide if name == "codes" else 1
        at = block[:, None] * step + torch.arange(step)
        part.movedim(-1, 1)[row[:, None], at] = fresh[name].movedim(-1, 1)
    return state
