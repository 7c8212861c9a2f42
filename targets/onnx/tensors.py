"""The tensors of a program: how each is laid out from weights of the IR, written and read back in slices.

ONNX Runtime wants some weights in another order than the IR keeps them: MatMul reads [K, N] where a
``linear`` has [N, K], one packed product stands for three, an expert is a matrix of its own.  A
:class:`Layout` says which part of which weight lies where, so that the writer can fill a tensor from row
slices and the reader can give every weight back from the program's own bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InternalError
from omnic.ir import packing
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, parse_element
from omnic.ir.weights import WeightStore
from omnic.targets.onnx import columns
from omnic.targets.onnx.blocks import DTYPES as BLOCK_DTYPES
from omnic.targets.onnx.blocks import (
    Blocks,
    blocks_of,
    parts_of,
    parts_of_units,
    rows_back,
    units_back,
    units_shape,
)

__all__ = ["ALIGNMENT", "DATA_FILE", "Layout", "Piece", "ProgramSource", "TensorTable"]

DATA_FILE = "weights.bin"
#: page size of the systems we run on: ONNX Runtime maps tensors only at such offsets
ALIGNMENT = 4096
#: bytes of f32 that are in memory at a time while a tensor is written
SLICE_BYTES = 64 << 20

DTYPES: Mapping[str, Any] = {**BLOCK_DTYPES, **columns.DTYPES}

Array = NDArray[Any]
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """One weight (or one expert of it) inside a tensor.

    Attributes:
        weight: name in the IR.
        shape: of the weight in the IR.
        expert: which entry of dim 0 alone, None for the whole weight.
        swap: whether its last two dims are exchanged.
        axis: dim of the tensor along which it lies.
        offset: where it begins along ``axis``.
        stride: distance of its entries along ``axis``; 2 interleaves two weights.
        part: which part of a storage-typed weight, "" for the numbers of a plain one.
        type: its storage type as text, or the type of whole numbers; "" for f32.
    """

    weight: str
    shape: tuple[int, ...]
    expert: int | None = None
    swap: bool = False
    axis: int = 0
    offset: int = 0
    stride: int = 1
    part: str = ""
    type: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers in the data file."""
        found = parse_element(self.type) if self.type and not self.part else None
        return found.numpy if isinstance(found, DType) else np.dtype(DTYPES[self.part])

    @property
    def storage(self) -> Storage:
        """The storage type."""
        found = parse_element(self.type)
        if not isinstance(found, Storage):
            raise InternalError(f"{self.weight} is {self.type}, which has no codes")
        return found

    @property
    def form(self) -> Blocks:
        """How its rows lie in blocks."""
        found = blocks_of(self.storage, self.shape[-1])
        if isinstance(found, str):
            raise InternalError(f"{self.weight} has no blocks: {found}")
        return found

    def placed(self) -> tuple[int, ...]:
        """Return its shape inside the tensor."""
        shape = self.shape if self.expert is None else self.shape[1:]
        if self.part.startswith("units"):
            found = units_shape(self.storage, shape, self.part)
            if found is None:
                raise InternalError(f"{self.weight} has no {self.part}")
            return found
        if self.part in columns.DTYPES:
            return columns.placed(self.part, shape)
        if self.part:
            return (*shape[:-1], self.form.last(self.part))
        return (*shape[:-2], shape[-1], shape[-2]) if self.swap else shape

    def region(self, rank: int) -> tuple[slice, ...]:
        """Return the slices of a tensor of ``rank`` dims that hold it."""
        size = self.placed()[self.axis]
        part = slice(self.offset, self.offset + (size - 1) * self.stride + 1, self.stride)
        return tuple(part if a == self.axis else slice(None) for a in range(rank))


@dataclass(frozen=True)
class Layout:
    """One tensor: its name and shape, and either the pieces that fill it or its numbers.

    Layouts of one ``group`` are the parts of the same weights; their pieces differ in ``part`` alone.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    numbers: Array | None = field(default=None, compare=False, repr=False)
    group: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers in the data file."""
        return self.pieces[0].dtype if self.pieces else np.dtype(np.float32)

    @property
    def bytes(self) -> int:
        """Its size in the data file."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


Entry = tuple[Piece, int, tuple[int, ...]]


class TensorTable:
    """The tensors of all programs of one bundle and their places in the data file."""

    def __init__(self) -> None:
        self.layouts: dict[str, Layout] = {}
        self.offsets: dict[str, int] = {}
        self._end = 0

    def add(self, layout: Layout) -> int:
        """Return the offset of a tensor, giving it a place if it is new."""
        known = self.layouts.get(layout.name)
        if known is None:
            self.layouts[layout.name] = layout
            self.offsets[layout.name] = self._end
            self._end += -(-max(layout.bytes, 1) // ALIGNMENT) * ALIGNMENT
        elif known != layout:
            raise InternalError(f"two tensors are called {layout.name}")
        return self.offsets[layout.name]

    @property
    def bytes(self) -> int:
        """Size of the data file."""
        return self._end

    def copies(self) -> dict[str, int]:
        """Return how often each weight (or expert) lies in the file, where that is more than once."""
        seen: dict[str, int] = {}
        for layout in self.layouts.values():
            for piece in layout.pieces:
                if piece.part not in ("", "codes", "units", columns.CODES):
                    continue
                key = piece.weight if piece.expert is None else f"{piece.weight}[{piece.expert}]"
                seen[key] = seen.get(key, 0) + 1
        return {name: count for name, count in seen.items() if count > 1}

    def write(self, path: Path, weights: WeightStore, progress: Callable[[str, float], None]) -> None:
        """Write the data file tensor by tensor, from slices of the weights.

        Raises:
            BundleError: the weights are damaged.
            OSError: the disk refused a write.
        """
        groups: dict[str, list[Layout]] = {}
        for layout in self.layouts.values():
            groups.setdefault(layout.group or layout.name, []).append(layout)
        with path.open("wb") as file:
            for together in groups.values():
                progress("write weights", self.offsets[together[0].name] / max(self._end, 1))
                if together[0].group:
                    self._write_parts(file, together, weights)
                else:
                    _write(file, self.offsets[together[0].name], together[0], weights)
            file.truncate(self._end)

    def _write_parts(self, file: IO[bytes], layouts: list[Layout], weights: WeightStore) -> None:
        """Write the parts of storage-typed weights, each slice of rows quantised once."""
        for pieces in zip(*(layout.pieces for layout in layouts), strict=True):
            for at, rows in _codes(pieces[0], weights):
                made = _made(pieces[0], rows)
                for layout, piece in zip(layouts, pieces, strict=True):
                    _place(file, self.offsets[layout.name], layout.shape, piece, at, made[piece.part])

    def record(self) -> dict[str, Any]:
        """Return the table as JSON data, for :class:`ProgramSource`."""
        tensors: list[dict[str, Any]] = []
        for name, layout in self.layouts.items():
            pieces = [
                {
                    "weight": p.weight,
                    "shape": p.shape,
                    "expert": p.expert,
                    "swap": p.swap,
                    "axis": p.axis,
                    "offset": p.offset,
                    "stride": p.stride,
                    "part": p.part,
                    "type": p.type,
                }
                for p in layout.pieces
            ]
            if pieces:
                tensors.append({"name": name, "shape": layout.shape, "at": self.offsets[name], "pieces": pieces})
        return {"schema_version": 2, "file": DATA_FILE, "tensors": tensors}


def _made(piece: Piece, rows: QTensor) -> dict[str, Array]:
    """Return the parts of rows of a storage-typed weight in the layout that ``piece`` is of."""
    if piece.part in columns.DTYPES:
        return columns.parts_of(rows)
    return parts_of_units(rows) if piece.part == "units" else parts_of(piece.form, rows)


def _write(file: IO[bytes], base: int, layout: Layout, weights: WeightStore) -> None:
    if layout.numbers is not None:
        file.seek(base)
        file.write(np.ascontiguousarray(layout.numbers, np.float32).data)
        return
    for piece in layout.pieces:
        for at, part in _parts(piece, weights):
            _place(file, base, layout.shape, piece, at, part)


def _parts(piece: Piece, weights: WeightStore) -> Iterator[tuple[int, Array]]:
    """Yield (first row in the weight's own order, numbers) of consecutive rows of a piece."""
    if piece.expert is not None:
        yield 0, weights.array(piece.weight, (piece.expert, piece.expert + 1))[0]
        return
    for start, _, part in weights.slices(piece.weight, SLICE_BYTES):
        yield start, part


def _codes(piece: Piece, weights: WeightStore) -> Iterator[tuple[int, QTensor]]:
    """Yield (first row in the weight's own order, codes and scales) of consecutive rows of a piece."""
    if piece.expert is not None:
        yield 0, weights.quantised(piece.weight, (piece.expert, piece.expert + 1)).pick(0)
        return
    for start, stop in weights.row_ranges(piece.weight, SLICE_BYTES):
        whole = (start, stop) == (0, piece.shape[0])
        yield start, weights.quantised(piece.weight, None if whole else (start, stop))


def _place(file: IO[bytes], base: int, shape: tuple[int, ...], piece: Piece, at: int, part: Array) -> None:
    """Write the rows ``at``.. of a piece: runs of bytes that lie together in the tensor."""
    part = np.asarray(part, piece.dtype)
    if piece.swap:
        part = np.swapaxes(part, -1, -2)
    part = np.ascontiguousarray(part)
    rank = len(shape)
    # dim of the tensor along which the slice's rows lie: the exchanged one for a matrix
    rows = 1 if piece.swap and rank == 2 else 0
    step = [piece.stride if a == piece.axis else 1 for a in range(rank)]
    strides = [part.itemsize * int(np.prod(shape[a + 1 :], dtype=np.int64)) for a in range(rank)]
    begin = base + sum(
        strides[a] * ((piece.offset if a == piece.axis else 0) + (at * step[a] if a == rows else 0))
        for a in range(rank)
    )
    # Dims from `run` on lie together in the file: all but the first of them are filled completely.
    run, filled = rank, True
    while run > 0 and filled and step[run - 1] == 1:
        run -= 1
        filled = part.shape[run] == shape[run]
    if run == rank:
        raise InternalError(f"a tensor of {rank} dims cannot be interleaved along its last one")
    for index in np.ndindex(*part.shape[:run]):
        file.seek(begin + sum(i * step[a] * strides[a] for a, i in enumerate(index)))
        file.write(part[index].data)


class ProgramSource:
    """The weights of the IR, read back from a program's data file.

    Args:
        folder: of the bundle.
        record: what :meth:`TensorTable.record` gave.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.path = folder / str(record["file"])
        self.description = str(self.path)
        if not self.path.is_file():
            raise BundleError(
                f"{self.path}: the program's data file is missing", "copy the bundle again, or compile it again"
            )
        #: name of a weight, with the part's name behind a colon -> where it lies
        self._at: dict[str, list[Entry]] = {}
        end = 0
        for tensor in record["tensors"]:
            shape = tuple(int(d) for d in tensor["shape"])
            for entry in tensor["pieces"]:
                piece = Piece(**{**entry, "shape": tuple(entry["shape"])})
                key = f"{piece.weight}:{piece.part}" if piece.part else piece.weight
                self._at.setdefault(key, []).append((piece, int(tensor["at"]), shape))
                end = max(end, int(tensor["at"]) + piece.dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        self._stored = {p.weight: p for entries in self._at.values() for p, _, _ in entries if p.part}
        if os.path.getsize(self.path) < end:
            raise BundleError(
                f"{self.path} is truncated: its tensors end at byte {end}, the file has {os.path.getsize(self.path)}",
                "copy the bundle again, or compile it again",
            )

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights; a storage-typed one is several tensors, named as in any weight file."""
        plain = [name for name in self._at if ":" not in name]
        stored = self._stored.items()
        return (*plain, *(name + suffix for name, p in stored for suffix in packing.layout(p.storage, p.shape)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the IR's own layout."""
        if name in self._at:
            return self._at[name][0][0].shape
        weight, suffix = self._split(name)
        piece = self._stored[weight]
        return packing.layout(piece.storage, piece.shape)[suffix][1]

    def read(self, name: str, box: Box) -> Array:
        """Return the part of a tensor inside ``box``, a view of the file where it can be."""
        if name in self._at:
            return self._numbers(name, box)
        weight, suffix = self._split(name)
        whole = len(self.shape(name)) == 0 or not _by_rows(self._stored[weight])
        rows = (0, self._stored[weight].shape[0]) if whole else box[0]
        canonical = _canonical(self.quantised(weight, rows))[suffix]
        return canonical[tuple(slice(a, b) for a, b in (box if whole else ((0, rows[1] - rows[0]), *box[1:])))]

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a storage-typed weight, unpacked from the program's tensors."""
        piece = self._stored[name]
        if f"{name}:units" in self._at:
            wanted = [p for p in DTYPES if p.startswith("units") and f"{name}:{p}" in self._at]
            whole = rows == (0, piece.shape[0])
            parts = {p: np.array(self._part(name, p, None if whole else rows)) for p in wanted}
            return units_back(piece.storage, parts)
        if f"{name}:{columns.CODES}" in self._at:
            return columns.back(piece.storage, {p: np.array(self._part(name, p, rows)) for p in columns.DTYPES})
        parts = {p: np.array(self._part(name, p, rows)) for p in piece.form.parts}
        return rows_back(piece.form, parts)

    def _split(self, name: str) -> tuple[str, str]:
        """Return a stored weight's name and the suffix of its tensor."""
        for suffix in ("", ".scale", ".zero", ".row"):
            if name.endswith(suffix) and name.removesuffix(suffix) in self._stored:
                return name.removesuffix(suffix), suffix
        raise BundleError(f"{self.path} holds no tensor '{name}'", "copy the bundle again, or compile it again")

    def _part(self, name: str, part: str, rows: tuple[int, int] | None) -> Array:
        entries = self._at[f"{name}:{part}"]
        whole = next((e for e in entries if e[0].expert is None), None)
        if whole is not None:
            return self._view(*whole)[slice(None) if rows is None else slice(*rows)]
        return self._stacked(entries, rows or (0, len(entries)), ())

    def _numbers(self, name: str, box: Box) -> Array:
        entries = self._at[name]
        whole = next((e for e in entries if e[0].expert is None), None)
        if whole is not None:
            return self._view(*whole)[tuple(slice(a, b) for a, b in box)]
        return self._stacked(entries, box[0], tuple(slice(a, b) for a, b in box[1:]))

    def _stacked(self, entries: list[Entry], rows: tuple[int, int], inner: tuple[slice, ...]) -> Array:
        """Return the experts ``rows`` of a weight, of each the part ``inner``."""
        experts = {e[0].expert: e for e in entries}
        first = self._view(*experts[0])[inner]
        found = np.empty((rows[1] - rows[0], *first.shape), first.dtype)
        for place, expert in enumerate(range(*rows)):
            found[place] = self._view(*experts[expert])[inner]
        return found

    def _view(self, piece: Piece, at: int, shape: tuple[int, ...]) -> Array:
        tensor = np.memmap(self.path, piece.dtype, "r", at, shape)
        part = tensor[piece.region(len(shape))]
        return np.swapaxes(part, -1, -2) if piece.swap else part


def _by_rows(piece: Piece) -> bool:
    """Whether rows of dim 0 can be read by themselves."""
    return piece.storage.group == -1 or len(piece.shape) + piece.storage.axis > 0


def _canonical(q: QTensor) -> dict[str, Array]:
    """Return codes and scales as weight files hold them, by suffix."""
    found = {"": packing.pack_codes(q.codes, q.type), ".zero": q.zero, ".row": q.row}
    found[".scale"] = packing.pack_scales(q.scale) if q.row is not None else q.scale
    return {suffix: part for suffix, part in found.items() if part is not None}
