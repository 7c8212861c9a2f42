"""Core ops: arithmetic, comparison, conversion and movement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as onnx

from omnic.errors import InputError
from omnic.ir.dims import Dim
from omnic.ir.graph import Node
from omnic.ir.types import DType, Storage
from omnic.targets.onnx.writer import GraphWriter, attrs_of, element_type
from omnic.targets.refusals import refused

__all__ = ["TABLE", "refuse", "rounded"]

Lowering = Callable[[GraphWriter, Node], None]

_NUMPY: dict[DType, Any] = {
    DType.F32: np.float32,
    DType.F16: np.float32,
    DType.BF16: np.float32,
    DType.I64: np.int64,
    DType.I32: np.int32,
    DType.I8: np.int8,
    DType.U8: np.uint8,
    DType.BOOL: np.bool_,
}


def refuse(node: Node, why: str, hint: str) -> InputError:
    """Return the error for a node that the target cannot honour: it names the op and the line of the spec."""
    return refused("onnx", node, why, hint)


def _where(w: GraphWriter, node: Node) -> None:
    condition, yes, no = (w.need(v) for v in node.operands)
    if node.result.type.dtype == DType.BOOL:
        # ONNX Runtime has no kernel that chooses between bools.
        w.bind(node.result, w.op("Or", w.op("And", condition, yes), w.op("And", w.op("Not", condition), no)))
        return
    w.bind(node.result, w.op("Where", condition, yes, no))


def _same(kind: str) -> Lowering:
    """An op that ONNX has as it is."""

    def lower(w: GraphWriter, node: Node) -> None:
        w.bind(node.result, w.op(kind, *(w.need(v) for v in node.operands)))

    return lower


def _ordered(kind: str, swap: bool = False) -> Lowering:
    """Maximum, minimum and comparisons: bools are compared as integers."""

    def lower(w: GraphWriter, node: Node) -> None:
        operands = [_as_number(w, v) for v in node.operands]
        w.bind(node.result, w.op(kind, *(reversed(operands) if swap else operands)))

    return lower


def _as_number(w: GraphWriter, value: Any) -> onnx.Value:
    found = w.need(value)
    return w.op("Cast", found, to=onnx.DataType.INT32) if value.type.dtype == DType.BOOL else found


def _unequal(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Not", w.op("Equal", *(w.need(v) for v in node.operands))))


def _floordiv(w: GraphWriter, node: Node) -> None:
    a, b = (w.need(v) for v in node.operands)
    if node.result.type.is_float:
        w.bind(node.result, w.op("Floor", w.op("Div", a, b)))
        return
    # ONNX divides integers towards zero; the remainder with the divisor's sign makes the division exact.
    w.bind(node.result, w.op("Div", w.op("Sub", a, w.op("Mod", a, b)), b))


def _mod(w: GraphWriter, node: Node) -> None:
    a, b = (w.need(v) for v in node.operands)
    if node.result.type.is_float:
        w.bind(node.result, w.op("Sub", a, w.op("Mul", w.op("Floor", w.op("Div", a, b)), b)))
        return
    w.bind(node.result, w.op("Mod", a, b))


def _rsqrt(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Reciprocal", w.op("Sqrt", w.need(node.operands[0]))))


def _clamp(w: GraphWriter, node: Node) -> None:
    attrs, x = attrs_of(node), node.operands[0]
    assert x is not None
    dtype = _NUMPY[x.type.dtype]
    low, high = (None if attrs[n] is None else w.const(np.array(attrs[n], dtype)) for n in ("min", "max"))
    w.bind(node.result, w.op("Clip", w.need(x), low, high))


def _cast(w: GraphWriter, node: Node) -> None:
    x, to = node.operands[0], attrs_of(node)["to"]
    assert x is not None
    if isinstance(to, Storage):
        raise refuse(
            node, f"{to} is a storage type", "only weights and states are stored as codes"
        )
    found = w.need(x)
    if to in (DType.F16, DType.BF16):
        found = rounded(w, found, to)
    elif to != x.type.dtype and not (to == DType.F32 and x.type.is_float):
        found = w.op("Cast", found, to=element_type(node.result.type))
    w.bind(node.result, found)


def rounded(w: GraphWriter, found: onnx.Value, to: DType) -> onnx.Value:
    """Return f32 numbers rounded to a 16-bit type; arithmetic goes on in f32."""
    if to not in (DType.F16, DType.BF16):
        return found
    half = w.op("Cast", found, to=onnx.DataType.FLOAT16 if to == DType.F16 else onnx.DataType.BFLOAT16)
    return w.op("Cast", half, to=onnx.DataType.FLOAT)


def _constant(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    values, shape = np.array(attrs["values"], _NUMPY[node.result.type.dtype]), node.result.type.shape
    if values.size == 1 and shape:
        # One value fills any shape, a symbolic one too.
        w.bind(node.result, w.op("Expand", w.const(values, values.dtype), w.dims(shape)))
        return
    w.bind(node.result, w.const(values.reshape([int(str(d)) for d in shape]), values.dtype))


def _matmul(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    operands: list[onnx.Value] = []
    for value, turned in zip(node.operands, (attrs["ta"], attrs["tb"]), strict=True):
        assert value is not None
        if turned and value.weight:
            operands.append(w.transposed(value))
            continue
        found = w.need(value)
        if turned:
            rank = value.type.rank
            found = w.op("Transpose", found, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(found)
    w.bind(node.result, w.op("MatMul", *operands))


def _reshape(w: GraphWriter, node: Node) -> None:
    x = node.operands[0]
    assert x is not None
    w.bind(node.result, w.reshape(w.need(x), x.type.shape, node.result.type.shape))


def _transpose(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Transpose", w.need(node.operands[0]), perm=list(attrs_of(node)["perm"])))


def _broadcast(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Expand", w.need(node.operands[0]), w.dims(node.result.type.shape)))


def _slice(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    start, stop = w.dims(attrs["start"]), w.dims(attrs["stop"])
    w.bind(node.result, w.op("Slice", w.need(node.operands[0]), start, stop, w.ints(attrs["axis"])))


def _concat(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Concat", *(w.need(v) for v in node.operands), axis=attrs_of(node)["axis"]))


def _split(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    sizes: tuple[Dim, ...] = attrs["sizes"]
    parts = w.emit("Split", w.need(node.operands[0]), w.dims(sizes), outputs=len(sizes), axis=attrs["axis"])
    for value, part in zip(node.results, parts, strict=True):
        w.bind(value, part)


def _pad(w: GraphWriter, node: Node) -> None:
    attrs, x = attrs_of(node), node.operands[0]
    assert x is not None
    value = w.const(np.array(attrs["value"], _NUMPY[x.type.dtype]))
    w.bind(node.result, w.op("Pad", w.need(x), w.ints(attrs["before"], attrs["after"]), value, w.ints(attrs["axis"])))


def _iota(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    stop = w.op("Squeeze", w.dims(attrs["size"]))
    found = w.op("Range", w.const(np.array(0)), stop, w.const(np.array(1)))
    if node.result.type.dtype != DType.I64:
        found = w.op("Cast", found, to=element_type(node.result.type))
    w.bind(node.result, found)


TABLE: dict[str, Lowering] = {
    "add": _same("Add"),
    "sub": _same("Sub"),
    "mul": _same("Mul"),
    "div": _same("Div"),
    "pow": _same("Pow"),
    "minimum": _ordered("Min"),
    "maximum": _ordered("Max"),
    "floordiv": _floordiv,
    "mod": _mod,
    "neg": _same("Neg"),
    "abs": _same("Abs"),
    "exp": _same("Exp"),
    "log": _same("Log"),
    "sqrt": _same("Sqrt"),
    "rsqrt": _rsqrt,
    "sin": _same("Sin"),
    "cos": _same("Cos"),
    "tanh": _same("Tanh"),
    "sigmoid": _same("Sigmoid"),
    "erf": _same("Erf"),
    "round": _same("Round"),
    "relu": _same("Relu"),
    "clamp": _clamp,
    "cast": _cast,
    "constant": _constant,
    "eq": _same("Equal"),
    "ne": _unequal,
    "lt": _ordered("Less"),
    "le": _ordered("LessOrEqual"),
    "gt": _ordered("Greater"),
    "ge": _ordered("GreaterOrEqual"),
    "and": _same("And"),
    "or": _same("Or"),
    "not": _same("Not"),
    "where": _where,
    "matmul": _matmul,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "split": _split,
    "pad": _pad,
    "iota": _iota,
}
