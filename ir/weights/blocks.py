"""Rows of a weight made block by block: temporaries stay in the cache, and the blocks share the cores there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from omnic.ir.op import Array

__all__ = ["BLOCK", "filled"]

#: numbers of a block: 1 MB of f32.  Larger temporaries are fresh memory each time, whose first touch costs more than
#: the arithmetic on them (measured on 4096 x 14336 numbers to i4: 25 ns a number whole, 6 ns in such blocks)
BLOCK = 1 << 18
#: blocks below which a second core is not worth waking
_FEW = 8


def filled(rows: tuple[int, int], width: int, make: Callable[[int, int], Mapping[str, Array]]) -> dict[str, Array]:
    """Return the arrays that ``make`` gives for ``rows``, made of blocks of rows and joined along dim 0.

    Args:
        rows: (start, stop).
        width: numbers of a row.
        make: gives arrays by name, of rows start to stop; it must not depend on how they are cut.
    """
    start, stop = rows
    step = max(BLOCK // max(width, 1), 1)
    if stop - start <= step:
        return dict(make(start, stop))
    first = make(start, start + step)
    whole = {name: np.empty((stop - start, *part.shape[1:]), part.dtype) for name, part in first.items()}

    def put(begin: int) -> None:
        end = min(begin + step, stop)
        for name, part in (first if begin == start else make(begin, end)).items():
            whole[name][begin - start : end - start] = part

    begins = range(start, stop, step)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(begins) < _FEW:
        for begin in begins:
            put(begin)
        return whole
    with ThreadPoolExecutor(min(cores, len(begins) // 4)) as pool:
        for _ in pool.map(put, begins):
            pass
    return whole
