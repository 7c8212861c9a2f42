"""The container of GGUF: a header of typed metadata and tensor entries, then the tensors' bytes, memory-mapped.

Format: ggml's ``docs/gguf.md``; versions 2 and 3, little-endian.  Nothing of a file is trusted: every count and offset
is checked against the bytes that are there before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import BundleError
from omnic.ir.op import Array
from omnic.models.gguf.codecs import CODECS, TYPE_NAMES, Codec

__all__ = ["ARRAY", "SCALARS", "STRING", "GgufFile", "TensorEntry", "read_gguf"]

MAGIC = b"GGUF"
ALIGNMENT = 32
# Number of a metadata value's kind -> struct code; 8 is a text, 9 a list.
SCALARS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
_AGAIN = "fetch or convert the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        name: as written.
        shape: outermost dim first (the file has it the other way round).
        codec: its type.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    codec: Codec
    offset: int

    @property
    def rows(self) -> int:
        """Number of runs of the innermost dim."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.codec.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Attributes:
        path: of the file.
        version: of the format.
        metadata: value by key; numbers, texts, booleans and lists of them.
        tensors: entry by name.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    def rows(self, entry: TensorEntry, start: int, stop: int) -> Array:
        """Return rows of a tensor as they lie in the file: u8[stop - start, bytes of a row], not yet read."""
        width = entry.codec.row_bytes(entry.shape[-1])
        if stop <= start or not width:
            return np.zeros((max(stop - start, 0), width), np.uint8)
        return np.memmap(self.path, np.uint8, "r", entry.offset + start * width, (stop - start, width))


class _Cursor:
    """Reads the header front to back, and complains when it ends too early."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.data) - self.at:
            raise BundleError(f"{self.path} is truncated: {what} at byte {self.at} needs {size} bytes, the file has "
                              f"{len(self.data) - self.at} left", _AGAIN)
        part = self.data[self.at : self.at + size]
        self.at += size
        return part

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        size = self.number("Q", f"the length of {what}")
        part = bytes(self.take(size, what))
        try:
            return part.decode("utf-8")
        except UnicodeDecodeError as error:
            # Vocabularies of some models hold pieces that are no UTF-8; the bytes stay recognisable.
            if what.startswith("the value of 'tokenizer."):
                return part.decode("utf-8", "replace")
            raise BundleError(f"{self.path} is damaged: {what} is not UTF-8 text", _AGAIN) from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            found = self.number(SCALARS[kind], what)
            # The shortest decimal that is this f32: 1e-06, not 9.999999974752427e-07.
            return float(str(np.float32(found))) if SCALARS[kind] == "f" else found
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY or depth > 2:
            raise BundleError(f"{self.path} is damaged: {what} is of the unknown kind {kind}", _AGAIN)
        inner, count = self.number("I", what), self.number("Q", what)
        if inner in SCALARS:
            code = np.dtype("<" + {"?": "b1", "B": "u1", "b": "i1"}.get(SCALARS[inner], SCALARS[inner]))
            return np.frombuffer(self.take(count * code.itemsize, what), code).tolist()
        if count > len(self.data) - self.at:
            raise BundleError(f"{self.path} is truncated: {what} says it has {count} entries", _AGAIN)
        if inner == STRING:
            return self.texts(count, what)
        return [self.value(inner, what, depth + 1) for _ in range(count)]

    def texts(self, count: int, what: str) -> list[str]:
        """Return a list of texts; vocabularies have hundreds of thousands."""
        data, end, size_at = self.data, len(self.data), struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            start = self.at + 8
            stop = start + size_at(data, self.at)[0] if start <= end else end + 1
            try:
                found.append(str(data[start:stop], "utf-8") if stop <= end else self.text(what))
            except UnicodeDecodeError:
                found.append(self.text(what))
                continue
            self.at = stop
        return found


def read_gguf(path: Path | str) -> GgufFile:
    """Read the header of a GGUF file; no tensor is read.

    Raises:
        BundleError: no such file, another format, a version omnic does not read, truncated, damaged, or a tensor of a
            type it does not know.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = memoryview(np.memmap(path, np.uint8, "r")) if size else memoryview(b"")  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", "name a .gguf file") from error
    if bytes(data[:4]) != MAGIC:
        raise BundleError(f"{path} is not a GGUF file: it does not begin with 'GGUF'", "name a .gguf file")
    cursor = _Cursor(data, path)
    cursor.take(4, "the magic")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        known = version & 0xFFFF == 0
        what = "is a big-endian GGUF file" if known else f"is a GGUF file of version {version}"
        raise BundleError(f"{path} {what}; omnic reads versions 2 and 3, little-endian",
                          "convert the model again with a present llama.cpp")
    count, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise BundleError(f"{path} is damaged: the metadata key '{key}' occurs twice", _AGAIN)
        metadata[key] = cursor.value(cursor.number("I", f"the kind of '{key}'"), f"the value of '{key}'")
    entries = [_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise BundleError(f"{path} is damaged: general.alignment is {alignment!r}", _AGAIN)
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in entries:
        tensors[name] = _checked(path, size, name, shape, kind, start + offset, alignment, start)
    if len(tensors) != count:
        raise BundleError(f"{path} is damaged: a tensor's name occurs twice", _AGAIN)
    return GgufFile(path, version, metadata, tensors)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    rank = cursor.number("I", f"the rank of '{name}'")
    if not 1 <= rank <= 4:
        raise BundleError(f"{cursor.path} is damaged: tensor '{name}' has {rank} dims", _AGAIN)
    shape = tuple(cursor.number("Q", f"the shape of '{name}'") for _ in range(rank))
    return name, shape[::-1], cursor.number("I", f"the type of '{name}'"), cursor.number("Q", f"the place of '{name}'")


def _checked(path: Path, size: int, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int,
             start: int) -> TensorEntry:
    codec = CODECS.get(TYPE_NAMES.get(kind, ""))
    if codec is None:
        raise BundleError(
            f"{path}: tensor '{name}' is of the type {TYPE_NAMES.get(kind, f'number {kind}')}; omnic reads "
            f"{', '.join(CODECS)}",
            "take the file in one of these types, or convert it: llama-quantize --allow-requantize IN OUT q8_0",
        )
    if shape[-1] % codec.values:
        raise BundleError(f"{path} is damaged: the rows of tensor '{name}' {list(shape)} are no whole blocks of "
                          f"{codec.values} numbers of {codec.name}", _AGAIN)
    numbers = 1
    for dim in shape:  # in whole numbers of any size, as a damaged file's shapes overflow others
        numbers *= dim
    end = offset + numbers // codec.values * codec.bytes
    if (offset - start) % alignment or end > size:
        raise BundleError(
            f"{path} is truncated: tensor '{name}' ends at byte {end}, the file has {size}" if end > size else
            f"{path} is damaged: tensor '{name}' does not begin at a multiple of {alignment} bytes", _AGAIN,
        )
    return TensorEntry(name, shape, codec, offset)
