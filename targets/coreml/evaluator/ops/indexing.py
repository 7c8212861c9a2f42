"""Gathers and scatters.

Since iOS 17 an index below 0 or beyond the dim is undefined ("memory safe") unless ``validate_indices`` is set.  Here
a gather gives NaN for it, so that it shows wherever it is used, and refuses it where there is no NaN; a scatter refuses
it.  In older op sets a negative index counts from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.call import Call

__all__ = ["TABLE"]

Array = NDArray[Any]
Handler = Callable[[Call], Any]


def _checked(c: Call, indices: Array, size: Any) -> tuple[Array, Array | None]:
    """Return indices inside ``size``, and where they were outside (None: nowhere)."""
    indices = indices.astype(np.int64)
    low = np.zeros_like(indices) if c.modern else -np.broadcast_to(np.asarray(size), indices.shape)
    outside = (indices < low) | (indices >= size)
    if not outside.any():
        return np.where(indices < 0, indices + size, indices), None
    if not c.modern or c.flag("validate_indices") or c.type.word not in ("fp16", "fp32"):
        wrong = indices[outside].reshape(-1)[0]
        raise ValueError(f"index {wrong} is out of range")
    return np.where(outside, 0, indices), outside


def _poisoned(found: Array, outside: Array | None) -> Array:
    if outside is None:
        return found
    found = np.array(found)
    found[np.broadcast_to(outside, found.shape)] = np.nan
    return found


def _gather(c: Call) -> Array:
    stored, batch = c.stored("x"), c.whole("batch_dims", 0)
    shape = stored.shape if stored is not None else c.raw("x").shape
    axis = c.whole("axis", 0) % len(shape)
    indices, outside = _checked(c, c.raw("indices"), shape[axis])
    if stored is not None and axis == 0 and batch == 0:
        found = stored.take(indices)
    elif batch == 0:
        found = np.take(c.raw("x"), indices, axis)
    else:
        x = c.raw("x")
        lead = x.shape[:batch]
        rows = [np.take(a, i, axis - batch) for a, i in zip(
            x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:]), strict=True)]
        found = np.stack(rows).reshape(*lead, *rows[0].shape)
    if outside is None:
        return found
    # [before the axis, indices, behind the axis]
    return _poisoned(found, outside.reshape(
        *outside.shape[:batch], *(1,) * (axis - batch), *outside.shape[batch:], *(1,) * (len(shape) - axis - 1)))


def _gather_along(c: Call) -> Array:
    x = c.raw("x")
    axis = c.whole("axis", 0) % x.ndim
    indices, outside = _checked(c, c.raw("indices"), x.shape[axis])
    return _poisoned(np.take_along_axis(x, indices, axis), outside)


def _gather_nd(c: Call) -> Array:
    x, batch = c.raw("x"), c.whole("batch_dims", 0)
    depth = c.raw("indices").shape[-1]
    indices, outside = _checked(c, c.raw("indices"), np.array(x.shape[batch : batch + depth]))
    lead = np.indices(indices.shape[:batch], sparse=True) if batch else ()
    lead = tuple(i.reshape(i.shape + (1,) * (indices.ndim - 1 - batch)) for i in lead)
    found = x[(*lead, *(indices[..., i] for i in range(depth)))]
    if outside is None:
        return found
    rows = np.asarray(outside.any(-1))
    return _poisoned(found, rows.reshape(rows.shape + (1,) * (found.ndim - rows.ndim)))


def _combined(target: Array, at: Any, updates: Array, mode: str) -> Array:
    """Write ``updates`` into ``target``; a place that several name gets each of them in order."""
    if mode == "update":
        target[at] = updates
        return target
    ufuncs: Mapping[str, Any] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    }
    if mode not in ufuncs:
        raise ValueError(f"no mode '{mode}' of scatter")
    ufuncs[mode].at(target, at, updates)
    return target


def _inside(c: Call, indices: Array, size: Any) -> Array:
    found, outside = _checked(c, indices, size)
    if outside is not None:
        raise ValueError(f"index {indices[outside].reshape(-1)[0]} is out of range")
    return found


def _scatter(c: Call) -> Array:
    data, axis = np.array(c("data")), c.whole("axis", 0)
    indices = _inside(c, c.raw("indices"), data.shape[axis])
    updates = c("updates")
    at = (*(slice(None),) * (axis % data.ndim), indices)
    return _combined(data, at, updates, c.text("mode", "add"))


def _scatter_along(c: Call) -> Array:
    data, axis = np.array(c("data")), c.whole("axis", 0) % c.raw("data").ndim
    indices = _inside(c, c.raw("indices"), data.shape[axis])
    at = tuple(indices if i == axis else grid for i, grid in enumerate(np.indices(indices.shape, sparse=True)))
    return _combined(data, at, c("updates"), c.text("mode", "add"))


def _scatter_nd(c: Call) -> Array:
    data, depth = np.array(c("data")), c.raw("indices").shape[-1]
    indices = _inside(c, c.raw("indices"), np.array(data.shape[:depth]))
    return _combined(data, tuple(indices[..., i] for i in range(depth)), c("updates"), c.text("mode", "add"))


TABLE: Mapping[str, Handler] = {
    "gather": _gather, "gather_along_axis": _gather_along, "gather_nd": _gather_nd,
    "scatter": _scatter, "scatter_along_axis": _scatter_along, "scatter_nd": _scatter_nd,
}
