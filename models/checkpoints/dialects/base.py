"""What all methods share: tensors of a module shown as one quantised tensor, read by rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from omnic.errors import BundleError
from omnic.ir import packing
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import ScaleKind, Storage, TensorType
from omnic.ir.weights.recipes import whole
from omnic.ir.weights.sources import Box, Source, TypedSource

__all__ = ["DialectSource", "Packed", "aligned", "everything", "scale_kind", "scales", "stems", "words"]


class Packed(Protocol):
    """One quantised tensor of a checkpoint, in its method's own layout."""

    @property
    def type(self) -> Storage:
        """How omnic holds it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as omnic has it: the contraction dim last."""
        ...

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows ``start`` to ``stop`` along dim 0, read from the tensors of ``source``."""
        ...


class DialectSource:
    """A checkpoint with quantised tensors.

    Args:
        source: the tensors as they lie in the files.
        packed: the quantised ones by the name they are shown under.
        used: names of ``source`` that the quantised ones are made of; they are not shown.
        orders: of quantised tensors whose columns lie in another order than the model's: the column of the model that
            each is, i64 [columns]; shown as ``<name>.order``.
        offsets: of quantised tensors with an offset for each group, the tensor [groups, rows] that holds them; shown
            as ``<name>.offset`` [rows, groups].
    """

    def __init__(
        self,
        source: Source,
        packed: Mapping[str, Packed],
        used: Iterable[str],
        orders: Mapping[str, Array] | None = None,
        offsets: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.packed, self.description = source, packed, source.description
        self._orders = {f"{name}.order": order for name, order in (orders or {}).items()}
        self._offsets = {f"{name}.offset": tensor for name, tensor in (offsets or {}).items()}
        hidden = set(used)
        self._plain = [n for n in source.names() if n not in hidden]
        self._parts: dict[str, tuple[str, str]] = {}
        for name, tensor in packed.items():
            for suffix in packing.layout(tensor.type, tensor.shape):
                self._parts[name + suffix] = (name, suffix)
        twice = [n for n in self._plain if n in self._parts]
        if twice:
            raise BundleError(
                f"{self.description} holds {twice[0]} both quantised and plain", "one of the two is of another model"
            )
        self._types = {n: TensorType(t.type, t.shape) for n, t in packed.items()}

    def names(self) -> tuple[str, ...]:
        """Return the names of the plain tensors and of the parts of the quantised ones."""
        return (*self._plain, *self._parts, *self._orders, *self._offsets)

    def typed(self, name: str) -> TensorType | None:
        """Return the type of a quantised tensor."""
        own = self._types.get(name)
        return self.source.typed(name) if own is None and isinstance(self.source, TypedSource) else own

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a plain tensor, or of a part of a quantised one."""
        if name in self._orders:
            return self._orders[name].shape
        if name in self._offsets:
            return self.source.shape(self._offsets[name])[::-1]
        if name not in self._parts:
            return self.source.shape(name)
        whose, suffix = self._parts[name]
        return packing.layout(self.packed[whose].type, self.packed[whose].shape)[suffix][1]

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a plain tensor, or of the packed codes or scales of a quantised one."""
        if name in self._orders:
            return self._orders[name][tuple(slice(a, b) for a, b in box)]
        if name in self._offsets:
            return self.source.read(self._offsets[name], box[::-1]).T
        if name not in self._parts:
            return self.source.read(name, box)
        whose, suffix = self._parts[name]
        if any(a == b for a, b in box):
            dtype, _ = packing.layout(self.packed[whose].type, self.packed[whose].shape)[suffix]
            return np.zeros([b - a for a, b in box], dtype)
        part = packing.packed_parts(self.quantised(whose, box[0]))[suffix]
        return part[(slice(None), *(slice(a, b) for a, b in box[1:]))]

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a quantised tensor."""
        return self.packed[name].rows(self.source, *rows)


# -- reading ------------------------------------------------------------------------------------------------
def stems(source: Source, suffix: str) -> list[str]:
    """Return the names that end in ``suffix``, without it."""
    return [n.removesuffix(suffix) for n in source.names() if n.endswith(suffix)]


def everything(source: Source, name: str) -> Array:
    """Return a whole tensor."""
    return np.asarray(source.read(name, whole(source.shape(name))))


def words(source: Source, name: str, box: Box) -> Array:
    """Return a part of a tensor of 32-bit words as u32.

    Raises:
        BundleError: it is of another type.
    """
    found = source.read(name, box)
    if found.dtype.itemsize != 4 or found.dtype.kind not in "iu":
        raise BundleError(f"{source.description}: {name} is {found.dtype}, not 32-bit words")
    return np.ascontiguousarray(found).view(np.uint32)


def scale_kind(source: Source, name: str) -> ScaleKind:
    """Return how omnic keeps scales that lie in a float type: f16 as they are, others as f32, which holds them."""
    dtype: np.dtype[Any] = source.read(name, ((0, 0),) * len(source.shape(name))).dtype
    return "f16" if dtype == np.float16 else "f32"


def scales(found: Array, kind: ScaleKind) -> Array:
    """Return scales in the type that :func:`scale_kind` named."""
    return np.ascontiguousarray(found).astype(np.float16 if kind == "f16" else np.float32, copy=False)


def aligned(start: int, stop: int, per: int) -> tuple[int, int]:
    """Return the words that hold the items ``start`` to ``stop``, ``per`` to a word."""
    return start // per, -(-stop // per)
