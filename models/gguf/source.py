"""The tensors of a GGUF file as a weight source: plain numbers, or codes where a type is one of the IR's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.errors import BundleError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.sources import Box, Source
from omnic.models.checkpoints.dialects.base import DialectSource
from omnic.models.gguf.container import GgufFile, TensorEntry

__all__ = ["gguf_source"]


class PlainSource:
    """Every tensor as numbers: F32, F16 and BF16 in their own dtype, block types as the f32 they stand for."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.description = file, str(file.path)

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return tuple(self.file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.file.tensors[name].shape

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a tensor."""
        entry = self.file.tensors[name]
        if len(box) == 1:
            whole = entry.codec.numbers(self.file.rows(entry, 0, 1)).reshape(-1)
            return whole[box[0][0] : box[0][1]]
        first, last, shape = _span(entry, box[0])
        numbers = entry.codec.numbers(self.file.rows(entry, first, last)).reshape(shape)
        return numbers[(slice(None), *(slice(a, b) for a, b in box[1:]))]


@dataclass(frozen=True)
class PackedTensor:
    """A tensor whose blocks hold the codes of a storage type.

    Attributes:
        file: where it is.
        entry: the tensor.
        type: the storage type.
    """

    file: GgufFile
    entry: TensorEntry
    type: Storage

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the tensor."""
        return self.entry.shape

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of codes and scales.

        Raises:
            BundleError: a scale is not finite.
        """
        first, last, shape = _span(self.entry, (start, stop))
        found = self.entry.codec.packed(np.asarray(self.file.rows(self.entry, first, last)))
        if not np.isfinite(found.scale).all():
            raise BundleError(f"{self.file.path}: tensor '{self.entry.name}' holds NaN or infinite scales",
                              "fetch or convert the file again")
        return QTensor(found.codes.reshape(shape), found.scale.reshape(*shape[:-1], -1), None, self.type)


def _span(entry: TensorEntry, rows: tuple[int, int]) -> tuple[int, int, tuple[int, ...]]:
    """Return the runs of the innermost dim that rows of dim 0 are, and their shape."""
    each = int(np.prod(entry.shape[1:-1], dtype=np.int64))
    return rows[0] * each, rows[1] * each, (rows[1] - rows[0], *entry.shape[1:])


def gguf_source(file: GgufFile) -> DialectSource:
    """Return the tensors of a file: matrices in a storage type of the IR as codes, all else as numbers."""
    packed = {
        name: PackedTensor(file, entry, entry.codec.storage)
        for name, entry in file.tensors.items()
        if entry.codec.storage is not None and len(entry.shape) > 1
    }
    return DialectSource(PlainSource(file), packed, packed)
