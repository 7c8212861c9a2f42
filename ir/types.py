"""Tensor types: plain element types, storage-quantised types, and tensors of them.

A storage type says how numbers lie in memory (``i4<g32>``: 4-bit integers, one f16 scale per 32
numbers of the contraction dim); arithmetic is done on what they decode to.  The canonical packing is
in :mod:`omnic.ir.packing`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import ml_dtypes
import numpy as np

from omnic.errors import InputError, nearest
from omnic.ir.dims import Dim, parse_dim, product

__all__ = ["DType", "ElementType", "Storage", "TensorType", "parse_element", "parse_type"]


class DType(Enum):
    """A plain element type."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"

    def __str__(self) -> str:
        return self.value

    @property
    def bits(self) -> int:
        """Bits of one element in memory (a bool takes a byte)."""
        return {"f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i8": 8, "u8": 8, "bool": 8}[self.value]

    @property
    def is_float(self) -> bool:
        """Whether this is a floating point type."""
        return self in (DType.F32, DType.F16, DType.BF16)

    @property
    def is_integer(self) -> bool:
        """Whether this is an integer type (bool is not)."""
        return self in (DType.I64, DType.I32, DType.I8, DType.U8)

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type of the stored bytes (bf16 through ml_dtypes)."""
        return np.dtype(_NUMPY[self.value])


_NUMPY: dict[str, type] = {
    "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i64": np.int64, "i32": np.int32,
    "i8": np.int8, "u8": np.uint8, "bool": np.bool_,
}

StorageKind = Literal["i8", "i6", "i5", "i4", "i3", "i2", "nf4", "fp4", "t2"]
ScaleKind = Literal["f16", "f32", "s4", "e8m0", "one"]
_STORAGE_BITS: dict[str, int] = {"i8": 8, "i6": 6, "i5": 5, "i4": 4, "i3": 3, "i2": 2, "nf4": 4, "fp4": 4, "t2": 2}


@dataclass(frozen=True)
class Storage:
    """A storage-quantised element type.

    Attributes:
        kind: the code: ``i8 i6 i5 i4 i3 i2`` integers, ``nf4`` (QLoRA, arXiv:2305.14314), ``fp4`` (E2M1),
            ``t2`` ternary in two bits.
        group: numbers along ``axis`` that share a scale; 0 = the whole axis (``row``);
            -1 = everything but the first dim (``head``).
        asym: with a zero point (u8) beside the scale.
        scale: type of the scale: f16, f32, ``s4`` (4-bit integer 1..15 times one f32 per row), ``e8m0`` (a byte s
            that stands for 2^(s - 127): OCP Microscaling Formats 1.0, 5.4.1), or ``one``: no scale is stored, every
            group has the scale 1 (whoever writes such a tensor has divided by a scale of its own).
        axis: the grouped dim, counted from the end; -1 is the contraction dim.
    """

    kind: StorageKind
    group: int
    asym: bool = False
    scale: ScaleKind = "f16"
    axis: int = -1

    @property
    def bits(self) -> int:
        """Bits of one code, scales not counted."""
        return _STORAGE_BITS[self.kind]

    @property
    def is_float(self) -> bool:
        """A storage type decodes to floating point numbers."""
        return True

    def groups(self, size: int) -> int:
        """Return how many groups a dim of ``size`` has (a ragged tail counts as one)."""
        return 1 if self.group <= 0 else -(-size // self.group)

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor in the canonical packing: codes, scales and zero points."""
        size = shape[self.axis]
        rows = int(np.prod(shape, dtype=np.int64)) // max(size, 1)
        codes = rows * -(-size * self.bits // 8)
        if self.scale == "one":
            return codes
        scales = shape[0] if self.group == -1 else rows * self.groups(size)
        if self.scale == "s4":
            return codes + rows * -(-self.groups(size) // 2) + 4 * rows + (scales if self.asym else 0)
        return codes + scales * {"f32": 4, "f16": 2, "e8m0": 1}[self.scale] + (scales if self.asym else 0)

    def __str__(self) -> str:
        words = ["row" if self.group == 0 else "head" if self.group == -1 else f"g{self.group}"]
        if self.asym:
            words.append("asym")
        if self.scale != "f16":
            words.append(self.scale)
        if self.axis != -1:
            words.append(f"axis{self.axis}")
        return f"{self.kind}<{', '.join(words)}>"


ElementType = DType | Storage


@dataclass(frozen=True)
class TensorType:
    """An element type and a shape; ``f32[]`` is a scalar."""

    element: ElementType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(str(d) for d in self.shape)}]"

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the elements are (or decode to) floating point numbers."""
        return self.element.is_float

    @property
    def dtype(self) -> DType:
        """The plain element type.

        Raises:
            InputError: the type is a storage type.
        """
        if isinstance(self.element, DType):
            return self.element
        raise InputError(f"{self} is a storage type; its numbers are read through dequantise")

    @property
    def decoded(self) -> TensorType:
        """The type of the numbers: itself, or f32 of the same shape for a storage type."""
        return self if isinstance(self.element, DType) else TensorType(DType.F32, self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    def with_shape(self, *shape: Dim) -> TensorType:
        """Return the type of the same elements and another shape."""
        return TensorType(self.element, tuple(shape))

    def with_element(self, element: ElementType) -> TensorType:
        """Return the type of the same shape and other elements."""
        return TensorType(element, self.shape)

    def bytes(self) -> int:
        """Return the bytes in memory, scales and zero points included.

        Raises:
            InputError: a dim is symbolic.
        """
        numbers: list[int] = []
        for dim in self.shape:
            if not isinstance(dim, int):
                raise InputError(f"the bytes of {self} depend on {dim}")
            numbers.append(dim)
        if isinstance(self.element, Storage):
            return self.element.bytes(tuple(numbers))
        return int(np.prod(numbers, dtype=np.int64)) * self.element.bits // 8


_ELEMENT = re.compile(r"\s*(\w+)\s*(?:<([^>]*)>)?\s*$")


def parse_element(text: str) -> ElementType:
    """Parse an element type such as ``bf16`` or ``i4<g64, asym>``.

    Raises:
        InputError: unknown type or option.
    """
    match = _ELEMENT.match(text)
    if not match:
        raise InputError(f"'{text}' is not an element type")
    name, options = match.group(1), match.group(2)
    if options is None:
        plain = {d.value: d for d in DType}
        if name in plain:
            return plain[name]
        near = nearest(name, [*plain, *_STORAGE_BITS])
        if name in _STORAGE_BITS:
            raise InputError(f"storage type '{name}' needs its group", f"write {name}<g32> or {name}<row>")
        raise InputError(f"unknown element type '{name}'", f"did you mean '{near}'?" if near else None)
    if name not in _STORAGE_BITS:
        raise InputError(f"'{name}' takes no options in <>", f"storage types: {', '.join(_STORAGE_BITS)}")
    return _parse_storage(name, [w.strip() for w in options.split(",")])


def _parse_storage(name: str, words: list[str]) -> Storage:
    group: int | None = None
    asym, scale, axis = False, "f16", -1
    for word in words:
        if word in ("row", "head"):
            group = 0 if word == "row" else -1
        elif re.fullmatch(r"g[1-9]\d*", word):
            group = int(word[1:])
        elif word == "asym":
            asym = True
        elif word in ("f16", "f32", "s4", "e8m0", "one"):
            scale = word
        elif re.fullmatch(r"axis-\d+", word):
            axis = int(word[4:])
        else:
            known = "gN, row, head, asym, f16, f32, s4, e8m0, one, axis-N"
            raise InputError(f"unknown option '{word}' of {name}<>", f"known: {known}")
    if group is None:
        raise InputError(f"{name}<{', '.join(words)}> names no group", f"write {name}<g32> or {name}<row>")
    return Storage(name, group, asym, scale, axis)  # type: ignore[arg-type]


def parse_type(text: str) -> TensorType:
    """Parse a tensor type such as ``f32[B, T, 256]``.

    Raises:
        InputError: the text is not a tensor type.
    """
    match = re.fullmatch(r"\s*(.+?)\s*\[(.*)\]\s*", text, re.S)
    if not match:
        raise InputError(f"'{text}' is not a tensor type", "write it as f32[B, 16]")
    body = match.group(2).strip()
    dims = tuple(parse_dim(d) for d in _split(body)) if body else ()
    return TensorType(parse_element(match.group(1)), dims)


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
