"""The weight file of an ML package, read by offset: a header, and before each tensor 64 bytes that describe it.

Format: coremltools' MILBlob, version 2.  The header (64 bytes) holds the number of tensors and the version; the bytes
at a tensor's offset hold a sentinel, the element type, the size in bytes, and where the elements begin.  Elements of
fewer than 8 bits lie without gaps, the lowest bits of a byte first.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError
from omnic.targets.coreml.evaluator.types import BITS, BLOB_CODES, NUMPY

__all__ = ["Entry", "WeightFile", "unpacked"]

_SENTINEL = 0xDEADBEEF
_METADATA = struct.Struct("<IIQQQ")
_VERSION = 2
_REMEDY = "write the package again; a copy of it may be incomplete"


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies.

    Attributes:
        word: MIL's word for its elements.
        start: of its elements, in bytes from the file's beginning.
        size: in bytes.
    """

    word: str
    start: int
    size: int


def unpacked(raw: bytes | bytearray, word: str, count: int, skip: int = 0) -> NDArray[Any]:
    """Return ``count`` elements of ``raw``, from element ``skip`` on; small ones in a byte each."""
    bits = BITS[word]
    if bits >= 8:
        return np.frombuffer(raw, NUMPY[word], count, skip * (bits // 8))
    taken = np.frombuffer(raw, np.uint8)
    if bits == 4 and skip % 2 == 0:
        both = np.empty(2 * taken.size, np.uint8)
        np.bitwise_and(taken, 15, out=both[::2])
        np.right_shift(taken, 4, out=both[1::2])
        found = both[skip : skip + count]
    else:
        lined = np.unpackbits(taken, bitorder="little")[skip * bits : (skip + count) * bits].reshape(count, bits)
        found = np.packbits(lined, axis=-1, bitorder="little")[:, 0]
    if word.startswith("int"):
        found = ((found ^ (1 << (bits - 1))).astype(np.int8) - np.int8(1 << (bits - 1))).astype(np.int8)
    return found


class WeightFile:
    """One weight file, opened for reading; nothing is kept of what is read.

    Args:
        path: the file.

    Raises:
        BundleError: it is missing, or its header is not one of a weight file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise BundleError(f"{path}: the weight file cannot be read: {error.strerror}", _REMEDY) from None
        self.size = os.fstat(self._file.fileno()).st_size
        header = os.pread(self._file.fileno(), 64, 0)
        if len(header) < 64 or struct.unpack_from("<I", header, 4)[0] != _VERSION:
            raise BundleError(f"{path}: not a weight file of an ML package (version {_VERSION})", _REMEDY)
        self.entry = lru_cache(maxsize=None)(self._entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _entry(self, offset: int) -> Entry:
        raw = os.pread(self._file.fileno(), 64, offset) if 0 <= offset < self.size else b""
        if len(raw) < 64:
            raise BundleError(
                f"{self.path}: a tensor is said to lie at offset {offset}, beyond the file's {self.size} bytes", _REMEDY
            )
        sentinel, code, size, start, _ = _METADATA.unpack_from(raw)
        if sentinel != _SENTINEL:
            raise BundleError(f"{self.path}: no tensor lies at offset {offset}", _REMEDY)
        words = {v: k for k, v in BLOB_CODES.items()}
        if code not in words:
            raise BundleError(f"{self.path}: the tensor at offset {offset} has the unknown type {code}", _REMEDY)
        if start + size > self.size:
            raise BundleError(
                f"{self.path}: the tensor at offset {offset} needs {start + size} bytes of a file of {self.size}: the"
                " file was cut off", _REMEDY,
            )
        return Entry(words[code], start, size)

    def read(self, offset: int, word: str, start: int, stop: int, count: int) -> NDArray[Any]:
        """Return the elements ``start`` to ``stop`` of the tensor at ``offset``, flat.

        Args:
            offset: of the tensor's metadata, as the program says it.
            word: the type that the program gives it.
            start: first element.
            stop: behind the last element.
            count: how many elements the program says it has.

        Raises:
            BundleError: the file does not hold what the program says.
        """
        entry, bits = self.entry(offset), BITS[word]
        stored = "uint8" if word == "bool" else word
        if entry.word != stored or entry.size < -(-count * bits // 8):
            raise BundleError(
                f"{self.path}: the tensor at offset {offset} is {entry.size} bytes of {entry.word}, and the program"
                f" reads {count} elements of {word}", _REMEDY,
            )
        begin = start - start % 8 if bits < 8 else start  # eight small elements fill whole bytes
        first, last = begin * bits // 8, -(-stop * bits // 8)
        raw = bytearray(last - first)
        at = 0
        while at < len(raw):  # one read returns at most 2 GiB
            part = os.pread(self._file.fileno(), min(len(raw) - at, 1 << 30), entry.start + first + at)
            if not part:
                raise BundleError(f"{self.path}: the file ends inside the tensor at offset {offset}", _REMEDY)
            raw[at : at + len(part)] = part
            at += len(part)
        return unpacked(raw, word, stop - start, start - begin)
