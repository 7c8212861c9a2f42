"""Each op as TIR: the value of one element, from the values of elements of its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from omnic.errors import InternalError
from omnic.ir.dims import Dim
from omnic.ir.types import DType
from omnic.targets.tvm.tail.loops import Apply, Expression, Leaf
from omnic.targets.tvm.views import View

__all__ = ["TYPES", "Reader", "element", "index_of"]

TYPES = {
    DType.F32: "float32", DType.F16: "float32", DType.BF16: "float32", DType.I64: "int64", DType.I32: "int32",
    DType.I8: "int8", DType.U8: "uint8", DType.BOOL: "bool",
}
_ROUNDED = {DType.F16: "omnic_round_f16", DType.BF16: "omnic_round_bf16"}
Index = Sequence[Any]


@dataclass(frozen=True)
class Reader:
    """How an expression reads memory: a function of an index for each view, and the variables of dims."""

    read: Callable[[View], Callable[[Index], Any]]
    symbols: Mapping[str, Any]


def index_of(size: Dim, symbols: Mapping[str, Any]) -> Any:
    """Return a dim as an int64 of TIR."""
    if isinstance(size, int):
        return tirx.const(size, "int64")
    total: Any = tirx.const(0, "int64")
    for monomial, coefficient in size.terms:
        term: Any = tirx.const(coefficient, "int64")
        for atom in monomial:
            if atom.kind == "sym":
                term = term * symbols[atom.name]
                continue
            args = [index_of(a, symbols) for a in atom.args]
            if atom.kind == "floordiv":
                term = term * tirx.floordiv(*args)
            elif atom.kind == "ceildiv":
                term = term * tirx.floordiv(args[0] + args[1] - 1, args[1])
            else:
                fold = tirx.min if atom.kind == "min" else tirx.max
                found = args[0]
                for one in args[1:]:
                    found = fold(found, one)
                term = term * found
        total = total + term
    return total


def element(root: Expression, index: Index, reader: Reader) -> Any:
    """Return the element of an expression at an index."""
    if isinstance(root, Leaf):
        return reader.read(root.view)(index)
    if root.op in _SIMPLE:
        return _SIMPLE[root.op](*[element(a, _onto(a.shape, index), reader) for a in root.args])
    if root.op not in _WHOLE:
        raise InternalError(f"target tvm: no loop computes {root.op}")
    return _WHOLE[root.op](root, index, reader)


def _onto(shape: Sequence[Dim], index: Index) -> list[Any]:
    """Return the index of an operand that is broadcast."""
    own = list(index)[len(index) - len(shape) :]
    return [tirx.const(0, "int64") if size == 1 else i for size, i in zip(shape, own, strict=True)]


def _call(name: str) -> Callable[..., Any]:
    """Return a function of libm."""
    return lambda *args: tirx.call_pure_extern("float32", name, *args)


def _float(value: float) -> Any:
    return tirx.const(value, "float32")


def _sigmoid(x: Any) -> Any:
    return (_call("tanhf")(x * _float(0.5)) + _float(1)) * _float(0.5)


def _division(root: Apply, index: Index, reader: Reader) -> Any:
    a, b = (element(x, _onto(x.shape, index), reader) for x in root.args)
    if not root.dtype.is_float:
        return tirx.floordiv(a, b) if root.op == "floordiv" else tirx.floormod(a, b)
    whole = _call("floorf")(a / b)
    return whole if root.op == "floordiv" else a - b * whole


def _equal(root: Apply, index: Index, reader: Reader) -> Any:
    a, b = (element(x, _onto(x.shape, index), reader) for x in root.args)
    if root.args[0].dtype is DType.BOOL:
        a, b = tirx.Cast("int32", a), tirx.Cast("int32", b)
    return tirx.EQ(a, b) if root.op == "eq" else tirx.NE(a, b)


def _abs(root: Apply, index: Index, reader: Reader) -> Any:
    x = element(root.args[0], index, reader)
    return _call("fabsf")(x) if root.dtype.is_float else tirx.Select(x < _zero(root.dtype), -x, x)


_SIMPLE: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": _call("powf"),
    "minimum": tirx.min,
    "maximum": tirx.max,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda a, b: tirx.And(a, b),
    "or": lambda a, b: tirx.Or(a, b),
    "not": lambda a: tirx.Not(a),
    "neg": lambda a: -a,
    "exp": _call("expf"),
    "log": _call("logf"),
    "sqrt": _call("sqrtf"),
    "rsqrt": lambda a: _float(1) / _call("sqrtf")(a),
    "sin": _call("sinf"),
    "cos": _call("cosf"),
    "tanh": _call("tanhf"),
    "sigmoid": _sigmoid,
    "erf": _call("erff"),
    "round": _call("rintf"),
    "relu": lambda a: tirx.max(a, _float(0)),
    "where": lambda c, a, b: tirx.Select(c, a, b),
}


def _axis(root: Apply, operand: int = 0, name: str = "axis") -> int:
    return int(root.attrs[name]) % len(root.args[operand].shape)


def _zero(dtype: DType) -> Any:
    return tirx.const(0, TYPES[dtype])


def _reduce_axis(size: Dim, reader: Reader, name: str) -> Any:
    return te.reduce_axis((tirx.const(0, "int64"), index_of(size, reader.symbols)), name=name)


def _reduction(root: Apply, index: Index, reader: Reader) -> Any:
    x = root.args[0]
    axes = sorted(int(a) % len(x.shape) for a in root.attrs["axes"])
    loops = {a: _reduce_axis(x.shape[a], reader, f"k{a}") for a in axes}
    rest = iter([i for at, i in enumerate(index) if not (root.attrs["keepdims"] and at in axes)])
    inner = [loops[a].var if a in loops else next(rest) for a in range(len(x.shape))]
    value = element(x, inner, reader)
    if root.op == "max":
        return te.max(value, axis=list(loops.values()))
    return te.sum(value, axis=list(loops.values()))


def _cumsum(root: Apply, index: Index, reader: Reader) -> Any:
    x, axis = root.args[0], _axis(root)
    loop = _reduce_axis(x.shape[axis], reader, "k")
    inner = [loop.var if at == axis else i for at, i in enumerate(index)]
    return te.sum(tirx.if_then_else(loop.var <= index[axis], element(x, inner, reader), _zero(root.dtype)), axis=loop)


def _argmax(root: Apply, index: Index, reader: Reader) -> Any:
    """The least index whose element no other exceeds: a minimum over the indices that are not exceeded."""
    x, axis = root.args[0], _axis(root)
    loop = _reduce_axis(x.shape[axis], reader, "k")
    peak, one = root.args[1], [*index[:axis], tirx.const(0, "int64"), *index[axis:]]
    inner = [loop.var if at == axis else i for at, i in enumerate(one)]
    size = index_of(x.shape[axis], reader.symbols)
    found = tirx.if_then_else(element(x, inner, reader) >= element(peak, one, reader), loop.var, size)
    return te.min(found, axis=loop)


def _matmul(root: Apply, index: Index, reader: Reader) -> Any:
    a, b = root.args
    ta, tb = bool(root.attrs["ta"]), bool(root.attrs["tb"])
    loop = _reduce_axis(a.shape[-2 if ta else -1], reader, "k")
    *batch, m, n = index
    left = [*_onto(a.shape[:-2], batch), *((loop.var, m) if ta else (m, loop.var))]
    right = [*_onto(b.shape[:-2], batch), *((n, loop.var) if tb else (loop.var, n))]
    return te.sum(element(a, left, reader) * element(b, right, reader), axis=loop)


def _gather(root: Apply, index: Index, reader: Reader) -> Any:
    x, which = root.args
    axis = _axis(root)
    chosen = element(which, _onto(which.shape, index), reader)
    return element(x, [chosen if at == axis else i for at, i in enumerate(_onto(x.shape, index))], reader)


def _index_select(root: Apply, index: Index, reader: Reader) -> Any:
    x, which = root.args
    axis, rank = _axis(root), len(root.args[1].shape)
    chosen = element(which, list(index[axis : axis + rank]), reader)
    return element(x, [*index[:axis], chosen, *index[axis + rank :]], reader)


def _pad(root: Apply, index: Index, reader: Reader) -> Any:
    x, axis, before = root.args[0], _axis(root), int(root.attrs["before"])
    at = index[axis] - before
    inner = [*index[:axis], at, *index[axis + 1 :]]
    inside = tirx.And(at >= 0, at < index_of(x.shape[axis], reader.symbols))
    return tirx.if_then_else(inside, element(x, inner, reader), tirx.const(root.attrs["value"], TYPES[root.dtype]))


def _conv(root: Apply, index: Index, reader: Reader) -> Any:
    x, w = root.args[:2]
    b, t, c = index
    loop = _reduce_axis(w.shape[1], reader, "k")
    return te.sum(element(w, [c, loop.var], reader) * element(x, [b, t + loop.var, c], reader), axis=loop)


def _clamp(root: Apply, index: Index, reader: Reader) -> Any:
    value: Any = element(root.args[0], index, reader)
    for name, fold in (("min", tirx.max), ("max", tirx.min)):
        if root.attrs.get(name) is not None:
            value = fold(value, tirx.const(root.attrs[name], TYPES[root.dtype]))
    return value


def _cast(root: Apply, index: Index, reader: Reader) -> Any:
    value = element(root.args[0], index, reader)
    if root.dtype is DType.BOOL:
        return tirx.NE(value, _zero(root.args[0].dtype))
    if root.dtype in _ROUNDED:
        return _call(_ROUNDED[root.dtype])(tirx.Cast("float32", value))
    return tirx.Cast(TYPES[root.dtype], value)


def _constant(root: Apply, index: Index, reader: Reader) -> Any:
    return tirx.const(root.attrs["values"][0], TYPES[root.dtype])


def _iota(root: Apply, index: Index, reader: Reader) -> Any:
    return tirx.Cast(TYPES[root.dtype], index[0])


_WHOLE: Mapping[str, Callable[[Apply, Index, Reader], Any]] = {
    "eq": _equal,
    "ne": _equal,
    "floordiv": _division,
    "mod": _division,
    "abs": _abs,
    "sum": _reduction,
    "max": _reduction,
    "cumsum": _cumsum,
    "argmax": _argmax,
    "matmul": _matmul,
    "gather": _gather,
    "index_select": _index_select,
    "pad": _pad,
    "depthwise_conv1d": _conv,
    "clamp": _clamp,
    "cast": _cast,
    "constant": _constant,
    "iota": _iota,
}
