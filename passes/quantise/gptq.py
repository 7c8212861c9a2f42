"""GPTQ (arXiv:2210.17323): columns are rounded one after another, and each error is paid for by the columns to come."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.passes.quantise.grid import (
    Floats,
    Grid,
    by_groups,
    decode_from,
    fit_range,
    padded,
    round_onto,
    search,
)
from omnic.passes.quantise.steps import columns_with_steps

__all__ = ["gptq", "output_error"]

BLOCK = 128
_STEEPER = 10.0
_TRIES = 4


def output_error(w: Floats, rounded: Floats, gram: Floats) -> float:
    """Return mean ||(w - rounded) x||^2 over the inputs whose mean outer product is ``gram`` [K, K]."""
    error = (w - rounded).astype(np.float64)
    return float(np.einsum("nk,nk->", error @ gram, error))


def gptq(w: Floats, gram: Floats, type: Storage, damp: float = 0.01, order: bool = False, clip: bool = True,
         sweeps: int = 0) -> QTensor:
    """Return w [N, K] in ``type`` so that the outputs on the calibration inputs change little.

    Args:
        w: the matrix.
        gram: mean x x^T of its inputs, [K, K]; H = 2 gram (the factor changes nothing).
        type: groups along K.
        damp: share of the mean of H's diagonal that is added to the diagonal.
        order: columns with the largest H_kk first (act-order); scales are then those of the original weights.
        clip: scales that minimise the error weighted by H's diagonal, instead of the whole range (s4 without
            ``order``: the error of the sweep itself).
        sweeps: passes of coordinate descent over the codes afterwards (QuantEase, arXiv:2309.01885).

    Raises:
        InputError: the Gram matrix holds NaN, or has no inverse however much is added to its diagonal.
    """
    columns = w.shape[1]
    padded_w = padded(w, type)
    extra = padded_w.shape[1] - columns
    hessian = np.pad(gram, ((0, extra), (0, extra))).astype(np.float64)
    diagonal = np.diagonal(hessian).copy()
    dead = diagonal <= 0
    hessian[dead, dead] = 1.0
    upper = _inverse_factor(hessian, damp, float(diagonal[:columns].mean()) or 1.0)
    perm = cast("npt.NDArray[np.int64]", np.arange(padded_w.shape[1]))
    if order:
        perm = cast("npt.NDArray[np.int64]", np.argsort(-diagonal, kind="stable"))
        permuted = hessian[np.ix_(perm, perm)]
        upper = _inverse_factor(permuted, damp, float(diagonal[:columns].mean()) or 1.0)
    weight = np.maximum(diagonal, 1e-12).astype(np.float32)
    if type.scale == "s4" and not (order or type.asym):
        codes, grid = columns_with_steps(padded_w, upper.astype(np.float32), type, clip)
    else:
        fixed = order or type.scale == "s4" or type.group == 0 or BLOCK % type.group != 0
        codes, grid = _columns(padded_w, upper.astype(np.float32), perm, type, weight if clip else None, fixed)
    if sweeps:
        damped = hessian + damp * (float(diagonal[:columns].mean()) or 1.0) * np.eye(len(hessian))
        codes = _descend(padded_w, codes, grid, damped.astype(np.float32), sweeps)
    return grid.tensor(codes, columns)


def _inverse_factor(hessian: npt.NDArray[np.float64], damp: float, mean: float) -> npt.NDArray[np.float64]:
    """Return the upper Cholesky factor U of H^-1 = U^T U, of H with ``damp * mean`` on its diagonal."""
    if not np.isfinite(hessian).all():
        raise InputError("the inputs of a weight hold NaN or infinite numbers on the calibration text",
                         "the weights are damaged, or the training that made them diverged")
    added = damp * mean
    for _ in range(_TRIES):
        try:
            inverse = np.linalg.inv(hessian + added * np.eye(len(hessian)))
            return cast("npt.NDArray[np.float64]", np.linalg.cholesky((inverse + inverse.T) / 2)).T
        except np.linalg.LinAlgError:
            added *= _STEEPER
    raise InputError(f"the Gram matrix of a weight's inputs has no inverse, even with {added:.3g} on its diagonal",
                     "calibrate on more windows, or raise damp")


def _fit(groups: Floats, type: Storage, weight: Floats | None) -> Grid:
    """Return the grid of [N, G, g], by range or by the error weighted by ``weight`` [G, g]."""
    if weight is None:
        return fit_range(groups, type)
    return search(groups, type, lambda error: np.einsum("ngi,gi->ng", np.square(error), weight))


def _columns(w: Floats, upper: Floats, perm: npt.NDArray[np.int64], type: Storage, weight: Floats | None,
             fixed: bool) -> tuple[npt.NDArray[np.int8], Grid]:
    """Round column after column; return the codes [N, K] in place order, and the grid.

    Without ``fixed`` the scales of a group are found when its first column is due, from the weights as they are
    by then.  s4 scales share a row, so they are never found one by one here.
    """
    rows, columns = w.shape
    group = type.group or columns
    shaped = by_groups(w, type)
    by_group = None if weight is None else weight.reshape(-1, group)
    first = _fit(shaped, type, by_group)
    stored, numbers = first.stored.copy(), first.numbers.copy()
    zero = None if first.zero is None else first.zero.copy()
    work = w[:, perm].copy()
    codes = np.zeros((rows, columns), np.int8)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        part, errors = work[:, start:stop], np.zeros((rows, stop - start), np.float32)
        factor = upper[start:stop, start:stop]
        for i in range(stop - start):
            at = int(perm[start + i])
            if not fixed and at % group == 0:
                own = part[:, i : i + group]  # whole: groups of at most a block divide it
                weights = None if by_group is None else by_group[at // group]
                found = _fit(own[:, None, :], type, None if weights is None else weights[None])
                stored[:, at // group], numbers[:, at // group] = found.stored[:, 0], found.numbers[:, 0]
                if zero is not None and found.zero is not None:
                    zero[:, at // group] = found.zero[:, 0]
            scale = numbers[:, at // group]
            shift = None if zero is None else zero[:, at // group]
            column = part[:, i]
            code = round_onto(column, scale, shift, type)
            codes[:, at] = code
            error = (column - decode_from(code, scale, shift, type)) / factor[i, i]
            part[:, i:] -= error[:, None] * factor[i, i:]
            errors[:, i] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes, Grid(type, stored, numbers, zero, first.row)


def _descend(w: Floats, codes: npt.NDArray[np.int8], grid: Grid, hessian: Floats, sweeps: int) -> npt.NDArray[np.int8]:
    """Move one column of codes at a time to its best place while the others stay, ``sweeps`` times over."""
    type = grid.type
    group = type.group or w.shape[1]
    codes = codes.copy()
    decoded = grid.decoded(by_groups(codes, type)).reshape(w.shape)  # type: ignore[arg-type]
    pull = (w - decoded) @ hessian
    for _ in range(sweeps):
        for k in range(w.shape[1]):
            scale = grid.numbers[:, k // group]
            shift = None if grid.zero is None else grid.zero[:, k // group]
            wanted = decoded[:, k] + pull[:, k] / hessian[k, k]
            code = round_onto(wanted, scale, shift, type)
            moved = decode_from(code, scale, shift, type)
            change = moved - decoded[:, k]
            if change.any():
                pull -= change[:, None] * hessian[k]
                decoded[:, k], codes[:, k] = moved, code
    return codes
