"""Where a value lies: a buffer, an offset and strides.

Reshape, transpose, slice, split and broadcast change a view and move nothing.  Dims, offsets and strides are dims of
the IR (:mod:`omnic.ir.dims`), so one plan holds for every batch and every length of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from omnic.ir.dims import Dim, product
from omnic.ir.types import DType

__all__ = ["Buffer", "Rows", "View", "contiguous_strides"]


@dataclass(eq=False)
class Buffer:
    """A piece of memory of one call.

    Attributes:
        name: its variable in C.
        dtype: of its elements.
        size: elements.
        place: C expression of its address where it is not in the arena (an argument, a result, a state), else "".
    """

    name: str
    dtype: DType
    size: Dim
    place: str = ""


@dataclass(frozen=True)
class Rows:
    """A view as rows of contiguous numbers: ``count`` of ``width``, ``stride`` elements apart."""

    view: View
    count: Dim
    width: Dim
    stride: Dim


@dataclass(frozen=True)
class View:
    """Elements of a buffer: index i of dim d lies ``i * strides[d]`` elements behind ``offset``."""

    buffer: Buffer
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def dtype(self) -> DType:
        """Type of its elements."""
        return self.buffer.dtype

    @property
    def contiguous(self) -> bool:
        """Whether its elements follow each other in row-major order."""
        return all(
            size == 1 or stride == want
            for size, stride, want in zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        )

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer, in row-major order."""
        return self.offset == 0 and self.contiguous and product(self.shape) == self.buffer.size

    def lies_as(self, other: View) -> bool:
        """Whether it names the same elements in the same order; the stride of a dim of 1 says nothing."""
        strides = zip(self.shape, self.strides, other.strides, strict=True)
        return (
            self.buffer is other.buffer and self.offset == other.offset and self.shape == other.shape
            and all(size == 1 or mine == its for size, mine, its in strides)
        )

    def transpose(self, perm: Sequence[int]) -> View:
        """Return the view with its dims in another order."""
        return replace(
            self, shape=tuple(self.shape[p] for p in perm), strides=tuple(self.strides[p] for p in perm)
        )

    def slice(self, axis: int, start: Dim, stop: Dim) -> View:
        """Return the part from ``start`` to ``stop`` of one dim."""
        axis %= len(self.shape)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[axis])

    def broadcast(self, shape: Sequence[Dim]) -> View:
        """Return the view repeated to ``shape`` by numpy's rule."""
        added = len(shape) - len(self.shape)
        strides: list[Dim] = [0] * added
        for size, stride, want in zip(self.shape, self.strides, shape[added:], strict=True):
            strides.append(stride if size == want else 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshape(self, shape: Sequence[Dim]) -> View | None:
        """Return the same elements in the same order under ``shape``, or None where that needs a copy."""
        old = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        new = [size for size in shape if size != 1]
        strides: list[Dim] = []
        left, right = 0, 0
        while left < len(old) or right < len(new):
            cut = _common(old, new, left, right)
            if cut is None:
                return None
            group, sizes = old[left : cut[0]], new[right : cut[1]]
            for (_, outer), (size, inner) in pairwise(group):
                if outer != size * inner:
                    return None
            inner = group[-1][1]
            strides += [inner * product(tuple(sizes[i + 1 :])) for i in range(len(sizes))]
            left, right = cut
        found = iter(strides)
        return replace(self, shape=tuple(shape), strides=tuple(0 if s == 1 else next(found) for s in shape))

    def rows(self) -> Rows | None:
        """Return the view as rows of its last dim, or None where its rows are not evenly apart."""
        if not self.shape or (self.strides[-1] != 1 and self.shape[-1] != 1):
            return None
        flat = self.reshape((product(self.shape[:-1]), self.shape[-1]))
        if flat is None:
            return None
        count, width = flat.shape
        stride = flat.strides[0] if count != 1 else width
        return Rows(replace(flat, strides=(stride, 1)), count, width, stride)


def _common(
    old: Sequence[tuple[Dim, Dim]], new: Sequence[Dim], left: int, right: int
) -> tuple[int, int] | None:
    """Return the next place at which as many elements lie before it in both shapes, None when there is none."""
    totals: dict[Dim, int] = {}
    total: Dim = 1
    for at in range(left, len(old)):
        total = total * old[at][0]
        totals[total] = at + 1
    total = 1
    for at in range(right, len(new)):
        total = total * new[at]
        if total in totals:
            return totals[total], at + 1
    return None


def contiguous_strides(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return the strides of ``shape`` in row-major order."""
    return tuple(product(tuple(shape[i + 1 :])) for i in range(len(shape)))
