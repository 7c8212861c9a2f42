"""States that are stored as codes: the buffers of one state, and numbers into codes and back.

A state ``i4<g32, asym>[B, G, S, D]`` is three buffers: its codes u8 [1, S, G, D/2] in the canonical packing (the lowest
bits the lowest index; 8-bit codes are i8), ``.scale`` f16 [1, S, G, D/32] and ``.zero`` u8 of the same shape; with
scales of one only the codes.  Every step is the one of :func:`omnic.ir.packing.quantise`, in f32, in operators that
ExecuTorch has kernels for, so that equal numbers give equal codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.ir.packing import NF4_LEVELS, peak_of
from omnic.ir.types import Storage

__all__ = ["buffers_of", "decode", "empty", "encode"]

_SCALES = {"f16": torch.float16, "f32": torch.float32}
#: what the buffers of a state are called behind its name
_SUFFIXES = ("", ".scale", ".zero")
_ZERO_OF_NF4 = 7


def buffers_of(state: str, names: Iterable[str]) -> dict[str, str]:
    """Return suffix -> name of the buffers of a state that are among ``names``, in order."""
    held = set(names)
    return {s: f"{state}{s}" for s in _SUFFIXES if f"{state}{s}" in held}


def empty(type: Storage, lead: tuple[int, ...], width: int) -> dict[str, Tensor]:
    """Return the buffers of numbers [*lead, width] that are all 0."""
    half = 2 ** (type.bits - 1)
    zero = _ZERO_OF_NF4 if type.kind == "nf4" else half
    if type.bits == 8:
        found = {"": torch.zeros((*lead, width), dtype=torch.int8)}
    else:
        units = torch.full((*lead, width), float(zero if type.scale == "one" else 0))
        found = {"": _packed(units, type.bits)}
    groups = (*lead, type.groups(width))
    if type.scale != "one":
        found[".scale"] = torch.zeros(groups, dtype=_SCALES[type.scale])
    if type.asym:
        found[".zero"] = torch.zeros(groups, dtype=torch.uint8)
    return found


def _packed(units: Tensor, bits: int) -> Tensor:
    """Return whole numbers [..., K] from 0 on as packed bytes; sums of f32 are exact here."""
    per = 8 // bits
    spare = -units.shape[-1] % per
    split = (F.pad(units, (0, spare)) if spare else units).unflatten(-1, (-1, per))
    total = split[..., 0]
    for place in range(1, per):
        total = total + split[..., place] * float(2 ** (bits * place))
    return total.to(torch.uint8)


def _unpacked(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo :func:`_packed`: f32 whole numbers [..., width]."""
    per, step = 8 // bits, float(2**bits)
    rest, parts = packed.float(), []
    for _ in range(per - 1):
        above = torch.floor(rest * (1.0 / step))
        parts.append(rest - above * step)
        rest = above
    units = torch.stack([*parts, rest], -1).flatten(-2)
    return units if units.shape[-1] == width else units[..., :width]


def _grouped(x: Tensor, type: Storage) -> Tensor:
    """Return x [..., K] as [..., groups, size]; a ragged tail is filled with zeros."""
    width = x.shape[-1]
    size = type.group if 0 < type.group < width else width
    spare = -width % size
    return (F.pad(x, (0, spare)) if spare else x).unflatten(-1, (-1, size))


def _ungrouped(groups: Tensor, width: int) -> Tensor:
    flat = groups.flatten(-2)
    return flat if flat.shape[-1] == width else flat[..., :width]


def encode(x: Tensor, type: Storage) -> dict[str, Tensor]:
    """Return the buffers' numbers for x f32 [..., K], by suffix."""
    width, levels, half = x.shape[-1], float(2**type.bits - 1), float(2 ** (type.bits - 1))
    groups = _grouped(x, type)
    found: dict[str, Tensor] = {}
    if type.scale == "one":
        units = groups
    else:
        # ExecuTorch's kernels have amax; the least number is the greatest of the negated ones.
        below = (-groups).amax(-1).clamp(min=0.0)
        above = groups.amax(-1).clamp(min=0.0)
        value = (above + below) / levels if type.asym else torch.maximum(above, below) / peak_of(type)
        found[".scale"] = value.to(_SCALES[type.scale])
        scale = found[".scale"].float()
        divisor = torch.where(scale > 0, scale, 1.0)
        units = groups / divisor[..., None]
        if type.asym:
            shift = (below / divisor).round().clamp(0.0, levels)
            found[".zero"] = shift.to(torch.uint8)
            codes = (units.round() + shift[..., None]).clamp(0.0, levels)
            return {"": _stored(_ungrouped(codes, width), type), **found}
        units = torch.where(scale[..., None] > 0, units, 0.0)
    if type.kind == "nf4":
        levels_of = torch.from_numpy(NF4_LEVELS.copy())
        codes = (units[..., None] > (levels_of[1:] + levels_of[:-1]) / 2).float().sum(-1)
    else:
        peak = peak_of(type)
        codes = units.round().clamp(-peak - 1, peak) + half
    return {"": _stored(_ungrouped(codes, width), type), **found}


def _stored(codes: Tensor, type: Storage) -> Tensor:
    """Return codes that count from 0 as bytes."""
    return (codes - 128.0).to(torch.int8) if type.bits == 8 else _packed(codes, type.bits)


def decode(parts: Mapping[str, Tensor], type: Storage, width: int) -> Tensor:
    """Return the f32 numbers [..., width] that buffers stand for."""
    codes = parts[""]
    # 8-bit codes are signed already, so their zero points are what has to be moved.
    half = 0.0 if type.kind == "nf4" or type.bits == 8 else float(2 ** (type.bits - 1))
    units = codes.float() if type.bits == 8 else _unpacked(codes, type.bits, width)
    if type.kind == "nf4":
        levels = torch.from_numpy(NF4_LEVELS.copy())
        units = levels.index_select(0, units.reshape(-1).long()).reshape(units.shape)
    if type.scale == "one":
        return units - half if half else units
    groups = _grouped(units, type)
    if ".zero" in parts:
        shift = parts[".zero"].float()
        groups = groups - (shift - 128.0 if type.bits == 8 else shift)[..., None]
    elif half:
        groups = groups - half
    return _ungrouped(groups * parts[".scale"].float()[..., None], width)
