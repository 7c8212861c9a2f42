"""Constants that are decoded when they are read: blocks with scales, tables, sparse ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError
from omnic.targets.coreml.evaluator.graph import Literal
from omnic.targets.coreml.evaluator.stored import Blockwise, Held, Made, Stored, Table
from omnic.targets.coreml.evaluator.types import NUMPY

__all__ = ["CONSTEXPR"]

#: parameter -> what it is given, None when it is absent
Operands = Callable[[str], Literal | None]


def _need(given: Operands, parameter: str) -> Stored:
    found = given(parameter)
    if not isinstance(found, Stored):
        raise BundleError(f"a constant has no operand '{parameter}'")
    return found


def _maybe(given: Operands, parameter: str) -> Stored | None:
    return _need(given, parameter) if given(parameter) is not None else None


def _blockwise(given: Operands) -> Sequence[Literal]:
    data, scale = _need(given, "data"), _need(given, "scale")
    if len(data.shape) != len(scale.shape) or any(d % s for d, s in zip(data.shape, scale.shape, strict=True)):
        raise BundleError(f"scales of shape {list(scale.shape)} do not divide codes of shape {list(data.shape)}")
    return (Blockwise(data, scale, _maybe(given, "offset")),)


def _table(given: Operands) -> Sequence[Literal]:
    indices, lut, axis = _need(given, "indices"), _need(given, "lut"), _maybe(given, "vector_axis")
    if given("shape") is not None:  # the oldest form: flat bytes of packed indices
        return _flat_table(indices, lut, _need(given, "shape"))
    return (Table(indices, lut.array(), lut.word, int(axis.array()) if axis is not None else -1),)


def _flat_table(indices: Stored, lut: Stored, shape: Stored) -> Sequence[Literal]:
    from omnic.targets.coreml.evaluator.blobs import unpacked

    dims = tuple(int(d) for d in shape.array())
    bits = int(np.log2(lut.shape[0]))

    def make() -> NDArray[Any]:
        codes = unpacked(indices.array().tobytes(), f"uint{bits}", int(np.prod(dims)))
        return lut.array()[codes].reshape(dims)

    return (Made(lut.word, dims, make),)


def _affine(given: Operands) -> Sequence[Literal]:
    data, scale, zero = _need(given, "quantized_data"), _need(given, "scale"), _need(given, "zero_point")
    axis = int(_need(given, "axis").array().reshape(()))

    def make() -> NDArray[Any]:
        shape = [-1 if i == axis else 1 for i in range(len(data.shape))]
        factor, origin = (v.array().astype(np.float32) for v in (scale, zero))
        factor, origin = (v.reshape(shape) if v.ndim else v for v in (factor, origin))
        return (data.array().astype(np.float32) - origin) * factor

    return (Made(scale.word, data.shape, make),)


def _cast(given: Operands) -> Sequence[Literal]:
    source, word = _need(given, "source_val"), given("output_dtype")
    if not isinstance(word, str) or word not in NUMPY:
        raise BundleError("constexpr_cast to an unknown type")
    return (Made(word, source.shape, source.array),)


def _sparse(given: Operands) -> Sequence[Literal]:
    data, mask = _need(given, "nonzero_data"), _need(given, "mask")
    shape = mask.shape
    old = given("shape")
    if isinstance(old, Stored):
        shape = tuple(int(d) for d in old.array())

    def make() -> NDArray[Any]:
        where = mask.array()
        if isinstance(old, Stored):  # bits in bytes, the lowest first
            where = np.unpackbits(where.view(np.uint8), bitorder="little")[: int(np.prod(shape))]
        found = np.zeros(int(np.prod(shape)), NUMPY[data.word])
        found[where.reshape(-1) != 0] = data.array()
        return found.reshape(shape)

    return (Made(data.word, shape, make),)


def _spread(mask: Stored, data: Stored) -> Stored:
    """Return sparse codes in the dense layout, 0 where there are none."""
    def make() -> NDArray[Any]:
        found = np.zeros(mask.shape, NUMPY[data.word])
        found[mask.array() != 0] = data.array()
        return found

    return Made(data.word, mask.shape, make)


def _table_sparse(given: Operands) -> Sequence[Literal]:
    mask, data, lut = _need(given, "indices_mask"), _need(given, "indices_nonzero_data"), _need(given, "lut")
    axis = _maybe(given, "vector_axis")
    along = int(axis.array()) if axis is not None else -1
    dense = Table(_spread(mask, data), lut.array(), lut.word, along)
    kept = mask.array()
    kept = np.repeat(kept, dense.vector, axis=dense.axis) if dense.vector > 1 else kept
    count = int(np.count_nonzero(kept))
    return Held("uint1", kept), Made(lut.word, (count,), lambda: dense.array()[kept != 0])


def _blockwise_sparse(given: Operands) -> Sequence[Literal]:
    mask, data, scale = _need(given, "data_mask"), _need(given, "nonzero_data"), _need(given, "scale")
    dense = Blockwise(_spread(mask, data), scale, _maybe(given, "offset"))
    return mask, Made(scale.word, data.shape, lambda: dense.array()[mask.array() != 0])


CONSTEXPR: Mapping[str, Callable[[Operands], Sequence[Literal]]] = {
    "constexpr_blockwise_shift_scale": _blockwise, "constexpr_lut_to_dense": _table,
    "constexpr_affine_dequantize": _affine, "constexpr_cast": _cast, "constexpr_sparse_to_dense": _sparse,
    "constexpr_lut_to_sparse": _table_sparse, "constexpr_sparse_blockwise_shift_scale": _blockwise_sparse,
}
