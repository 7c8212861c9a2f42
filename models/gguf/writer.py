"""Writing a GGUF file (version 3): header, metadata, tensor entries, then the tensors, streamed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from omnic.errors import InternalError
from omnic.ir.op import Array
from omnic.models.gguf.codecs import Codec
from omnic.models.gguf.container import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING

__all__ = ["Output", "Typed", "write_container"]

_CODES = {code: kind for kind, code in SCALARS.items()}


@dataclass(frozen=True)
class Typed:
    """A metadata value, or list of them, of a kind other than the usual (u32, f32, bool, text).

    Attributes:
        code: struct code of the kind, such as ``i``.
        value: a number, or a list of them.
    """

    code: str
    value: Any


@dataclass(frozen=True)
class Output:
    """One tensor to write.

    Attributes:
        name: of it.
        shape: outermost dim first.
        codec: its type.
        parts: yields its bytes, u8[rows, bytes of a row], in order.
    """

    name: str
    shape: tuple[int, ...]
    codec: Codec
    parts: Callable[[], Iterator[Array]]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        rows = 1
        for dim in self.shape[:-1]:
            rows *= dim
        return rows * self.codec.row_bytes(self.shape[-1])


def write_container(
    file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[Output],
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Write a file.

    Args:
        file: opened for writing, empty.
        metadata: numbers (u32 or f32), booleans, texts, lists of texts, or :class:`Typed`.
        tensors: in their order.
        progress: told the share that is written.
    """
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        head.append(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        head.append(struct.pack(f"<{len(tensor.shape)}QIQ", *reversed(tensor.shape), tensor.codec.identity, offset))
        offset += _aligned(tensor.bytes)
    header = b"".join(head)
    file.write(header + bytes(_aligned(len(header)) - len(header)))
    done = 0
    for tensor in tensors:
        written = 0
        for part in tensor.parts():
            written += file.write(part.tobytes())
        if written != tensor.bytes:
            raise InternalError(f"tensor '{tensor.name}' has {written} bytes, {tensor.bytes} were announced")
        file.write(bytes(_aligned(written) - written))
        done += _aligned(written)
        progress(done / max(offset, 1))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, Typed):
        if isinstance(value.value, list):
            count = len(value.value)
            return struct.pack("<IIQ", ARRAY, _CODES[value.code], count) + struct.pack(
                f"<{count}{value.code}", *value.value)
        return struct.pack("<I" + value.code, _CODES[value.code], value.value)
    if isinstance(value, bool):
        return struct.pack("<I?", _CODES["?"], value)
    if isinstance(value, int):
        return struct.pack("<II", _CODES["I"], value)
    if isinstance(value, float):
        return struct.pack("<If", _CODES["f"], value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(item) for item in value)
    raise InternalError(f"metadata '{key}' is a {type(value).__name__}, which GGUF has no kind for")
