"""Core ops: arithmetic, comparison, conversion, movement, reductions and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.types import DType, Storage
from omnic.targets.coreml.writer import MilWriter, attrs_of, refuse, word_of

__all__ = ["TABLE", "Lowering"]

Lowering = Callable[[MilWriter, Node], None]


def _operands(w: MilWriter, node: Node) -> list[Any]:
    """Return the operands in the precision of the program; integers and bools as they are."""
    return [w.as_float(v) if v.type.is_float else w.need(v) for v in node.inputs()]


def _two(kind: str) -> Lowering:
    """An operation on two tensors that broadcast."""

    def lower(w: MilWriter, node: Node) -> None:
        shaped = node.result.type
        left, right = node.operands
        # In [1, C, 1, T] what has a residual stream's shape adds and multiplies as it is, and stays so from there on.
        if shaped.rank == 3 and left is not None and right is not None and left.type == right.type and (
            w.has_columns(left) or w.has_columns(right)
        ):
            w.bind_columns(node.result, w.op(kind, x=w.columns(left), y=w.columns(right)))
            return
        a, b = _operands(w, node)
        w.bind(node.result, w.op(kind, x=a, y=b))

    return lower


def _one(kind: str, **fixed: Any) -> Lowering:
    def lower(w: MilWriter, node: Node) -> None:
        (x,) = _operands(w, node)
        w.bind(node.result, w.op(kind, x=x, **{k: w.const(v) for k, v in fixed.items()}))

    return lower


def _compare(kind: str) -> Lowering:
    """Comparison; bools are compared as integers."""

    def lower(w: MilWriter, node: Node) -> None:
        a, b = (w.cast(x, "int32") if word_of(x) == "bool" else x for x in _operands(w, node))
        w.bind(node.result, w.op(kind, x=a, y=b))

    return lower


def _neg(w: MilWriter, node: Node) -> None:
    (x,) = _operands(w, node)
    w.bind(node.result, w.op("mul", x=x, y=w.const(-1.0 if node.result.type.is_float else -1)))


def _div(w: MilWriter, node: Node) -> None:
    a, b = _operands(w, node)
    if not node.result.type.is_float:
        raise refuse(node, "it divides whole numbers", "use floordiv")
    w.bind(node.result, w.op("real_div", x=a, y=b))


def _clamp(w: MilWriter, node: Node) -> None:
    (x,), attrs = _operands(w, node), attrs_of(node)
    number = float if node.result.type.is_float else int
    if attrs["min"] is not None:
        x = w.op("maximum", x=x, y=w.const(number(attrs["min"])))
    if attrs["max"] is not None:
        x = w.op("minimum", x=x, y=w.const(number(attrs["max"])))
    w.bind(node.result, x)


def _where(w: MilWriter, node: Node) -> None:
    """Select takes its shape from the numbers, not from the condition (coremltools 9.0)."""
    condition, yes, no = node.operands
    assert condition is not None
    a, b = (w.as_float(v) if v.type.is_float else w.need(v) for v in (yes, no) if v is not None)
    test = w.need(condition)
    if node.result.type.element == DType.BOOL:
        either = w.op("logical_and", x=w.op("logical_not", x=test), y=b)
        w.bind(node.result, w.op("logical_or", x=w.op("logical_and", x=test, y=a), y=either))
        return
    full = node.result.type.shape
    if not any(v is not None and v.type.shape == full for v in (yes, no)):
        # Add to zeros of the condition's shape: the only way to a flexible shape.
        zero = w.op("mul", x=w.cast(test, word_of(a)), y=w.const(0.0 if node.result.type.is_float else 0))
        a, b = w.op("add", x=a, y=zero), w.op("add", x=b, y=zero)
    w.bind(node.result, w.op("select", cond=test, a=a, b=b))


def _cast(w: MilWriter, node: Node) -> None:
    given, to = node.operands[0], attrs_of(node)["to"]
    if given is not None and w.half and w.has_columns(given) and to in (DType.F16, DType.F32):
        w.bind_columns(node.result, w.columns(given))  # it is rounded already
        return
    (x,) = _operands(w, node)
    if isinstance(to, Storage):
        raise refuse(node, f"{to} is a storage type", "only weights are stored as codes")
    if to == DType.BF16:
        raise refuse(node, "MIL has no bf16 (MIL format, DataType)", "cast to f16 or f32")
    if to == DType.F16 and not w.half:
        x = w.cast(w.op("cast", x=x, dtype="fp16"), "fp32")
    elif to in (DType.I8, DType.U8):
        x = w.cast(w.op("cast", x=x, dtype="int8" if to == DType.I8 else "uint8"), "int32")
    else:
        x = w.cast(x, w.word(to))
    w.bind(node.result, x)


def _constant(w: MilWriter, node: Node) -> None:
    attrs = attrs_of(node)
    values = np.asarray(attrs["values"], bool if node.result.type.element == DType.BOOL else None)
    if node.result.type.is_float:
        values = values.astype(np.float64)
        # What lies beyond the type, such as a mask of -1e30, is its lowest or highest number.
        if w.half:
            values = np.clip(values, -65504.0, 65504.0)
    shape = [int(d) for d in attrs["shape"]]
    w.bind(node.result, w.const(np.full(shape, values[0]) if values.size == 1 else values.reshape(shape)))


def _reduce(kind: str) -> Lowering:
    def lower(w: MilWriter, node: Node) -> None:
        (x,), attrs = _operands(w, node), attrs_of(node)
        w.bind(node.result, w.op(kind, x=x, axes=list(attrs["axes"]), keep_dims=bool(attrs["keepdims"])))

    return lower


def _argmax(w: MilWriter, node: Node) -> None:
    (x,) = _operands(w, node)
    w.bind(node.result, w.op("reduce_argmax", x=x, axis=int(attrs_of(node)["axis"]), keep_dims=False))


def _cumsum(w: MilWriter, node: Node) -> None:
    (x,) = _operands(w, node)
    axis = int(attrs_of(node)["axis"])
    w.bind(node.result, w.op("cumsum", x=x, axis=axis % node.result.type.rank))


def _softmax(w: MilWriter, node: Node) -> None:
    (x,) = _operands(w, node)
    w.bind(node.result, w.op("softmax", x=x, axis=int(attrs_of(node)["axis"])))


def _matmul(w: MilWriter, node: Node) -> None:
    (a, b), attrs = _operands(w, node), attrs_of(node)
    made = w.op("matmul", x=a, y=b, transpose_x=bool(attrs["ta"]), transpose_y=bool(attrs["tb"]))
    w.bind(node.result, made)


# -- movement ---------------------------------------------------------------------------------------------
def _reshape(w: MilWriter, node: Node) -> None:
    x, shape = node.operands[0], node.result.type.shape
    assert x is not None
    if shape == x.type.shape:
        w.bind(node.result, w.need(x))
        return
    # A shape without dims is an empty list, whose type MIL cannot tell.
    made = w.op("reshape", x=_plain(w, x), shape=w.dims(shape)) if shape else w.op("squeeze", x=_plain(w, x))
    w.bind(node.result, made)


def _plain(w: MilWriter, x: Value) -> Any:
    """Bools are moved as integers."""
    found = w.as_float(x) if x.type.is_float else w.need(x)
    return found


def _transpose(w: MilWriter, node: Node) -> None:
    (x,) = _operands(w, node)
    w.bind(node.result, w.op("transpose", x=x, perm=list(attrs_of(node)["perm"])))


def _broadcast(w: MilWriter, node: Node) -> None:
    x, shape = node.operands[0], node.result.type.shape
    assert x is not None
    found, have = _plain(w, x), x.type.shape
    lead = len(shape) - len(have)
    if lead:
        found = w.op("expand_dims", x=found, axes=list(range(lead))) if have else w.op(
            "reshape", x=found, shape=[1] * len(shape))
        have = ((1,) * lead + have) if have else (1,) * len(shape)
    reps = [1 if a == b else b for a, b in zip(have, shape, strict=True)]
    if any(not isinstance(r, int) for r in reps):
        raise refuse(node, "it repeats to a flexible length", "compile with length=fixed")
    if any(r != 1 for r in reps):
        found = w.op("tile", x=found, reps=[int(str(r)) for r in reps])
    w.bind(node.result, found)


def _slice(w: MilWriter, node: Node) -> None:
    (x,), attrs = _operands(w, node), attrs_of(node)
    rank = node.result.type.rank
    axis, start, stop = int(attrs["axis"]) % rank, attrs["start"][0], attrs["stop"][0]
    source = node.operands[0]
    assert source is not None
    whole_end = stop == source.type.shape[axis]
    if not isinstance(start, int) or not (isinstance(stop, int) or whole_end):
        raise refuse(node, "its bounds depend on the length of the call", "compile with length=fixed")
    begin = [start if i == axis else 0 for i in range(rank)]
    end = [stop if i == axis and isinstance(stop, int) else 0 for i in range(rank)]
    w.bind(node.result, w.op(
        "slice_by_index", x=x, begin=begin, end=end,
        begin_mask=[i != axis for i in range(rank)], end_mask=[i != axis or whole_end for i in range(rank)],
    ))


def _concat(w: MilWriter, node: Node) -> None:
    parts = _operands(w, node)
    w.bind(node.result, w.op("concat", values=parts, axis=int(attrs_of(node)["axis"])) if len(parts) > 1 else parts[0])


def _split(w: MilWriter, node: Node) -> None:
    (x,), attrs = _operands(w, node), attrs_of(node)
    if any(not isinstance(s, int) for s in attrs["sizes"]):
        raise refuse(node, "its sizes depend on the length of the call", "compile with length=fixed")
    if len(node.results) == 1:
        w.bind(node.result, x)
        return
    parts = w.op("split", x=x, split_sizes=[int(s) for s in attrs["sizes"]], axis=int(attrs["axis"]))
    for value, part in zip(node.results, parts, strict=True):
        w.bind(value, part)


def _pad(w: MilWriter, node: Node) -> None:
    (x,), attrs = _operands(w, node), attrs_of(node)
    rank = node.result.type.rank
    axis = int(attrs["axis"]) % rank
    pads = [0] * (2 * rank)
    pads[2 * axis], pads[2 * axis + 1] = int(attrs["before"]), int(attrs["after"])
    number = node.result.type.is_float
    value = float(attrs["value"])
    made = w.op("pad", x=x if number else w.cast(x, "fp32"), pad=pads, mode="constant",
                constant_val=w.const(value) if number else w.const(np.float32(value), np.float32))
    w.bind(node.result, made if number else w.cast(made, w.word(node.result.type.dtype)))


def _iota(w: MilWriter, node: Node) -> None:
    size = attrs_of(node)["size"][0]
    word = w.word(node.result.type.dtype)
    if isinstance(size, int):
        w.bind(node.result, w.const(np.arange(size, dtype=np.float64 if word.startswith("fp") else np.int32)))
        return
    made = w.op("range_1d", start=w.const(0), end=w.caches["length"], step=w.const(1))
    w.bind(node.result, w.cast(made, word))


def _depthwise(w: MilWriter, node: Node) -> None:
    x, kernel, bias = node.operands
    assert x is not None and kernel is not None
    channels, taps = kernel.type.shape
    weight = w.op("reshape", x=w.as_float(kernel), shape=[int(str(channels)), 1, int(str(taps))])
    moved = w.op("transpose", x=w.as_float(x), perm=[0, 2, 1])
    y = w.op("conv", x=moved, weight=weight, groups=int(str(channels)), pad_type="valid",
             bias=None if bias is None else w.as_float(bias))
    w.bind(node.result, w.op("transpose", x=y, perm=[0, 2, 1]))


TABLE: dict[str, Lowering] = {
    "constant": _constant,
    "add": _two("add"), "sub": _two("sub"), "mul": _two("mul"), "div": _div, "pow": _two("pow"),
    "minimum": _two("minimum"), "maximum": _two("maximum"), "floordiv": _two("floor_div"), "mod": _two("mod"),
    "eq": _compare("equal"), "ne": _compare("not_equal"), "lt": _compare("less"), "le": _compare("less_equal"),
    "gt": _compare("greater"), "ge": _compare("greater_equal"),
    "and": _two("logical_and"), "or": _two("logical_or"), "not": _one("logical_not"),
    "neg": _neg, "abs": _one("abs"), "exp": _one("exp"), "log": _one("log", epsilon=0.0), "sqrt": _one("sqrt"),
    "rsqrt": _one("rsqrt", epsilon=0.0), "sin": _one("sin"), "cos": _one("cos"), "tanh": _one("tanh"),
    "sigmoid": _one("sigmoid"), "erf": _one("erf"), "round": _one("round"), "relu": _one("relu"),
    "clamp": _clamp, "where": _where, "cast": _cast,
    "sum": _reduce("reduce_sum"), "max": _reduce("reduce_max"), "mean": _reduce("reduce_mean"),
    "argmax": _argmax, "cumsum": _cumsum, "softmax": _softmax, "matmul": _matmul,
    "reshape": _reshape, "transpose": _transpose, "broadcast": _broadcast, "slice": _slice, "concat": _concat,
    "split": _split, "pad": _pad, "iota": _iota, "depthwise_conv1d": _depthwise,
}
