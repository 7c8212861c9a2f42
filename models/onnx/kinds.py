"""What the value of an ONNX graph stands for while it is imported.

Most values of an exported decoder are not tensors of the program: they are sizes, ranges and masks that
the exporter wrote out.  Each kind keeps exactly what is known, and becomes a node only when it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.dims import Dim
from omnic.ir.graph import Recipe, Value
from omnic.ir.types import DType

__all__ = ["Causal", "Flow", "Known", "Past", "Sizes", "Stored", "Tensor", "Uniform", "dtype_of_onnx", "numpy_of"]

#: ONNX element type (TensorProto.DataType) -> ours; doubles are computed as f32
_ELEMENTS: Mapping[int, DType] = {
    1: DType.F32, 2: DType.U8, 3: DType.I8, 6: DType.I32, 7: DType.I64, 9: DType.BOOL, 10: DType.F16, 11: DType.F32,
    16: DType.BF16,
}  # fmt: skip


def dtype_of_onnx(code: int) -> DType:
    """Return our element type for an ONNX one.

    Raises:
        InputError: omnic has no such type.
    """
    if code not in _ELEMENTS:
        raise InputError(f"the ONNX element type {code} has no counterpart in omnic",
                         f"known: {', '.join(sorted({str(d) for d in _ELEMENTS.values()}))}")
    return _ELEMENTS[code]


def numpy_of(dtype: DType) -> np.dtype[Any]:
    """Return the numpy type in which constants of ``dtype`` are folded (16-bit floats as f32)."""
    return np.dtype(np.float32) if dtype.is_float else dtype.numpy


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers known at import time."""

    array: NDArray[Any]
    dtype: DType

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its shape."""
        return self.array.shape


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight: a tensor of the file behind a recipe, read when asked for.

    ``label`` is what to call it: the initialiser's own name.
    """

    recipe: Recipe
    shape: tuple[int, ...]
    dtype: DType
    label: str


@dataclass(frozen=True, eq=False)
class Sizes:
    """Integers that are dim expressions: what a shape sub-graph computes (an object array of dims)."""

    dims: NDArray[Any]
    dtype: DType = DType.I64

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its shape."""
        return self.dims.shape


@dataclass(frozen=True, eq=False)
class Uniform:
    """The same value everywhere, such as the attention mask of a call without padding."""

    value: Any
    shape: tuple[Dim, ...]
    dtype: DType


@dataclass(frozen=True, eq=False)
class Causal:
    """The lower triangle: bool, true where ``column <= row + row_start + offset``, in the last two of its dims.

    ``row_start`` is a dim expression that may hold the number of past tokens; ``flip`` is its negation.
    """

    row_start: Dim
    shape: tuple[Dim, ...]
    flip: bool = False
    dtype: DType = field(default=DType.BOOL)


@dataclass(frozen=True, eq=False)
class Flow:
    """A value of the program.

    ``lifted`` says that its type has one leading batch dim more than the ONNX tensor: the tensor depends on
    the number of past tokens, which is one number in the ONNX graph and one per row in ours.
    """

    value: Value
    lifted: bool = False

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the ONNX tensor."""
        return self.value.type.shape[1:] if self.lifted else self.value.type.shape

    @property
    def dtype(self) -> DType:
        """Its element type."""
        return self.value.type.dtype


@dataclass(frozen=True, eq=False)
class Past:
    """The cache as it came in: dims ``perm`` of the state ``name``; ``axis`` is the one that grows."""

    name: str
    shape: tuple[Dim, ...]
    axis: int
    dtype: DType


Tensor = Known | Stored | Sizes | Uniform | Causal | Flow | Past
