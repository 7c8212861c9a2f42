"""Half-quadratic quantisation: scales that minimise an l_p error of the weights, without any text."""

from __future__ import annotations

import numpy as np

from omnic.ir.packing import QTensor, round_scales
from omnic.ir.types import Storage
from omnic.passes.quantise.grid import Floats, Grid, by_groups, fit_range, padded, search

__all__ = ["hqq", "power_error"]

POWER = 0.7
BETA = 10.0
GROWTH = 1.01
STEPS = 20


def power_error(error: Floats) -> Floats:
    """Return sum |e|^0.7 of each group of errors [N, G, g]."""
    return (np.abs(error) ** np.float32(POWER)).sum(-1)


def hqq(w: Floats, type: Storage) -> QTensor:
    """Return w [N, K] in ``type``, its groups fitted by half-quadratic splitting.

    Minimises ``sum |w - decoded|^p``, p = 0.7, by turns: the errors that the l_p proximal operator keeps apart
    (``e = sign(r) max(|r| - |r|^(p-1) / beta, 0)``, beta = 10, growing by 1.01), then scale and zero point by least
    squares on ``w - e`` for the codes as they are, 20 times (HQQ, Badri and Shaji 2023).  The original keeps a float
    zero point and leaves the scale; here the zero point is a whole number, so both move.  A group takes a step only
    where its l_p error falls, so no group ends above round to nearest.
    """
    columns = w.shape[1]
    groups = by_groups(padded(w, type), type)
    if type.scale == "s4":
        grid = search(groups, type, power_error)
        return grid.tensor(grid.codes(groups).reshape(len(w), -1), columns)
    grid = fit_range(groups, type)
    spread = np.sqrt(np.square(groups).mean(-1, keepdims=True)) + np.float32(1e-12)
    best, cost = grid, power_error(groups - grid.rounded(groups))
    beta = BETA
    for _ in range(STEPS):
        codes = grid.codes(groups)
        # The proximal step is in units of the group's own spread, so that beta means the same everywhere.
        residual = (groups - grid.decoded(codes)) / spread
        size = np.abs(residual)
        kept = np.sign(residual) * np.maximum(size - np.maximum(size, np.float32(1e-6)) ** np.float32(POWER - 1)
                                              / np.float32(beta), np.float32(0))
        grid = _refit(grid, codes, groups - kept * spread)
        found = power_error(groups - grid.rounded(groups))
        better = found < cost
        best, cost = best.where(better, grid), np.where(better, found, cost)
        beta *= GROWTH
    return best.tensor(best.codes(groups).reshape(len(w), -1), columns)


def _refit(grid: Grid, codes: np.ndarray, wanted: Floats) -> Grid:
    """Return the grid whose scale (and whole zero point) fits ``wanted`` [N, G, g] best for the codes as they are."""
    one = Grid(grid.type, grid.stored, np.ones_like(grid.numbers), grid.zero, None)
    if grid.zero is None:
        units = one.decoded(codes)
        square = np.square(units).sum(-1)
        scale = np.where(square > 0, (units * wanted).sum(-1) / np.where(square > 0, square, np.float32(1)),
                         grid.numbers)
        scale = np.where(scale > 0, scale, grid.numbers)
        stored, _, numbers = round_scales(scale.astype(np.float32), grid.type)
        return Grid(grid.type, stored, numbers, None, None)
    top = np.float32(2**grid.type.bits - 1)
    raw = Grid(grid.type, grid.stored, one.numbers, np.zeros_like(grid.zero), None).decoded(codes)
    mean, middle = raw.mean(-1, keepdims=True), wanted.mean(-1, keepdims=True)
    square = np.square(raw - mean).sum(-1)
    slope = ((raw - mean) * (wanted - middle)).sum(-1) / np.where(square > 0, square, np.float32(1))
    slope = np.where((square > 0) & (slope > 0), slope, grid.numbers)
    divisor = np.where(slope > 0, slope, np.float32(1))
    zero = np.clip(np.rint(mean[..., 0] - middle[..., 0] / divisor), 0, top).astype(np.float32)
    units = raw - zero[..., None]
    square = np.square(units).sum(-1)
    scale = np.where(square > 0, (units * wanted).sum(-1) / np.where(square > 0, square, np.float32(1)), slope)
    scale = np.where(scale > 0, scale, grid.numbers)
    stored, _, numbers = round_scales(scale.astype(np.float32), grid.type)
    return Grid(grid.type, stored, numbers, zero, None)
