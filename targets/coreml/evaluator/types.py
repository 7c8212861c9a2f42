"""Element types of an ML program and the types of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnic.errors import BundleError

__all__ = ["BITS", "BLOB_CODES", "NUMPY", "Type", "is_float", "word_of_proto"]

#: MIL's word -> what holds its elements; types of fewer than 8 bits are unpacked into whole bytes
NUMPY: Mapping[str, type[np.generic]] = {
    "fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_,
    "int4": np.int8, "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint1": np.uint8, "uint2": np.uint8, "uint3": np.uint8, "uint4": np.uint8, "uint6": np.uint8, "uint8": np.uint8,
    "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}
#: MIL's word -> bits of one element in a weight file
BITS: Mapping[str, int] = {
    "fp16": 16, "fp32": 32, "fp64": 64, "bool": 8, "int4": 4, "int8": 8, "int16": 16, "int32": 32, "int64": 64,
    "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64,
}
#: MIL's word -> its code in the metadata of a weight file (coremltools, MILBlob's BlobDataType)
BLOB_CODES: Mapping[str, int] = {
    "fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int4": 8, "uint1": 9, "uint2": 10,
    "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15,
}
#: code in the program's protobuf (MIL.proto, DataType) -> MIL's word
_PROTO: Mapping[int, str] = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
}


def is_float(word: str) -> bool:
    """Whether elements of this type are floats."""
    return word.startswith("fp")


def word_of_proto(code: int) -> str:
    """Return the word of a type of the program.

    Raises:
        BundleError: a type that this evaluator does not know.
    """
    if code not in _PROTO:
        raise BundleError(f"the program has a value of element type {code}, which is not known", "use coremltools 9.0")
    return _PROTO[code]


@dataclass(frozen=True)
class Type:
    """The type of a value.

    Attributes:
        word: of its elements: ``fp16``, ``int32``, ..., ``string``; ``list`` or ``dictionary`` for what is no tensor.
        shape: dims; None is a dim that is known when it runs.
        state: whether it is a state of the runtime.
    """

    word: str
    shape: tuple[int | None, ...]
    state: bool = False

    @classmethod
    def of(cls, proto: Any) -> Type:
        """Return the type that a protobuf ``ValueType`` says."""
        kind = proto.WhichOneof("type")
        if kind == "stateType":
            inner = cls.of(proto.stateType.wrappedType)
            return cls(inner.word, inner.shape, state=True)
        if kind != "tensorType":
            return cls((kind or "none").removesuffix("Type"), ())
        tensor = proto.tensorType
        dims = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions
        )
        return cls(word_of_proto(tensor.dataType), dims)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` is of this type."""
        return len(shape) == len(self.shape) and all(
            d is None or d == n for d, n in zip(self.shape, shape, strict=True)
        )

    @property
    def count(self) -> int:
        """Number of elements; unknown dims count as 1."""
        return int(np.prod([d or 0 if d is not None else 1 for d in self.shape], dtype=np.int64))

    def __str__(self) -> str:
        return f"{self.word}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
