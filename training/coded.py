"""Weights that are trained as codes: numbers rounded in every step, beside scales that learn on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnic.errors import InputError
from omnic.ir.packing import FP4_LEVELS, NF4_LEVELS, QTensor, code_units, nearest_codes, peak_of
from omnic.ir.types import Storage

__all__ = ["Coded", "check_trainable"]

_TABLES = {"nf4": NF4_LEVELS, "fp4": np.sort(FP4_LEVELS[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]])}
#: how far inside its cell a number at least begins, in scales: on the edge itself rounding is a toss-up
_INSIDE = 0.02


def check_trainable(name: str, type: Storage, width: int) -> None:
    """Check that a weight with contraction dim ``width`` can be trained in ``type``.

    Raises:
        InputError: it cannot.
    """
    if type.scale not in ("f16", "f32"):
        raise InputError(f"@{name}: {type} cannot be trained, its scales share a row", "use f16 or f32 scales")
    if type.group > 0 and width % type.group:
        raise InputError(f"@{name}: {type} cannot be trained, {type.group} does not divide {width}",
                         "use a smaller group")


class _Decode(torch.autograd.Function):
    """level * scale: the gradient of the level goes to the number, that of the scale to its factor."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, factor: Tensor, level: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
        ctx.save_for_backward(level, scale, unit)
        return level * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        level, scale, unit = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * scale, (gradient * level).sum(-1, keepdim=True) * unit, None, None, None


class Coded(nn.Module):
    """A matrix, or a stack of experts, that gives the numbers of its codes.

    ``latent`` [..., groups, g] is in units of the scale that a group began with, ``factor`` [..., groups, 1] is what
    that scale is multiplied by.  The code is the level nearest to ``latent``; the latent's gradient passes the rounding
    straight through (arXiv:1308.3432).  The factor learns with the codes held, as in LSQ (arXiv:1902.08153) without
    its term for the latent, which has a unit that does not move: so a scale can change without changing a code.

    A number begins where it was before it was quantised, or just inside the cell of the code it was given: what lies
    near an edge then changes its code after few steps, as it would not from the middle of its cell.

    Args:
        numbers: the weight as it was.
        q: the codes to begin with, of its shape; zero points stay as they are.
    """

    unit: Tensor
    zero: Tensor

    def __init__(self, numbers: np.ndarray, q: QTensor) -> None:
        super().__init__()
        self.storage, self.shape = q.type, tuple(q.shape)
        check_trainable("weight", q.type, q.shape[-1])
        group = q.type.group or q.shape[-1]
        grouped = (*self.shape[:-1], -1, group)
        was = torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).reshape(grouped)
        scale = torch.from_numpy(q.scale.astype(np.float32)).unsqueeze(-1)
        # A group of zeros has no scale: it begins with one by which all its numbers lie in the cell of 0.
        scale = torch.where(scale > 0, scale, 4 * was.abs().amax(-1, keepdim=True) + 1e-6)
        offset = 0.0 if q.zero is None else 2.0 ** (q.type.bits - 1) - q.zero.astype(np.float32)[..., None]
        level = torch.from_numpy(code_units(q.codes, q.type).reshape(was.shape) + offset)
        self.register_parameter("zero", _fixed(torch.as_tensor(offset, dtype=torch.float32)))
        self.register_parameter("unit", _fixed(scale))
        low, high = self._cell(level)
        self.latent = nn.Parameter((was / scale).clamp(low, high))
        self.factor = nn.Parameter(torch.ones_like(scale))

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest level; with a zero point they differ by group."""
        if self.storage.asym:
            least = self.zero - 2.0 ** (self.storage.bits - 1)
            return least, least + (2.0**self.storage.bits - 1)
        peak = torch.tensor(peak_of(self.storage))
        return (-peak if self.storage.kind in ("t2", "nf4", "fp4") else -peak - 1), peak

    def _cell(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds between which a number has ``level`` as its nearest one, a little inside."""
        least, greatest = self._bounds()
        if self.storage.kind in _TABLES:
            table = torch.from_numpy(_TABLES[self.storage.kind])
            edges = torch.cat([torch.tensor([-torch.inf]), (table[1:] + table[:-1]) / 2, torch.tensor([torch.inf])])
            at = torch.bucketize(level, (table[1:] + table[:-1]) / 2)
            inside = _INSIDE * torch.minimum((edges[at + 1] - edges[at]), torch.tensor(1.0))
            return edges[at] + inside, edges[at + 1] - inside
        low = torch.where(level <= least, -torch.inf, level - 0.5 + _INSIDE)
        return low, torch.where(level >= greatest, torch.inf, level + 0.5 - _INSIDE)

    def levels(self) -> Tensor:
        """Return the level nearest to each number, in units of the scale [..., groups, g]."""
        latent = self.latent.detach()
        if self.storage.kind in _TABLES:
            table = torch.from_numpy(_TABLES[self.storage.kind])
            return table[torch.bucketize(latent, (table[1:] + table[:-1]) / 2)]
        return latent.round().clamp(*self._bounds())

    def scale(self) -> Tensor:
        """Return the scales as they will be stored, [..., groups, 1]; never 0 or negative."""
        scale = self.unit * self.factor.detach().clamp(min=0.01)
        return scale.half().float() if self.storage.scale == "f16" else scale

    def forward(self) -> Tensor:
        """Return the numbers that the codes stand for, in the weight's shape."""
        return _Decode.apply(self.latent, self.factor, self.levels(), self.scale(), self.unit).reshape(self.shape)

    @torch.no_grad()
    def tensor(self) -> QTensor:
        """Return codes, scales and zero points: they decode to what :meth:`forward` gives."""
        level = self.levels()
        scale = self.scale().squeeze(-1).numpy().astype(np.float16 if self.storage.scale == "f16" else np.float32)
        if not self.storage.asym:
            return QTensor(nearest_codes(level.reshape(self.shape).numpy(), self.storage), scale, None, self.storage)
        middle = 2.0 ** (self.storage.bits - 1)
        codes = (level - self.zero).round().reshape(self.shape).numpy().astype(np.int8)
        zero = (middle - self.zero).squeeze(-1).numpy().astype(np.uint8)
        return QTensor(codes, scale, zero, self.storage)


def _fixed(value: Tensor) -> nn.Parameter:
    """Return a parameter that is no part of the training and yet of every checkpoint."""
    return nn.Parameter(value, requires_grad=False)
