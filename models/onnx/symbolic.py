"""What needs no node: constants are folded, and the sub-graphs that compute shapes become dim expressions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from omnic.ir.dims import Dim, DimRange, Expr, bounds, floordiv, maximum, minimum, product
from omnic.ir.types import DType
from omnic.models.onnx.converter import FOLDED_NUMBERS, Converter
from omnic.models.onnx.kinds import Known, Sizes, Stored, Tensor, Uniform, dtype_of_onnx
from omnic.models.onnx.node import OnnxNode

__all__ = ["divided", "evaluate", "known_or_sizes"]

Objects = NDArray[Any]

#: what is certain about the sizes of any call: at least one row and token, and past = S - T >= 0
_RANGES = {"B": DimRange(1, 1 << 20), "T": DimRange(1, 1 << 20), "S": DimRange(1, 1 << 30)}


def evaluate(c: Converter, node: OnnxNode) -> tuple[Tensor, ...] | None:
    """Return the outputs of a node that needs no node of ours, or None."""
    if node.domain:
        return None
    if node.op == "Shape":
        shape = node.need(0).shape
        start, end = node.integer("start", 0), node.integer("end", len(shape))
        return (known_or_sizes(_objects(shape[slice(start, end)])),)
    if node.op == "Size":
        return (known_or_sizes(np.asarray(product(tuple(node.need(0).shape)), object)),)
    given = [t for t in node.inputs if t is not None]
    folded = _fold(c, node, given)
    if folded is not None:
        return folded
    rule = _RULES.get(node.op)
    if rule is None or not given or not all(isinstance(t, (Known, Sizes, Uniform)) for t in given):
        return None
    arrays = [_as_objects(c, t) for t in node.inputs]
    if any(a is None and t is not None for a, t in zip(arrays, node.inputs, strict=True)):
        return None
    found = rule(node, cast("list[Objects]", arrays))
    return None if found is None else (known_or_sizes(found, _integer_type(node, given)),)


def known_or_sizes(dims: Objects, dtype: DType = DType.I64) -> Known | Sizes:
    """Return dims as numbers when all of them are, else as dims."""
    array = np.asarray(dims, object)
    if all(isinstance(d, (int, np.integer, bool, np.bool_)) for d in array.reshape(-1)):
        if array.size and all(isinstance(d, (bool, np.bool_)) for d in array.reshape(-1)):
            return Known(array.astype(np.bool_), DType.BOOL)
        return Known(array.astype(dtype.numpy if dtype.is_integer else np.int64), dtype)
    return Sizes(array, dtype if dtype.is_integer else DType.I64)


def divided(total: Dim, by: Dim) -> Dim | None:
    """Return total / by where it is exact for every value of the symbols, else None."""
    if isinstance(total, int) and isinstance(by, int):
        return total // by if by and total % by == 0 else None
    if isinstance(by, int):
        exact = isinstance(total, Expr) and by > 0 and all(k % by == 0 for _, k in total.terms)
        return floordiv(total, by) if exact else None
    if len(by.terms) != 1 or isinstance(total, int):
        return None
    (atoms, factor), out = by.terms[0], cast(Dim, 0)
    for monomial, coefficient in total.terms:
        rest = list(monomial)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        out = out + Expr(((tuple(rest), coefficient // factor),)) if rest else out + coefficient // factor
    return out


def _objects(dims: Sequence[Dim]) -> Objects:
    out = np.empty(len(dims), object)
    out[:] = list(dims)
    return out


def _as_objects(c: Converter, tensor: Tensor | None) -> Objects | None:
    if tensor is None:
        return None
    if isinstance(tensor, Sizes):
        return tensor.dims
    if isinstance(tensor, Uniform):
        fixed = tuple(d for d in tensor.shape if isinstance(d, int))
        if len(fixed) != len(tensor.shape) or int(np.prod(fixed, dtype=np.int64)) > 64 or tensor.dtype.is_float:
            return None
        out = np.empty(fixed, object)
        out.fill(tensor.value)
        return out
    if isinstance(tensor, Known) and not tensor.dtype.is_float and tensor.array.size <= 64:
        return _python(tensor.array)
    return None


def _python(array: NDArray[Any]) -> Objects:
    out = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        out[index] = value.item() if isinstance(value, np.generic) else value
    return out


def _integer_type(node: OnnxNode, given: Sequence[Tensor]) -> DType:
    if node.op == "Cast":
        return dtype_of_onnx(node.integer("to"))
    types = [t.dtype for t in given if t.dtype.is_integer]
    return types[-1] if node.op == "Where" and types else types[0] if types else DType.I64


# -- folding constants ------------------------------------------------------------------------------------
#: ops whose result on a large constant is a recipe or a symbol instead
_NEVER_FOLDED = frozenset({"Identity", "Transpose", "Reshape", "Constant", "ConstantOfShape", "Trilu", "Unsqueeze",
                           "Squeeze", "Expand", "Split"})


def _fold(c: Converter, node: OnnxNode, given: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Compute a node whose inputs are all known, with the ONNX project's own reference."""
    if node.op == "Constant" or not given:
        return None
    weights = any(isinstance(t, Stored) for t in given)
    if node.op in _NEVER_FOLDED and (weights or node.op in ("ConstantOfShape", "Trilu")):
        return None
    arrays = [None if t is None else c.numbers(t) for t in node.inputs]
    if any(a is None and t is not None for a, t in zip(arrays, node.inputs, strict=True)):
        return None
    shape = [a.shape for a in arrays if a is not None]
    if int(np.prod(np.broadcast_shapes(*shape) if _broadcasts(shape) else (1,), dtype=np.int64)) > FOLDED_NUMBERS:
        return None
    results = node.compute(c.opset, arrays)
    if results is None:
        return None
    if not weights:
        return tuple(Known(array, dtype) for array, dtype in results)
    label = next(t.label for t in given if isinstance(t, Stored))
    out: list[Tensor] = []
    for array, dtype in results:
        if not dtype.is_float or array.size <= 1:
            out.append(Known(array, dtype))
            continue
        name = c.source.compute(f"{label}.{node.op.lower()}", array.astype(dtype.numpy))
        out.append(Stored(c.load(name), array.shape, dtype, label))
    return tuple(out)


def _broadcasts(shapes: Sequence[tuple[int, ...]]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


# -- integer arithmetic on dims ---------------------------------------------------------------------------
def _each(function: Callable[[Any, Any], Any]) -> Callable[[OnnxNode, list[Objects]], Objects | None]:
    def run(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
        out = arrays[0]
        for other in arrays[1:]:
            left, right = np.broadcast_arrays(out, other)
            out = np.empty(left.shape, object)
            for index in np.ndindex(*left.shape):
                value = function(left[index], right[index])
                if value is None:
                    return None
                out[index] = value
        return out

    return run


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, Expr) or isinstance(b, Expr):
        exact = divided(a, b)
        if exact is not None:
            return exact
        return floordiv(a, b) if isinstance(b, int) and b > 0 and _sign(a) >= 0 else None
    return int(a / b) if b and abs(a) < 2**53 else a // b if b else None


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, Expr) or isinstance(b, Expr):
        quotient = _quotient(a, b)
        return None if quotient is None else a - quotient * b
    return a % b if b else None


def _sign(dim: Any) -> int:
    """Return 1, 0 or -1 for a dim whose sign is certain (0: at least 0), else -2."""
    try:
        low, high = bounds(dim, _RANGES)
    except (KeyError, TypeError, ValueError):
        return -2
    if not isinstance(dim, int) and low < 0 and str(dim) == "S - T":
        low = 0
    return 1 if low > 0 else 0 if low == 0 else -1 if high < 0 else -2


def _compare(test: Callable[[Any, Any], bool], op: str) -> Callable[[OnnxNode, list[Objects]], Objects | None]:
    def decide(a: Any, b: Any) -> bool | None:
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return bool(test(a, b))
        gap = a - b
        if isinstance(gap, int):
            return bool(test(gap, 0))
        sign, other = _sign(gap), _sign(-gap)
        if op == "eq":
            return False if sign in (1, -1) or other in (1, -1) else None
        if op in ("lt", "ge"):
            less = True if sign == -1 or other == 1 else False if sign in (0, 1) or other == -1 else None
            return less if op == "lt" or less is None else not less
        more = True if sign == 1 or other == -1 else False if other in (0, 1) or sign == -1 else None
        return more if op == "gt" or more is None else not more

    return _each(decide)


def _slice(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
    if len(arrays) < 3:
        return None
    x, starts, ends = arrays[:3]
    axes = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.arange(starts.size)
    steps = arrays[4] if len(arrays) > 4 and arrays[4] is not None else np.ones(starts.size, int)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts.flat, ends.flat, axes.flat, steps.flat, strict=True):
        if isinstance(start, Expr) or isinstance(end, Expr):
            return None
        index[int(axis)] = slice(int(start), int(np.clip(end, -(2**31), 2**31)), int(step))
    return x[tuple(index)]


def _unsqueeze(node: OnnxNode, arrays: list[Objects]) -> Objects:
    axes = node.ints("axes") if len(arrays) < 2 else tuple(int(a) for a in arrays[1].flat)
    return np.expand_dims(arrays[0], axes)


def _squeeze(node: OnnxNode, arrays: list[Objects]) -> Objects:
    axes = node.ints("axes") if len(arrays) < 2 else tuple(int(a) for a in arrays[1].flat)
    return np.squeeze(arrays[0], tuple(axes) if axes else None)


def _gather(node: OnnxNode, arrays: list[Objects]) -> Objects:
    return np.take(arrays[0], arrays[1].astype(np.int64), axis=node.integer("axis", 0))


def _reshape(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
    shape = [int(d) for d in arrays[1].flat] if not any(isinstance(d, Expr) for d in arrays[1].flat) else None
    return None if shape is None else arrays[0].reshape(shape)


def _where(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
    if any(isinstance(v, Expr) for v in arrays[0].flat):
        return None
    condition, left, right = np.broadcast_arrays(arrays[0].astype(bool), arrays[1], arrays[2])
    out = np.empty(condition.shape, object)
    for index in np.ndindex(*condition.shape):
        out[index] = left[index] if condition[index] else right[index]
    return out


def _reduce(combine: Callable[[Any, Any], Any]) -> Callable[[OnnxNode, list[Objects]], Objects | None]:
    def run(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
        x = arrays[0]
        if x.ndim > 1 or x.size == 0:
            return None
        total = x.reshape(-1)[0]
        for value in x.reshape(-1)[1:]:
            total = combine(total, value)
        out = np.empty((1,) if node.integer("keepdims", 1) and x.ndim else (), object)
        out.fill(total)
        return out

    return run


def _cast(node: OnnxNode, arrays: list[Objects]) -> Objects | None:
    return arrays[0] if dtype_of_onnx(node.integer("to")).is_integer else None


def _concat(node: OnnxNode, arrays: list[Objects]) -> Objects:
    return np.concatenate(arrays, axis=node.integer("axis"))


_RULES: Mapping[str, Callable[[OnnxNode, list[Objects]], Objects | None]] = {
    "Identity": lambda node, arrays: arrays[0],
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Where": _where,
    "Add": _each(operator.add),
    "Sub": _each(operator.sub),
    "Mul": _each(operator.mul),
    "Div": _each(_quotient),
    "Mod": _each(_remainder),
    "Min": _each(lambda a, b: minimum(a, b)),
    "Max": _each(lambda a, b: maximum(a, b)),
    "Neg": lambda node, arrays: -arrays[0],
    "Equal": _compare(operator.eq, "eq"),
    "Less": _compare(operator.lt, "lt"),
    "LessOrEqual": _compare(operator.le, "le"),
    "Greater": _compare(operator.gt, "gt"),
    "GreaterOrEqual": _compare(operator.ge, "ge"),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
    "ReduceMax": _reduce(lambda a, b: maximum(a, b)),
    "ReduceMin": _reduce(lambda a, b: minimum(a, b)),
}
