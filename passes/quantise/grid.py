"""The grid of a storage type as the methods use it: scales and zero points of groups, and rounding onto them.

A matrix is [N, K], its groups run along K.  Methods work on a padded copy whose K is a whole number of groups;
the padding is cut away when the result becomes a :class:`omnic.ir.packing.QTensor`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnic.ir.packing import QTensor, code_units, nearest_codes, peak_of, round_scales
from omnic.ir.types import Storage

__all__ = ["SHRINKS", "Floats", "Grid", "Metric", "by_groups", "fit_range", "padded", "search"]

Floats = npt.NDArray[np.float32]
Metric = Callable[[Floats], Floats]
"""The cost of errors [N, G, g] of each group: [N, G]."""

#: factors of the range that a clip search tries
SHRINKS = tuple(1.0 - 0.025 * i for i in range(17))


def padded(w: Floats, type: Storage) -> Floats:
    """Return w [N, K] with zeros behind a ragged last group."""
    group = type.group or w.shape[1]
    tail = -w.shape[1] % group
    return np.pad(w, ((0, 0), (0, tail))) if tail else w


def by_groups(w: Floats, type: Storage) -> Floats:
    """Return a padded w [N, K] as [N, G, g]."""
    return w.reshape(len(w), -1, type.group or w.shape[1])


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of every group of a matrix.

    Attributes:
        type: the storage type.
        stored: the scales as files hold them [N, G].
        numbers: the same as f32 numbers.
        zero: zero points as f32 whole numbers [N, G], None when symmetric.
        row: with s4 scales the f32 factor of each row [N].
    """

    type: Storage
    stored: npt.NDArray[np.generic]
    numbers: Floats
    zero: Floats | None
    row: Floats | None

    def codes(self, w: Floats) -> npt.NDArray[np.int8]:
        """Return the nearest codes of w [N, G, g]."""
        return round_onto(w, self.numbers[..., None], None if self.zero is None else self.zero[..., None], self.type)

    def decoded(self, codes: npt.NDArray[np.int8]) -> Floats:
        """Return the numbers of codes [N, G, g]."""
        return decode_from(codes, self.numbers[..., None], None if self.zero is None else self.zero[..., None],
                           self.type)

    def rounded(self, w: Floats) -> Floats:
        """Return w [N, G, g] rounded onto the grid."""
        return self.decoded(self.codes(w))

    def tensor(self, codes: npt.NDArray[np.int8], columns: int) -> QTensor:
        """Return the quantised matrix of codes [N, K padded], cut to ``columns``."""
        zero = None if self.zero is None else self.zero.astype(np.uint8)
        cut = np.ascontiguousarray(codes[:, :columns])
        return QTensor(cut, self.stored, zero, self.type, self.row)

    def where(self, better: npt.NDArray[np.bool_], other: Grid) -> Grid:
        """Return the grid that takes ``other``'s scale and zero point where ``better`` [N, G]; rows are this one's."""
        zero = None if self.zero is None or other.zero is None else np.where(better, other.zero, self.zero)
        return Grid(self.type, np.where(better, other.stored, self.stored),
                    np.where(better, other.numbers, self.numbers), zero, self.row)


def _middle(type: Storage) -> np.float32:
    return np.float32(2 ** (type.bits - 1))


def round_onto(w: Floats, scale: Floats, zero: Floats | None, type: Storage) -> npt.NDArray[np.int8]:
    """Return the nearest codes of w with scales and zero points that broadcast to it."""
    units: Floats = np.where(scale > 0, w / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    if zero is None:
        return nearest_codes(units, type)
    top = np.float32(2**type.bits - 1)
    return (np.clip(np.rint(units) + zero, 0, top) - _middle(type)).astype(np.int8)


def decode_from(codes: npt.NDArray[np.int8], scale: Floats, zero: Floats | None, type: Storage) -> Floats:
    """Return the numbers of codes with scales and zero points that broadcast to them."""
    units = code_units(codes, type)
    return units * scale if zero is None else (units - (zero - _middle(type))) * scale


def fit_range(w: Floats, type: Storage, shrink: float | Floats = 1.0) -> Grid:
    """Return the grid of w [N, G, g] by the rule of round to nearest, over ``shrink`` times the range.

    Raises:
        InputError: a scale is beyond f16.
    """
    factor = np.float32(shrink)
    if type.asym:
        top = np.float32(2**type.bits - 1)
        low = np.minimum(w.min(-1), np.float32(0)) * factor
        high = np.maximum(w.max(-1), np.float32(0)) * factor
        stored, row, numbers = round_scales((high - low) / top, type)
        zero = np.clip(np.rint(-low / np.where(numbers > 0, numbers, np.float32(1))), 0, top).astype(np.float32)
        return Grid(type, stored, numbers, zero, row)
    size = np.abs(w)
    value = (size.mean(-1, dtype=np.float64).astype(np.float32) if type.kind == "t2"
             else size.max(-1) / np.float32(peak_of(type)))
    stored, row, numbers = round_scales(value * factor, type)
    return Grid(type, stored, numbers, None, row)


def with_steps(grid: Grid, steps: npt.NDArray[np.uint8], w: Floats) -> Grid:
    """Return an s4 grid with the same rows and other steps [N, G]; asymmetric zero points follow the range of w."""
    assert grid.row is not None
    numbers = (steps * grid.row[:, None]).astype(np.float32)
    zero = None
    if grid.zero is not None:
        top = np.float32(2**grid.type.bits - 1)
        low, high = np.minimum(w.min(-1), np.float32(0)), np.maximum(w.max(-1), np.float32(0))
        share = np.where(high > low, -low / np.where(high > low, high - low, np.float32(1)), np.float32(0))
        zero = np.rint(share * top).astype(np.float32)
    return Grid(grid.type, steps, numbers, zero, grid.row)


def search(w: Floats, type: Storage, metric: Metric, shrinks: tuple[float, ...] = SHRINKS) -> Grid:
    """Return the grid of w [N, G, g] whose rounding costs least, group by group.

    Ordinary scales try ``shrinks`` of the range, ternary ones 0.5 to 1.5 of the mean magnitude; s4 scales try the
    steps near each group's own for a few factors of the row, and keep the row factor that costs least in all.
    """
    if type.scale == "s4":
        return _search_steps(w, type, metric)
    if type.kind == "t2":
        shrinks = tuple(0.5 + 0.05 * i for i in range(21))
    best = fit_range(w, type, shrinks[0])
    cost = metric(w - best.rounded(w))
    for shrink in shrinks[1:]:
        other = fit_range(w, type, shrink)
        found = metric(w - other.rounded(w))
        better = found < cost
        best, cost = best.where(better, other), np.where(better, found, cost)
    return best


def _search_steps(w: Floats, type: Storage, metric: Metric) -> Grid:
    best: Grid | None = None
    total = np.zeros(0, np.float32)
    for factor in (1.0, 0.95, 0.9, 0.85, 0.8):
        start = fit_range(w, type)
        assert start.row is not None
        row = start.row * np.float32(factor)
        grid = with_steps(Grid(type, start.stored, start.numbers, start.zero, row), start.stored.astype(np.uint8), w)
        cost = metric(w - grid.rounded(w))
        for shift in (2, 1, -1, -2, -3, -4):
            steps = np.clip(start.stored.astype(np.int16) + shift, 1, 15).astype(np.uint8)
            other = with_steps(grid, steps, w)
            found = metric(w - other.rounded(w))
            better = found < cost
            grid, cost = grid.where(better, other), np.where(better, found, cost)
        if best is None:
            best, total = grid, cost.sum(-1)
            continue
        rows = cost.sum(-1) < total
        total = np.where(rows, cost.sum(-1), total)
        assert best.row is not None
        mixed = best.where(np.broadcast_to(rows[:, None], cost.shape), grid)
        best = Grid(type, mixed.stored, mixed.numbers, mixed.zero, np.where(rows, row, best.row))
    assert best is not None
    return best
