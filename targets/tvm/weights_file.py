"""The file of weights: panels as the kernels read them, written slice by slice, and read back exactly.

The first page holds a magic word, the length of the file and the hash of the rest, by which a program knows its own
weights and refuses a file that is cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError
from omnic.ir import packing
from omnic.ir.graph import Module
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, TensorType
from omnic.ir.weights import WeightStore, part_layout
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.kernels.packing import COLUMNS, Packed, PanelType, pack, part_bytes, unpack
from omnic.targets.tvm.matrices import HEADER, Layout, Matrices, Matrix, Place

__all__ = ["TABLE_FILE", "ProgramSource", "layout_of", "write_table", "write_weights"]

TABLE_FILE = "weights.json"
MAGIC = b"omnicW01"
#: bytes of f32 that are in memory at a time
_SLICE_BYTES = 32 << 20
_CHUNK = 1 << 24
_NUMPY: Mapping[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
Array = NDArray[Any]
Box = tuple[tuple[int, int], ...]


def write_weights(
    path: Path, matrices: Matrices, weights: WeightStore, progress: Callable[[str, float], None]
) -> str:
    """Write the file and return the hash of its content, in hex."""
    layout = matrices.layout()
    with path.open("w+b") as file:
        file.truncate(layout.bytes)
        for vector in matrices.vectors.values():
            numbers = np.ascontiguousarray(weights.array(vector.weight))
            file.seek(layout.vectors[vector.weight])
            file.write((numbers.astype(np.float32, copy=False) if vector.dtype == "f32" else numbers).tobytes())
        for at, (key, matrix) in enumerate(matrices.matrices.items()):
            progress("write weights", at / len(matrices.matrices))
            for index, place in enumerate(layout.matrices[key]):
                _write_matrix(file, matrix, place, weights, index)
        digest = hashlib.sha256()
        file.seek(HEADER)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        file.seek(0)
        file.write(MAGIC + layout.bytes.to_bytes(8, "little") + digest.hexdigest().encode())
    return digest.hexdigest()


def _write_matrix(file: IO[bytes], matrix: Matrix, place: Place, weights: WeightStore, index: int) -> None:
    at = {name: begin for name, begin in asdict(place).items() if begin >= 0}
    for part in _slices(matrix, weights, index):
        for name, numbers in pack(part).parts().items():
            file.seek(at[name])
            file.write(np.ascontiguousarray(numbers).view(np.uint8).data)
            at[name] += numbers.nbytes


def _slices(matrix: Matrix, weights: WeightStore, index: int) -> Iterator[QTensor | Array]:
    """Yield one of a weight's matrices as slices of whole panels."""
    type = weights.module.weights[matrix.weight].type
    coded = matrix.panels.scale is not None
    if type.rank == 3:
        rows = index, index + 1
        if coded:
            yield weights.quantised(matrix.weight, rows).pick(0)
            return
        numbers = weights.array(matrix.weight, rows)[0]
        numbers = numbers.T if matrix.turned else numbers
        yield np.ascontiguousarray(numbers).astype(_NUMPY[matrix.panels.code])
        return
    if matrix.turned:
        yield np.ascontiguousarray(weights.array(matrix.weight).T).astype(_NUMPY[matrix.panels.code])
        return
    step = max(_SLICE_BYTES // (4 * matrix.k) // COLUMNS, 1) * COLUMNS
    for begin in range(0, matrix.n, step):
        rows = begin, min(begin + step, matrix.n)
        if coded:
            yield weights.quantised(matrix.weight, rows)
        else:
            yield weights.array(matrix.weight, rows).astype(_NUMPY[matrix.panels.code])


# -- the table of the file ------------------------------------------------------------------------------------------
def table_of(matrices: Matrices) -> dict[str, Any]:
    """Return where everything lies, as JSON has it."""
    layout = matrices.layout()
    return {
        "bytes": layout.bytes,
        "vectors": {v.weight: layout.vectors[v.weight] for v in matrices.vectors.values()},
        "matrices": [
            {"weight": m.weight, "turned": m.turned, "n": m.n, "k": m.k, "panels": asdict(m.panels),
             "places": [[p.codes, p.scales, p.zeros, p.row] for p in layout.matrices[key]]}
            for key, m in matrices.matrices.items()
        ],
    }


def write_table(folder: Path, matrices: Matrices) -> None:
    """Write the table beside the file."""
    (folder / TABLE_FILE).write_text(json.dumps(table_of(matrices)), encoding="utf-8")


def _table(folder: Path) -> dict[str, Any]:
    path = folder / TABLE_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder}: the bundle has no file '{TABLE_FILE}'", "copy the bundle again, or compile it again"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def layout_of(folder: Path) -> Layout:
    """Return where everything lies in the weights of a bundle.

    Raises:
        BundleError: it has no table.
    """
    table = _table(folder)
    places = {
        (m["weight"], m["turned"]): tuple(Place(*p) for p in m["places"]) for m in table["matrices"]
    }
    return Layout(table["vectors"], places, table["bytes"])


class ProgramSource:
    """The weights of a program, read from its own file.

    Args:
        folder: of the bundle.
        file: of its weights.
        module: its IR, for the types.

    Raises:
        BundleError: a file is missing or cut short.
    """

    def __init__(self, folder: Path, file: str, module: Module) -> None:
        table = _table(folder)
        self.path = folder / file
        if not self.path.is_file() or self.path.stat().st_size != table["bytes"]:
            raise BundleError(
                f"{self.path} is not there whole: it should have {table['bytes']:,} bytes",
                "copy the bundle again, or compile it again",
            )
        self._bytes = np.memmap(self.path, np.uint8, "r")
        self._vectors: Mapping[str, int] = table["vectors"]
        self._matrices: dict[str, dict[str, Any]] = {}
        for entry in table["matrices"]:
            if entry["weight"] not in self._matrices or not entry["turned"]:
                self._matrices[entry["weight"]] = entry
        self._types = {n: w.type for n, w in module.weights.items() if n in self._vectors or n in self._matrices}
        self._parts = {n + suffix: (n, suffix) for n, t in self._types.items() for suffix in part_layout(t)}

    @property
    def description(self) -> str:
        """What to call the source in an error."""
        return str(self.path)

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return tuple(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the canonical packing."""
        weight, suffix = self._parts[name]
        return part_layout(self._types[weight])[suffix][1]

    def read(self, name: str, box: Box) -> Array:
        """Return what of a tensor is inside ``box``."""
        weight, suffix = self._parts[name]
        type = self._types[weight]
        if not box:
            return self._plain(weight, type, (0, 1)).reshape(())
        if not isinstance(type.element, Storage):
            inner = tuple(slice(a, b) for a, b in box[1:])
            return self._plain(weight, type, box[0])[(slice(None), *inner)].astype(type.element.numpy, copy=False)
        whole = type.rank + type.element.axis == 0
        rows = (0, fixed_shape(type)[0]) if whole else box[0]
        part = packing.packed_parts(self.quantised(weight, rows))[suffix]
        first = box[0] if whole else (0, rows[1] - rows[0])
        return part[tuple(slice(a, b) for a, b in (first, *box[1:]))]

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a weight of a storage type.

        What panels hold in f32 is rounded again: the codes may then differ where two stand for one number.
        """
        type = self._types[name]
        assert isinstance(type.element, Storage)
        entry = self._matrices.get(name)
        if entry is None or entry["panels"]["scale"] is None:
            return packing.quantise(np.asarray(self._plain(name, type, rows), np.float32), type.element)
        if type.rank == 2:
            found = self._matrix(entry, 0, rows, type.element)
            assert isinstance(found, QTensor)
            return found
        experts = [self._matrix(entry, i, None, type.element) for i in range(*rows)]
        parts = [e.parts() for e in experts if isinstance(e, QTensor)]
        return QTensor.of_parts(type.element, {k: np.stack([p[k] for p in parts]) for k in parts[0]})

    def _plain(self, name: str, type: TensorType, rows: tuple[int, int]) -> Array:
        shape = fixed_shape(type)
        entry = self._matrices.get(name)
        if entry is None:
            dtype = np.dtype(np.float32) if type.is_float else type.dtype.numpy
            count = int(np.prod(shape, dtype=np.int64))
            begin = self._vectors[name]
            whole = self._bytes[begin : begin + count * dtype.itemsize].view(dtype).reshape(shape or (1,))
            return np.array(whole[slice(*rows)])
        if len(shape) == 2 and not entry["turned"]:
            return np.asarray(self._matrix(entry, 0, rows, None))
        if len(shape) == 2:
            return np.asarray(self._matrix(entry, 0, None, None)).T[slice(*rows)]
        found = [np.asarray(self._matrix(entry, i, None, None)) for i in range(*rows)]
        return np.stack([f.T if entry["turned"] else f for f in found])

    def _matrix(
        self, entry: Mapping[str, Any], index: int, rows: tuple[int, int] | None, to: Storage | None
    ) -> QTensor | Array:
        """Return rows of one packed matrix; only their panels are read."""
        panels = PanelType(**entry["panels"])
        n, k = entry["n"], entry["k"]
        first, last = rows or (0, n)
        begin, end = first // COLUMNS * COLUMNS, min(-(-last // COLUMNS) * COLUMNS, n)
        before, inside = part_bytes(panels, max(begin, 1), k), part_bytes(panels, end - begin, k)
        names = ("codes", "scales", "zeros", "row")
        parts: dict[str, Array] = {}
        for name, place in zip(names, entry["places"][index], strict=True):
            if name in inside:
                at = place + (before[name] if begin else 0)
                parts[name] = np.array(self._bytes[at : at + inside[name]])
        if "row" in parts:
            parts["row"] = parts["row"].view(np.float32)
        found = unpack(Packed(panels, end - begin, k, **parts), to)
        cut = slice(first - begin, last - begin)
        return found.pick(cut) if isinstance(found, QTensor) else found[cut]
