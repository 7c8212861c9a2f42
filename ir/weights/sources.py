"""Where numbers come from: safetensors files (memory-mapped), arrays in memory, and seeded random numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import ml_dtypes
import numpy as np

from omnic.errors import BundleError, InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import TensorType, parse_type

__all__ = ["TYPES_KEY", "ArraySource", "Box", "CodeSource", "SafetensorsSource", "Source", "TypedSource", "code_rows",
           "normal_rows"]

Box = tuple[tuple[int, int], ...]
BLOCK = 1 << 16

TYPES_KEY = "omnic.types"
"""Metadata of a weight file: a JSON object of the types of tensors that have one of their own, by name."""

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}


class Source(Protocol):
    """Named tensors that can be read in parts."""

    @property
    def description(self) -> str:
        """Return what to call the source in an error."""
        ...

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        ...

    def read(self, name: str, box: Box) -> Array:
        """Return the part of a tensor inside ``box`` ((start, stop) per dim), in its own dtype."""
        ...


@runtime_checkable
class TypedSource(Source, Protocol):
    """A source that says of some tensors which type a model has to have them in.

    One of a storage type lies under its name (codes, canonical packing) and the name with ``.scale``, ``.zero`` and
    ``.row``.
    """

    def typed(self, name: str) -> TensorType | None:
        """Return the type and shape of a tensor that has a type of its own, None for any other."""
        ...


@runtime_checkable
class CodeSource(Source, Protocol):
    """A source that gives codes and scales in one go: read by their names, each would be unpacked anew."""

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a tensor of a storage type."""
        ...


def _cut(array: Array, box: Box) -> Array:
    return array[tuple(slice(a, b) for a, b in box)]


class ArraySource:
    """Arrays in memory."""

    description = "the given arrays"

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays: dict[str, Array] = {name: np.asarray(array) for name, array in arrays.items()}

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return tuple(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._arrays[name].shape

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a tensor."""
        return _cut(self._arrays[name], box)


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: Any
    shape: tuple[int, ...]
    offset: int


class SafetensorsSource:
    """The tensors of one or more safetensors files, memory-mapped: bytes are read when asked for.

    ``metadata`` holds the free text of the headers.

    Args:
        paths: a ``.safetensors`` file, several, a folder of them, or an ``.index.json`` that names shards.

    Raises:
        BundleError: a file is missing, damaged, truncated, or a name occurs twice.
    """

    def __init__(self, paths: Path | str | Sequence[Path]) -> None:
        given = [Path(paths)] if isinstance(paths, (str, Path)) else list(paths)
        self.description = ", ".join(str(p) for p in given)
        self._entries: dict[str, _Entry] = {}
        self.metadata: dict[str, str] = {}
        for path in [found for p in given for found in _files(p)]:
            entries, metadata = _header(path)
            self.metadata |= metadata
            for name, entry in entries.items():
                if name in self._entries:
                    raise BundleError(f"tensor '{name}' is in {self._entries[name].path} and in {path}")
                self._entries[name] = entry
        self._types = _stored_types(self.metadata.get(TYPES_KEY), self.description)

    def typed(self, name: str) -> TensorType | None:
        """Return the type that the file's metadata says a tensor has."""
        return self._types.get(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entries[name].shape

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a tensor (a view of the file where it can be)."""
        entry = self._entries[name]
        if any(a == b for a, b in box):
            return np.empty([b - a for a, b in box], entry.dtype)  # asked for its type: nothing to map
        return _cut(np.memmap(entry.path, entry.dtype, "r", entry.offset, entry.shape), box)


def _stored_types(text: str | None, origin: str) -> dict[str, TensorType]:
    if text is None:
        return {}
    try:
        written: Any = json.loads(text)
        return {str(name): parse_type(type) for name, type in written.items()}
    except (json.JSONDecodeError, AttributeError, TypeError, InputError) as error:
        raise BundleError(f"{origin}: the metadata '{TYPES_KEY}' is damaged") from error


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise BundleError(f"{path} holds no .safetensors file", "name the weight file, or the folder it lies in")
        return found
    if not path.is_file():
        raise BundleError(f"weight file {path} does not exist", "give --weights FILE, or --seed N for random ones")
    if path.name.endswith(".index.json"):
        index = _json(path.read_bytes(), path, "an index of safetensors files")
        shards: Any = index.get("weight_map")
        if not isinstance(shards, dict):
            raise BundleError(f"{path} has no 'weight_map'")
        names = sorted({str(v) for v in cast(dict[str, Any], shards).values()})
        gone = [name for name in names if not (path.parent / name).is_file()]
        if gone:
            which = "which does" if len(gone) == 1 else "which do"
            raise BundleError(f"{path} names {', '.join(gone[:4])}{', ...' if len(gone) > 4 else ''}, {which} not lie "
                              "beside it", "fetch the missing shard" + ("s" if len(gone) > 1 else ""))
        return [path.parent / name for name in names]
    return [path]


def _json(text: bytes, path: Path, what: str = "a safetensors file") -> dict[str, Any]:
    try:
        found: Any = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not {what}: {error}", "fetch the file again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} is not {what}: it holds no object", "fetch the file again")
    return cast(dict[str, Any], found)


def _header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Read and check the header (format: huggingface.co/docs/safetensors, "Format")."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise BundleError(f"{path} is truncated or not a safetensors file ({size} bytes)",
                              "fetch or write the file again")
        table = _json(file.read(length), path)
    metadata: Any = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise BundleError(f"{path} is not a safetensors file: its metadata is not an object")
    entries = {name: _entry(path, name, spec, 8 + length, size) for name, spec in table.items()}
    return entries, {str(k): str(v) for k, v in cast(dict[str, Any], metadata).items()}


def _entry(path: Path, name: str, spec: Any, base: int, size: int) -> _Entry:
    try:
        kind, shape, (begin, end) = str(spec["dtype"]), tuple(int(d) for d in spec["shape"]), spec["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: the header entry of '{name}' is damaged") from error
    if kind not in _DTYPES:
        raise BundleError(f"{path}: tensor '{name}' is {kind}; omnic reads {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[kind])
    want = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if min((*shape, begin)) < 0 or end - begin != want:
        raise BundleError(f"{path}: tensor '{name}' {list(shape)} needs {want} bytes, its header gives {end - begin}")
    if base + end > size:
        raise BundleError(f"{path} is truncated: tensor '{name}' ends at byte {base + end}, the file has {size}",
                          "fetch or write the file again")
    return _Entry(path, dtype, shape, base + begin)


def _blocks(
    seed: int, name: str, start: int, stop: int, dtype: Any, draw: Callable[[np.random.Generator, Array], None]
) -> Array:
    """Return elements start..stop of a stream that is a function of (seed, name) alone.

    The stream is cut in blocks of 65,536; block i has a generator of its own (SFC64) seeded by a hash of
    (seed, name) and i, so that any part can be made by itself.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")
    out = np.empty(stop - start, dtype)
    spare = np.empty(BLOCK, dtype)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence((key, block))))
        first = block * BLOCK
        if start <= first and first + BLOCK <= stop:
            draw(generator, out[first - start : first - start + BLOCK])
            continue
        draw(generator, spare)
        low, high = max(start, first), min(stop, first + BLOCK)
        out[low - start : high - start] = spare[low - first : high - first]
    return out


def _rows(shape: tuple[int, ...], rows: tuple[int, int]) -> tuple[int, int, tuple[int, ...]]:
    """Return the flat range of ``rows`` and their shape."""
    if not shape:
        return 0, 1, ()
    width = int(np.prod(shape[1:], dtype=np.int64))
    return rows[0] * width, rows[1] * width, (rows[1] - rows[0], *shape[1:])


def normal_rows(seed: int, name: str, shape: tuple[int, ...], std: float, rows: tuple[int, int]) -> Array:
    """Return rows ``rows[0]..rows[1]`` of the normal(0, std) f32 tensor that (seed, name) stand for.

    However a tensor is cut in rows, the numbers are the same.
    """
    if std < 0:
        raise InputError(f"weight '{name}': normal(std = {std}) must not be negative")
    start, stop, part = _rows(shape, rows)

    def draw(generator: np.random.Generator, into: Array) -> None:
        generator.standard_normal(dtype=np.float32, out=into)

    numbers = _blocks(seed, name, start, stop, np.float32, draw)
    numbers *= np.float32(std)
    return numbers.reshape(part)


def code_rows(seed: int, name: str, shape: tuple[int, ...], low: int, high: int, rows: tuple[int, int]) -> Array:
    """Return rows of the int8 tensor of uniform codes ``low..high`` that (seed, name) stand for."""
    start, stop, part = _rows(shape, rows)

    def draw(generator: np.random.Generator, into: Array) -> None:
        into[:] = generator.integers(low, high, BLOCK, np.int8, endpoint=True)

    return _blocks(seed, name, start, stop, np.int8, draw).reshape(part)
