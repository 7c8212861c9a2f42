"""Constants of a program that stay where they are until rows of them are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.blobs import WeightFile
from omnic.targets.coreml.evaluator.types import NUMPY

__all__ = ["Blockwise", "FileConst", "Held", "Made", "Stored", "Table"]

#: elements that are made at a time
CHUNK = 1 << 21


class Stored(ABC):
    """A constant tensor.

    Attributes:
        word: of its elements.
        shape: its dims.
    """

    word: str
    shape: tuple[int, ...]

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return ``[start:stop]`` of the first dim, of the type that ``word`` says."""

    def step(self) -> int:
        """Return how many rows are made at a time."""
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        return max(1, CHUNK // max(width, 1))

    def array(self) -> NDArray[Any]:
        """Return all of it."""
        if not self.shape or self.shape[0] <= self.step():
            return self.rows(0, self.shape[0] if self.shape else 1)
        found = np.empty(self.shape, NUMPY[self.word])
        for a in range(0, self.shape[0], self.step()):
            b = min(a + self.step(), self.shape[0])
            found[a:b] = self.rows(a, b)
        return found

    def take(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of these indices, as ``numpy.take`` along axis 0; each is made once."""
        wanted, back = np.unique(indices, return_inverse=True)
        made = np.empty((wanted.size, *self.shape[1:]), NUMPY[self.word])
        for i, row in enumerate(wanted):
            made[i] = self.rows(int(row), int(row) + 1)[0]
        return made[back.reshape(indices.shape)]


class Held(Stored):
    """A constant that lies in the program itself."""

    def __init__(self, word: str, values: NDArray[Any]) -> None:
        self.word, self.shape, self._values = word, values.shape, values

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows; all of a scalar."""
        return self._values[start:stop] if self.shape else self._values


class FileConst(Stored):
    """A constant that lies in the weight file.

    Args:
        word: of its elements.
        shape: its dims.
        file: the weight file.
        offset: of its metadata.
    """

    def __init__(self, word: str, shape: tuple[int, ...], file: WeightFile, offset: int) -> None:
        self.word, self.shape, self.file, self.offset = word, shape, file, offset

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows; all of a scalar."""
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        count = width * (self.shape[0] if self.shape else 1)
        found = self.file.read(self.offset, self.word, start * width, stop * width, count)
        found = found.astype(bool) if self.word == "bool" else found
        return found.reshape((stop - start, *self.shape[1:]) if self.shape else ())


class Blockwise(Stored):
    """``scale * (data - offset)``, each scale for a block (``constexpr_blockwise_shift_scale``).

    One rounding: the product is exact in f32 where codes have at most 8 bits and scales are fp16.
    """

    def __init__(self, data: Stored, scale: Stored, offset: Stored | None) -> None:
        self.data, self.scale, self.offset = data, scale, offset
        self.word, self.shape = scale.word, data.shape

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Make rows."""
        block = self.shape[0] // self.scale.shape[0]
        low, high = start // block, -(-stop // block)
        scale = _blocked(self.scale.rows(low, high), block, start - low * block, stop - start, self.shape)
        data = self.data.rows(start, stop).astype(np.float32).reshape(_grouped(scale, (stop - start, *self.shape[1:])))
        if self.offset is not None:
            data -= _blocked(self.offset.rows(low, high), block, start - low * block, stop - start, self.shape)
        data *= scale
        with np.errstate(over="ignore"):
            return data.reshape((stop - start, *self.shape[1:])).astype(NUMPY[self.word], copy=False)


def _blocked(
    values: NDArray[Any], block: int, skip: int, rows: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return scales [rows, groups, 1, groups, 1, ...], to be broadcast over [rows, groups, block, ...]."""
    values = np.repeat(values, block, axis=0)[skip : skip + rows].astype(np.float32)
    return values.reshape((rows, *(d for g in values.shape[1:] for d in (g, 1))))


def _grouped(scale: NDArray[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    groups = scale.shape[1::2]
    return (shape[0], *(d for g, n in zip(groups, shape[1:], strict=True) for d in (g, n // g)))


class Table(Stored):
    """Indices into tables, one for each block (``constexpr_lut_to_dense``).

    Args:
        indices: of entries.
        table: [blocks of each dim..., entries, length of an entry].
        axis: dim along which an entry of several numbers lies.
    """

    def __init__(self, indices: Stored, table: NDArray[Any], word: str, axis: int) -> None:
        self.indices, self.word = indices, word
        self.vector, self.axis = table.shape[-1], axis % max(len(indices.shape), 1)
        self.blocks = table.shape[:-2]
        self._table = table.reshape(-1, table.shape[-2], self.vector)
        self.shape = tuple(d * (self.vector if i == self.axis else 1) for i, d in enumerate(indices.shape))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Make rows."""
        if self.vector > 1 and self.axis == 0:
            low, high = start // self.vector, -(-stop // self.vector)
            found = self._looked_up(low, high)
            return found[start - low * self.vector : stop - low * self.vector]
        return self._looked_up(start, stop)

    def _looked_up(self, start: int, stop: int) -> NDArray[Any]:
        codes = self.indices.rows(start, stop)
        at = np.zeros((1,) * codes.ndim, np.int64)
        for i, (groups, size) in enumerate(zip(self.blocks, self.indices.shape, strict=True)):
            here = np.arange(start, stop) if i == 0 else np.arange(size)
            at = at * groups + (here // (size // groups)).reshape([-1 if j == i else 1 for j in range(codes.ndim)])
        found = self._table[at, codes] if self._table.shape[0] > 1 else self._table[0][codes]
        if self.vector == 1:
            return found[..., 0]
        found = np.moveaxis(found, -1, self.axis + 1)
        dims = [d * (self.vector if i == self.axis else 1) for i, d in enumerate(codes.shape)]
        return found.reshape(dims)


class Made(Stored):
    """A constant that is made whole each time it is asked for."""

    def __init__(self, word: str, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]) -> None:
        self.word, self.shape, self._make = word, shape, make

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows; all of a scalar."""
        made = self._make().astype(NUMPY[self.word], copy=False).reshape(self.shape)
        return made[start:stop] if self.shape else made

    def step(self) -> int:
        """Return all rows: it is made at once."""
        return max(self.shape[0], 1) if self.shape else 1


