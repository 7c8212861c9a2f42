"""How a value wins: turns against the level's own way, halves of the field, and a last test on fresh rounds.

Every sample of a candidate stands beside one of the default in the same turn, so what the machine does to one it does
to the other.  The field is halved by the medians of few ratios; only the last one left is put to the test, with rounds
that chose nothing, and wins when the 99 % bootstrap interval of its median gain lies above 1.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from omnic.targets.tvm.tuning.products import RowClass
from omnic.targets.tvm.tuning.records import Tuning

__all__ = ["DEFAULT", "Outcome", "Timer", "candidates", "gain_of", "search"]

T = TypeVar("T")
#: seconds of one sample
Timer = Callable[[T], float]
#: every field as the level does it
DEFAULT = Tuning()
#: what that is for many rows (runtime/kernels/src/products/tuning.h)
LEVEL = Tuning(k_block=1024, chunk=128)
#: turns of the first halving, doubled from then on; and of the last test
FIRST, LAST = 3, 61
#: fewest rounds of the last test that may decide anything
LEAST = 11


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a search found.

    Attributes:
        best: the last one left; None where the budget ended before there was one.
        won: whether it is faster beyond noise.
        seconds: of a sample of the default, median of the last test.
        gain: median of default / best.
        interval: of it, 99 %.
        tried: candidates that were timed.
        rounds: of the last test.
    """

    best: T | None
    won: bool
    seconds: float
    gain: float
    interval: tuple[float, float]
    tried: int
    rounds: int


def candidates(rows: RowClass, k: int, threads: int) -> tuple[Tuning, ...]:
    """Return the values that are worth a try for a class of rows: a small grid, since fields hardly meet.

    Values that come to the same as another one, or as the level's own, are left out.
    """
    pools = [0] if threads == 1 else [0, *sorted({1, threads // 2} - {0})]
    if rows.high == 1:
        ahead = (0, 512, 1024, 2048, 4096)
        return tuple(Tuning(panels=p, prefetch=a, threads=t) for t in pools for p in (1, 2, 4) for a in ahead)
    chunks = {16: [0], 128: [16, 32, 64, 128]}.get(rows.high, [64, 128, 256, 512])
    found = {_effect(DEFAULT, rows, k): DEFAULT}
    grid = itertools.product(pools, chunks, (256, 512, 1024, 2048))
    for tuning in (Tuning(k_block=b, chunk=c, threads=t) for t, c, b in grid):
        found.setdefault(_effect(tuning, rows, k), tuning)
    return tuple(found.values())[1:]


def _effect(tuning: Tuning, rows: RowClass, k: int) -> tuple[int, ...]:
    """Return what a tuning does to products of many rows: blocks beyond k, and chunks beyond the rows, are all."""
    block, chunk = tuning.k_block or LEVEL.k_block, tuning.chunk or LEVEL.chunk
    return min(block, -(-k // 64) * 64), min(chunk, rows.high or rows.measured), tuning.threads


def gain_of(default: Sequence[float], other: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of default / other, turn by turn, and its 99 % bootstrap interval."""
    each = np.asarray(default) / np.asarray(other)
    draws = np.random.default_rng(0).integers(0, len(each), (4000, len(each)))
    low, high = np.percentile(np.median(each[draws], axis=1), (0.5, 99.5))
    return float(np.median(each)), (float(low), float(high))


def search(
    timer: Timer[T], default: T, field: Sequence[T], seconds: float, clock: Callable[[], float] = time.monotonic
) -> Outcome[T]:
    """Return the best of ``field`` against the default, within about ``seconds``.

    Args:
        timer: times one sample.
        default: what the others have to beat.
        field: the candidates.
        seconds: the budget; a third of it is kept for the last test.
        clock: of the budget.
    """
    began = clock()
    timer(default)  # memory that was never touched is not what is measured
    left, rounds = list(field), FIRST
    while len(left) > 1:
        # The default runs once a turn; the order turns round, so that nobody is always after the same one.
        times: dict[T, list[float]] = {t: [] for t in (default, *left)}
        for turn in range(rounds):
            order = (default, *left)
            first = turn % len(order)
            for one in (*order[first:], *order[:first]):
                times[one].append(timer(one))
            if clock() - began > seconds * 2 / 3:
                break
        else:
            left.sort(key=lambda t: -gain_of_median(times[default], times[t]))
            left, rounds = left[: (len(left) + 1) // 2], rounds * 2
            continue
        return Outcome(None, False, float(np.median(times[default])), 1.0, (1.0, 1.0), len(field), 0)
    if not left:
        return Outcome(None, False, timer(default), 1.0, (1.0, 1.0), 0, 0)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(LAST):
        if turn % 2:
            theirs.append(timer(left[0]))
        ours.append(timer(default))
        if not turn % 2:
            theirs.append(timer(left[0]))
        if clock() - began > seconds and len(ours) >= LEAST:
            break
    gain, interval = gain_of(ours, theirs)
    return Outcome(left[0], interval[0] > 1.0, float(np.median(ours)), gain, interval, len(field), len(ours))


def gain_of_median(default: Sequence[float], other: Sequence[float]) -> float:
    """Return the median of default / other, turn by turn."""
    return float(np.median(np.asarray(default) / np.asarray(other)))
