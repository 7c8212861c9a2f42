"""How much each weight matters, and which get more bits: leave-one-in on calibration windows, then bits by gain.

Only text of the calibration is looked at, so that a measure on held-out text stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.executor import Executor

__all__ = ["assign", "divergence", "sensitivities"]

Ints = npt.NDArray[np.int64]

_ROWS = 8


def divergence(before: Executor, after: Executor, tokens: Ints) -> float:
    """Return the mean KL divergence of the next-token distributions on i64[N, T], in nats a token."""
    total = 0.0
    for first in range(0, len(tokens), _ROWS):
        part = tokens[first : first + _ROWS]
        total += _sum_kl(before.forward(part).logits, after.forward(part).logits)
    return total / tokens.size


def _sum_kl(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating]) -> float:  # pyright: ignore
    p, q = (_log_softmax(np.asarray(x, np.float32)) for x in (before, after))
    return float((np.exp(p) * (p - q)).sum(dtype=np.float64))


def _log_softmax(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def sensitivities(names: Sequence[str], kinds: Sequence[str], base: Executor, alone: Callable[[str, str], Executor],
                  tokens: Ints, progress: Callable[[float], None]) -> npt.NDArray[np.float64]:
    """Return the divergence when one weight alone has one kind of code, [names, kinds].

    Args:
        names: of the weights.
        kinds: of codes, from few bits to many.
        base: runs the model as it is.
        alone: makes an executor of the model with one weight in one kind.
        tokens: i64[N, T] windows of calibration text.
        progress: called with the share done.
    """
    found = np.zeros((len(names), len(kinds)))
    for i, name in enumerate(names):
        for j, kind in enumerate(kinds):
            found[i, j] = divergence(base, alone(name, kind), tokens)
            progress((i * len(kinds) + j + 1) / found.size)
    return found


def assign(cost: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[int]], room: int,
           reverse: bool = False) -> dict[str, int]:
    """Return which kind each weight gets: all start at the first, and the best step per byte that fits is taken.

    Args:
        cost: divergence of each weight in each kind, from few bits to many.
        sizes: its bytes in each kind.
        room: bytes of all.
        reverse: take the worst step instead (a control: what the order is worth).

    Raises:
        InputError: even the first kind of every weight does not fit.
    """
    level = dict.fromkeys(cost, 0)
    spent = sum(size[0] for size in sizes.values())
    if spent > room:
        raise InputError(f"the weights take {spent:,} bytes at the fewest bits, the budget leaves {room:,}",
                         "raise the budget, or list a kind of fewer bits first")
    while True:
        steps: list[tuple[float, str, int]] = []
        for name, at in level.items():
            if at + 1 < len(sizes[name]):
                more = sizes[name][at + 1] - sizes[name][at]
                if spent + more <= room:
                    steps.append(((cost[name][at] - cost[name][at + 1]) / max(more, 1), name, more))
        if not steps:
            return level
        _, name, more = min(steps) if reverse else max(steps)
        level[name] += 1
        spent += more
