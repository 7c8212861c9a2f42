"""From arrays to values: checking arguments, finding the symbolic dims, storing states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.dims import Dim, DimRange, Expr, evaluate, substitute
from omnic.ir.graph import Module, State, Value
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, TensorType

__all__ = ["Numbers", "bind_dims", "coerce", "fixed_dims", "store"]

Numbers = Array | QTensor

_STORED = {DType.F16: DType.F16.numpy, DType.BF16: DType.BF16.numpy}


def fixed_dims(module: Module) -> dict[str, int]:
    """Return the symbols of a module that have one value."""
    return {name: r.low for name, r in module.dims.items() if r.low == r.high}


def bind_dims(module: Module, values: Mapping[Value, Numbers], where: str) -> dict[str, int]:
    """Return the value of every symbol, read from the shapes of ``values``.

    Raises:
        InputError: a shape has another rank or size than its type, or a symbol is out of its range.
    """
    bound = fixed_dims(module)
    origin: dict[str, str] = dict.fromkeys(bound, "the module")
    compound: list[tuple[Value, int, Dim, int]] = []
    for value, array in values.items():
        shape = array.shape
        if len(shape) != value.type.rank:
            raise InputError(f"{where}: '{value.name}' must be {value.type}, got {len(shape)} dims {list(shape)}")
        for axis, (dim, size) in enumerate(zip(value.type.shape, shape, strict=True)):
            name = _plain_symbol(dim)
            if name is None:
                compound.append((value, axis, dim, size))
            elif bound.setdefault(name, size) != size:
                raise InputError(f"{where}: {name} is {bound[name]} in {origin[name]} and {size} in '{value.name}'")
            else:
                origin.setdefault(name, f"'{value.name}'")
    for value, axis, dim, size in compound:
        known = substitute(dim, bound)
        if isinstance(known, Expr):
            raise InputError(f"{where}: dim {axis} of '{value.name}', {dim}, has a symbol that no input gives")
        if known != size:
            raise InputError(f"{where}: '{value.name}' must be {value.type}, got {list(array_shape(values[value]))}: "
                             f"dim {axis} is {size}, not {known}")
    _check_ranges(module.dims, bound, where)
    return bound


def array_shape(array: Numbers) -> tuple[int, ...]:
    """Return the shape of an array or a quantised tensor."""
    return array.shape


def _plain_symbol(dim: Dim) -> str | None:
    """Return the name of a dim that is one symbol, else None."""
    if isinstance(dim, int) or len(dim.terms) != 1:
        return None
    monomial, coefficient = dim.terms[0]
    if coefficient != 1 or len(monomial) != 1 or monomial[0].kind != "sym":
        return None
    return monomial[0].name


def _check_ranges(ranges: Mapping[str, DimRange], bound: Mapping[str, int], where: str) -> None:
    for name, size in bound.items():
        allowed = ranges.get(name)
        if allowed is not None and not allowed.low <= size <= allowed.high:
            raise InputError(f"{where}: {name} = {size} is not in {allowed}")


def coerce(value: Value, given: object, dtype: np.dtype[np.generic], where: str) -> Numbers:
    """Return an argument as the interpreter keeps it.

    Floats become ``dtype`` (16-bit types are rounded first), integers their own type.

    Raises:
        InputError: floats for an integer parameter, or numbers that are not finite.
    """
    element = value.type.element
    if isinstance(element, Storage):
        if isinstance(given, QTensor) and given.type == element:
            return given
        raise InputError(f"{where}: '{value.name}' must be a QTensor of {element}")
    array = np.asarray(given)
    kinds = "fiuV" if element.is_float else "b" if element == DType.BOOL else "iu"
    if array.dtype.kind not in kinds:
        raise InputError(f"{where}: '{value.name}' must be {value.type}, got {array.dtype} numbers")
    if not element.is_float:
        return array.astype(element.numpy, copy=False)
    if element in _STORED:
        array = array.astype(_STORED[element], copy=False)
    array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: '{value.name}' holds NaN or infinite numbers")
    return array


def store(numbers: Numbers, type: TensorType, dtype: np.dtype[np.generic]) -> Numbers:
    """Return a state in its storage: codes, real f16 or bf16 numbers, else floats in ``dtype``."""
    if isinstance(type.element, Storage):
        return numbers if isinstance(numbers, QTensor) else packing.quantise(numbers, type.element)
    assert not isinstance(numbers, QTensor)
    if not type.element.is_float:
        return numbers.astype(type.element.numpy, copy=False)
    return numbers.astype(_STORED.get(type.element, dtype), copy=False)


def empty_state(state: State, dims: Mapping[str, int], dtype: np.dtype[np.generic]) -> Numbers:
    """Return the state before the first token: zeros."""
    shape = tuple(evaluate(d, dims) for d in state.type.shape)
    if isinstance(state.type.element, Storage):
        return packing.zeros(state.type.element, shape)
    return store(np.zeros(shape, dtype), state.type, dtype)
