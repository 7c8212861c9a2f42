"""GPTQ with 4-bit scales: the step of every group is chosen inside the sweep, by the error that the sweep makes."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from omnic.ir.packing import peak_of
from omnic.ir.types import Storage
from omnic.passes.quantise.grid import Floats, Grid, by_groups, decode_from, round_onto

__all__ = ["columns_with_steps"]

#: factors of the row that are tried: a smaller one gives most groups finer steps and clips the largest
FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8)
#: steps tried around the one that just holds a group's range
SHIFTS = (2, 1, 0, -1, -2, -3, -4)
_STEPS = 15


def columns_with_steps(w: Floats, upper: Floats, type: Storage, clip: bool) -> tuple[npt.NDArray[np.int8], Grid]:
    """Round w [N, K padded] column after column with s4 scales; return the codes [N, K padded] and the grid.

    An s4 scale leaves only the choice of a step from 1 to 15, so a group's columns are swept with every step near the
    one that holds their range, from the weights as the errors before have left them, and the step is kept whose
    columns cost least: the sum of ``(error / U_ii)^2``, which is what GPTQ minimises (arXiv:2210.17323, eq. 2 and 3).
    All of it is done for each of ``FACTORS`` times the row of round to nearest, and each row keeps the factor that
    costs least over all its columns.

    Args:
        w: the matrix.
        upper: upper Cholesky factor U of H^-1, [K padded, K padded].
        type: symmetric codes with s4 scales.
        clip: try smaller steps and rows; False takes those that hold the whole range.
    """
    rows, width = w.shape
    group = type.group or width
    factors, shifts = (FACTORS, SHIFTS) if clip else ((1.0,), (0,))
    range_ = np.abs(by_groups(w, type)).max(-1) / np.float32(peak_of(type))
    least = (range_.max(-1) / np.float32(_STEPS)).astype(np.float32)
    # The rows of w once for each factor: they do not see each other, so one sweep does them all.
    row = np.concatenate([least * np.float32(f) for f in factors])
    divisor = np.where(row > 0, row, np.float32(1))
    work = np.concatenate([w] * len(factors))
    codes = np.zeros(work.shape, np.int8)
    steps = np.ones((len(work), width // group), np.uint8)
    total = np.zeros(len(work), np.float64)
    every = np.arange(len(work))
    for start in range(0, width, group):
        stop = start + group
        own = work[:, start:stop]
        near = np.ceil(np.abs(own).max(-1) / np.float32(peak_of(type)) / divisor)
        tried = np.clip(near[None] + np.asarray(shifts, np.float32)[:, None], 1, _STEPS).astype(np.uint8)
        found, errors = _sweep(own, tried * row[None], upper[start:stop, start:stop], type)
        cost = np.square(errors).sum(-1, dtype=np.float64)
        best = cost.argmin(0)
        codes[:, start:stop], steps[:, start // group] = found[best, every], tried[best, every]
        total += cost[best, every]
        work[:, stop:] -= errors[best, every] @ upper[start:stop, stop:]
    best_factor = cast("npt.NDArray[np.int64]", total.reshape(len(factors), rows).argmin(0))
    kept = cast("npt.NDArray[np.int64]", best_factor * rows + np.arange(rows))
    numbers = (steps[kept] * row[kept, None]).astype(np.float32)
    return codes[kept], Grid(type, steps[kept], numbers, None, row[kept])


def _sweep(own: Floats, scale: Floats, factor: Floats, type: Storage) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round columns own [N, g] in turn with each of the scales [C, N]; return codes and errors over U_ii [C, N, g]."""
    part = np.broadcast_to(own, (len(scale), *own.shape)).copy()
    codes, errors = np.zeros(part.shape, np.int8), np.zeros_like(part)
    for i in range(own.shape[1]):
        column = part[..., i]
        codes[..., i] = round_onto(column, scale, None, type)
        errors[..., i] = (column - decode_from(codes[..., i], scale, None, type)) / factor[i, i]
        part[..., i + 1 :] -= errors[..., i, None] * factor[i, i + 1 :]
    return codes, errors
