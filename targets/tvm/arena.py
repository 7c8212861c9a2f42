"""The arena of a function: a place for every buffer, shared by those that never live together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omnic.errors import InternalError
from omnic.ir.dims import DimRange, bounds
from omnic.targets.tvm.views import Buffer, View

__all__ = ["placed"]

_ALIGNMENT = 64
_LIMIT = 1 << 62


def placed(steps: Sequence[Mapping[str, View]], dims: Mapping[str, DimRange]) -> tuple[dict[Buffer, int], int]:
    """Return the byte at which each buffer of the arena begins, and the bytes of the arena.

    A buffer lives from the first step that names it to the last.  The largest goes first, each to the lowest place
    that is free for as long as it lives.

    Args:
        steps: the views that each step names, in order.
        dims: the ranges of symbols: a buffer has room for the largest call.
    """
    life: dict[Buffer, list[int]] = {}
    for at, views in enumerate(steps):
        for view in views.values():
            if not view.buffer.place:
                life.setdefault(view.buffer, [at, at])[1] = at
    sizes = {buffer: _bytes(buffer, dims) for buffer in life}
    taken: list[tuple[int, int, Buffer]] = []
    for buffer in sorted(life, key=lambda b: (-sizes[b], life[b][0])):
        begin, end = life[buffer]
        at = 0
        for low, high, other in sorted(taken, key=lambda t: t[0]):
            if life[other][1] < begin or life[other][0] > end:
                continue
            if low - at >= sizes[buffer]:
                break
            at = max(at, high)
        taken.append((at, at + sizes[buffer], buffer))
    return {buffer: low for low, _, buffer in taken}, max((high for _, high, _ in taken), default=0)


def _bytes(buffer: Buffer, dims: Mapping[str, DimRange]) -> int:
    """Return the bytes that a buffer takes in the largest call."""
    high = bounds(buffer.size, dims)[1] * buffer.dtype.bits // 8
    if high > _LIMIT:
        raise InternalError(f"target tvm: the buffer {buffer.name} takes {high} bytes")
    return -(-high // _ALIGNMENT) * _ALIGNMENT
