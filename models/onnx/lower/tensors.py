"""Lowerings of products, reductions, norms, and lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnic.ir.dims import Dim, product
from omnic.ir.types import DType
from omnic.models.onnx.converter import Converter, Refusal
from omnic.models.onnx.kinds import Flow, Sizes, Stored, Tensor, Uniform
from omnic.models.onnx.lower.elementwise import Lowering, as_positions_constant, from_positions
from omnic.models.onnx.lower.shapes import transposed
from omnic.models.onnx.node import OnnxNode

__all__ = ["TENSORS", "linear"]


# -- products ---------------------------------------------------------------------------------------------
def linear(c: Converter, x: Flow, w: Stored, bias: Tensor | None = None) -> Flow:
    """Return x [..., K] times a weight [N, K], plus a bias [N]."""
    added = bias if isinstance(bias, Stored) and bias.shape == (w.shape[0],) else None
    y = Flow(c.f.op("linear", x.value, c.weight(w), c.weight(added) if added is not None else None), x.lifted)
    return y if bias is None or added is not None else c.binary("add", y, c.emit(bias))


def _matmul(c: Converter, node: OnnxNode) -> Tensor:
    left, right = node.need(0), node.need(1)
    if isinstance(right, Stored) and len(right.shape) == 2 and len(left.shape) >= 1 and not from_positions(c, left):
        return linear(c, c.emit(left), transposed(right, (1, 0)))
    a = as_positions_constant(c, left) if from_positions(c, right) else c.emit(left)
    b = as_positions_constant(c, right) if from_positions(c, left) else c.emit(right)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Refusal("a product with a vector")
    if a.lifted or b.lifted:
        values, lifted = c.aligned(a, b)
        return Flow(c.f.op("matmul", *values), lifted)
    return Flow(c.f.op("matmul", a.value, b.value))


def _gemm(c: Converter, node: OnnxNode) -> Tensor:
    x, w, bias = node.need(0), node.need(1), node.get(2)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    flow = c.emit(x)
    if node.integer("transA", 0):
        flow = c.transpose(flow, (1, 0))
    if isinstance(w, Stored) and alpha == 1.0 and (bias is None or beta == 1.0):
        weight = w if node.integer("transB", 0) else transposed(w, (1, 0))
        return linear(c, flow, weight, bias)
    out = Flow(c.f.op("matmul", flow.value, c.emit(w).value, tb=bool(node.integer("transB", 0))))
    if alpha != 1.0:
        out = c.binary("mul", out, Flow(c.f.constant(alpha, out.dtype)))
    if bias is None:
        return out
    added = c.emit(bias)
    if beta != 1.0:
        added = c.binary("mul", added, Flow(c.f.constant(beta, out.dtype)))
    return c.binary("add", out, added)


def _einsum(c: Converter, node: OnnxNode) -> Tensor:
    """Two operands with one contracted letter, the others kept: a transposed product."""
    equation = node.text("equation", "").replace(" ", "")
    terms, _, out = equation.partition("->")
    parts = terms.split(",")
    if len(parts) != 2 or "." in equation or not out or any(len(set(p)) != len(p) for p in (*parts, out)):
        raise Refusal(f"the equation '{equation}'")
    left, right = parts
    batch = [k for k in out if k in left and k in right]
    summed = [k for k in left if k in right and k not in out]
    rows, columns = [k for k in out if k in left and k not in right], [k for k in out if k in right and k not in left]
    if set(left) != {*batch, *summed, *rows} or set(right) != {*batch, *summed, *columns}:
        raise Refusal(f"the equation '{equation}'")
    a, b = c.emit(node.need(0)), c.emit(node.need(1))
    if a.lifted or b.lifted:
        raise Refusal(f"the equation '{equation}' on values that depend on the past alone")
    size: dict[str, Dim] = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))

    def flat(flow: Flow, letters: str, *groups: list[str]) -> Flow:
        order = [k for g in groups for k in g]
        moved = c.transpose(flow, tuple(letters.index(k) for k in order))
        return c.reshape(moved, (*(size[k] for k in groups[0]), *(product(tuple(size[k] for k in g))
                                                                  for g in groups[1:])))

    y = Flow(c.f.op("matmul", flat(a, left, batch, rows, summed).value, flat(b, right, batch, summed, columns).value))
    y = c.reshape(y, tuple(size[k] for k in (*batch, *rows, *columns)))
    made = [*batch, *rows, *columns]
    return c.transpose(y, tuple(made.index(k) for k in out))


# -- reductions -------------------------------------------------------------------------------------------
def _reduced(c: Converter, node: OnnxNode) -> tuple[tuple[int, ...], bool]:
    rank = len(node.need(0).shape)
    given = node.get(1)
    axes = node.ints("axes") if given is None else tuple(int(a) for a in c.sizes(given) if isinstance(a, int))
    if not axes and node.integer("noop_with_empty_axes", 0):
        return (), bool(node.integer("keepdims", 1))
    return tuple(sorted(a % rank for a in axes)) or tuple(range(rank)), bool(node.integer("keepdims", 1))


def _kept(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


_REDUCE = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max"}


def _reduce(c: Converter, node: OnnxNode) -> Tensor:
    x, (axes, keepdims) = node.need(0), _reduced(c, node)
    if not axes:
        return x
    shape = _kept(x.shape, axes, keepdims)
    if isinstance(x, Uniform) and not (isinstance(x.value, float) and node.op == "ReduceSum"):
        many: Any = product(tuple(x.shape[a] for a in axes)) if node.op == "ReduceSum" else 1
        return Uniform(x.value * many, shape, x.dtype)
    flow = c.emit(x)
    moved = tuple(a + flow.lifted for a in axes)
    if node.op == "ReduceMin":
        inner = c.unary("max", c.unary("neg", flow), axes=moved, keepdims=keepdims)
        return c.unary("neg", inner)
    if node.op == "ReduceL2":
        squares = c.unary("sum", c.binary("mul", flow, flow), axes=moved, keepdims=keepdims)
        return c.unary("sqrt", squares)
    return c.unary(_REDUCE[node.op], flow, axes=moved, keepdims=keepdims)


def _argmax(c: Converter, node: OnnxNode) -> Tensor:
    flow = c.emit(node.need(0))
    if node.integer("select_last_index", 0):
        raise Refusal("select_last_index = 1")
    axis = node.integer("axis", 0) % len(flow.shape)
    best = c.unary("argmax", flow, axis=axis + flow.lifted)
    return c.reshape(best, _kept(flow.shape, (axis,), True)) if node.integer("keepdims", 1) else best


def _cumsum(c: Converter, node: OnnxNode) -> Tensor:
    x, axis = node.need(0), c.sizes(node.need(1))[0]
    if node.integer("exclusive", 0) or node.integer("reverse", 0) or not isinstance(axis, int):
        raise Refusal("a cumulative sum that is exclusive or reversed")
    at = axis % len(x.shape)
    if isinstance(x, Uniform) and x.value in (1, True):
        counted = c.range_from(1, x.shape[at])
        line = c.reshape(counted, tuple(x.shape[at] if i == at else 1 for i in range(len(x.shape))))
        return c.cast(c.broadcast(line, x.shape), x.dtype)
    flow = c.emit(x)
    return c.unary("cumsum", flow, axis=at + flow.lifted)


def _softmax(c: Converter, node: OnnxNode) -> Tensor:
    flow = c.emit(node.need(0))
    axis = node.integer("axis", -1 if c.opset >= 13 else 1)
    return c.softmax(flow, axis % len(flow.shape))


# -- norms ------------------------------------------------------------------------------------------------
def _layer_norm(c: Converter, node: OnnxNode) -> Tensor | tuple[Tensor, ...]:
    x = c.emit(node.need(0))
    if node.integer("axis", -1) not in (-1, len(x.shape) - 1) or node.outputs > 1:
        raise Refusal("a layer norm over more than the last dim, or with its statistics as outputs")
    bias = node.get(2)
    weights = (c.emit(node.need(1)).value, c.emit(bias).value if bias is not None else None)
    return Flow(c.f.op("layer_norm", x.value, *weights, eps=node.number("epsilon", 1e-5)), x.lifted)


def _rms_norm(c: Converter, node: OnnxNode) -> Tensor:
    x = c.emit(node.need(0))
    if node.integer("axis", -1) not in (-1, len(x.shape) - 1):
        raise Refusal("an RMS norm over more than the last dim")
    return Flow(c.f.op("rms_norm", x.value, c.emit(node.need(1)).value, eps=node.number("epsilon", 1e-5)), x.lifted)


# -- lookups ----------------------------------------------------------------------------------------------
def _indices(c: Converter, tensor: Tensor, size: Dim) -> Flow:
    """Return indices as i64 values from 0 up (constants may count from the end)."""
    if isinstance(tensor, Sizes):
        tensor = c.from_front(tensor, size)
    array = c.numbers(tensor)
    if array is not None and (array < 0).any():
        if not isinstance(size, int):
            raise Refusal("indices that count from the end of a dim of unknown size")
        return Flow(c.constant(np.where(array < 0, array + size, array), DType.I64))
    return c.cast(c.emit(tensor), DType.I64)


def _gather(c: Converter, node: OnnxNode) -> Tensor:
    x, index = node.need(0), node.need(1)
    axis = node.integer("axis", 0) % len(x.shape)
    if isinstance(x, Uniform):
        return Uniform(x.value, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)
    one = c.sizes(index)[0] if isinstance(index, Sizes) and index.dims.size == 1 else None
    scalar = c.scalar(index) if len(index.shape) == 0 or index.shape == (1,) else one
    if scalar is not None and not isinstance(scalar, bool):
        return c.row(x, axis, scalar, keep=len(index.shape) == 1)
    if (
        isinstance(x, Stored)
        and len(x.shape) == 2
        and axis == 0
        and x.dtype.is_float
        and isinstance(index, Flow)
        and not index.lifted
    ):
        looked = Flow(c.f.op("embedding", c.weight(x), c.cast(index, DType.I64).value))
        return c.cast(looked, x.dtype)
    return c.pick(c.emit(x), axis, _indices(c, index, x.shape[axis]))


def _gather_elements(c: Converter, node: OnnxNode) -> Tensor:
    x, index = node.need(0), node.need(1)
    if isinstance(x, Uniform):
        return Uniform(x.value, tuple(index.shape), x.dtype)
    axis = node.integer("axis", 0) % len(x.shape)
    flow, at = c.emit(x), _indices(c, index, x.shape[axis])
    for place, (have, want) in enumerate(zip(flow.shape, at.shape, strict=True)):
        if place != axis and have != want:
            raise Refusal(f"it reads {want} of the {have} along dim {place}")
    values, lifted = c.aligned(flow, at)
    return Flow(c.f.op("gather", *values, axis=axis + lifted), lifted)


def _gather_nd(c: Converter, node: OnnxNode) -> Tensor:
    x, index = node.need(0), node.need(1)
    depth = index.shape[-1]
    if node.integer("batch_dims", 0) or not isinstance(depth, int):
        raise Refusal("batch_dims, or an index of unknown depth")
    shape = (*index.shape[:-1], *x.shape[depth:])
    if isinstance(x, Uniform):
        return Uniform(x.value, shape, x.dtype)
    at = c.cast(c.emit(index), DType.I64)
    flat: Flow | None = None
    rank = len(index.shape)
    for place in range(depth):
        part = c.unary("slice", at, axis=rank - 1 + at.lifted, start=(place,), stop=(place + 1,))
        step = product(tuple(x.shape[place + 1 : depth]))
        scaled = part if step == 1 else c.binary("mul", part, c.dim_value(step))
        flat = scaled if flat is None else c.binary("add", flat, scaled)
    assert flat is not None
    table = c.reshape(c.emit(x), (product(tuple(x.shape[:depth])), *x.shape[depth:]))
    return c.pick(table, 0, c.reshape(flat, index.shape[:-1]))


def _scatter_elements(c: Converter, node: OnnxNode) -> Tensor:
    x, index, updates = (c.emit(node.need(i)) for i in range(3))
    reduce = node.text("reduction", "none")
    if reduce not in ("none", "add") or x.lifted or index.lifted or updates.lifted:
        raise Refusal(f"a scatter with reduction {reduce}")
    axis = node.integer("axis", 0) % len(x.shape)
    at = c.cast(index, DType.I64)
    if any(i != axis and a != b for i, (a, b) in enumerate(zip(x.shape, at.shape, strict=True))):
        raise Refusal("it writes only a part of a dim")
    return Flow(c.f.op("scatter", x.value, at.value, updates.value, axis=axis, reduce=reduce))


def _topk(c: Converter, node: OnnxNode) -> tuple[Tensor, ...]:
    x, k = c.emit(node.need(0)), c.sizes(node.need(1))[0]
    if not node.integer("largest", 1) or not isinstance(k, int):
        raise Refusal("the least, or a number of them that is not constant")
    axis = node.integer("axis", -1) % len(x.shape)
    found = c.f.emit("topk", x.value, k=k, axis=axis + x.lifted)
    return tuple(Flow(v, x.lifted) for v in found)


def _one_hot(c: Converter, node: OnnxNode) -> Tensor:
    depth = c.sizes(node.need(1))[0]
    values = c.numbers(node.need(2))
    index = c.cast(c.emit(node.need(0)), DType.I64)
    if values is None or not isinstance(depth, int) or node.integer("axis", -1) not in (-1, len(index.shape)):
        raise Refusal("its depth or values are not constant, or the new dim is not the last")
    line = Flow(c.f.op("iota", size=(depth,)))
    hit = c.binary("eq", c.reshape(index, (*index.shape, 1)), line)
    off, on = (Flow(c.constant(np.asarray(v), node.need(2).dtype)) for v in values.reshape(-1))
    parts, lifted = c.aligned(hit, on, off)
    return Flow(c.f.op("where", *parts), lifted)


TENSORS: dict[str, Lowering] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys((*_REDUCE, "ReduceMin", "ReduceL2"), _reduce),
    "ArgMax": _argmax,
    "CumSum": _cumsum,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "TopK": _topk,
    "OneHot": _one_hot,
}
