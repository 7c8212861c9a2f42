"""Core ops that reduce, order, and read or write at computed places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as onnx

from omnic.ir.graph import Node
from omnic.ir.types import DType
from omnic.targets.onnx.lower.core import refuse, rounded
from omnic.targets.onnx.writer import GraphWriter, attrs_of, element_type

__all__ = ["TABLE"]

Lowering = Callable[[GraphWriter, Node], None]


def _reduce(kind: str) -> Lowering:
    def lower(w: GraphWriter, node: Node) -> None:
        attrs = attrs_of(node)
        x = w.need(node.operands[0])
        w.bind(node.result, w.op(kind, x, w.ints(*attrs["axes"]), keepdims=int(attrs["keepdims"])))

    return lower


def _argmax(w: GraphWriter, node: Node) -> None:
    axis = attrs_of(node)["axis"]
    w.bind(node.result, w.op("ArgMax", w.need(node.operands[0]), axis=axis, keepdims=0, select_last_index=0))


def _cumsum(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("CumSum", w.need(node.operands[0]), w.const(np.array(attrs_of(node)["axis"]))))


def _softmax(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, w.op("Softmax", w.need(node.operands[0]), axis=attrs_of(node)["axis"]))


def _index_select(w: GraphWriter, node: Node) -> None:
    x, index = (w.need(v) for v in node.operands)
    w.bind(node.result, w.op("Gather", x, index, axis=attrs_of(node)["axis"]))


def _gather(w: GraphWriter, node: Node) -> None:
    """take_along_axis: whole rows by GatherND where the index has one entry a row, else element by element."""
    x, index = node.operands
    assert x is not None
    assert index is not None
    axis = attrs_of(node)["axis"] % x.type.rank
    found, at = w.need(x), w.need(index)
    if (
        axis == 1
        and x.type.rank >= 2
        and index.type.shape[0] == x.type.shape[0]
        and all(d == 1 for d in index.type.shape[2:])
    ):
        # [B, N, 1..] -> [B, N, 1]: row index[b, n] of batch b, whole.
        at = w.reshape(at, index.type.shape, (*index.type.shape[:2], 1))
        w.bind(node.result, w.op("GatherND", found, at, batch_dims=1))
        return
    wanted = node.result.type.shape
    read = tuple(d if a == axis else wanted[a] for a, d in enumerate(x.type.shape))
    if read != x.type.shape:
        found = w.op("Expand", found, w.dims(read))
    if wanted != index.type.shape:
        at = w.op("Expand", at, w.dims(wanted))
    w.bind(node.result, w.op("GatherElements", found, at, axis=axis))


def _scatter(w: GraphWriter, node: Node) -> None:
    x, index, updates = node.operands
    assert x is not None
    assert index is not None
    assert updates is not None
    attrs = attrs_of(node)
    at = w.need(index)
    if index.type.shape != updates.type.shape:
        at = w.op("Expand", at, w.dims(updates.type.shape))
    found = w.op("ScatterElements", w.need(x), at, w.need(updates), axis=attrs["axis"], reduction=attrs["reduce"])
    w.bind(node.result, found)


def _ordered(w: GraphWriter, node: Node, count: onnx.Value, axis: int, largest: bool) -> None:
    """TopK breaks ties by the lower index, whichever end is asked for."""
    x = node.operands[0]
    assert x is not None
    found = w.need(x)
    narrow = x.type.dtype in (DType.I8, DType.U8)
    if narrow:
        found = w.op("Cast", found, to=onnx.DataType.INT32)
    values, indices = w.emit("TopK", found, count, outputs=2, axis=axis, largest=int(largest), sorted=1)
    if narrow:
        values = w.op("Cast", values, to=element_type(x.type))
    w.bind(node.results[0], values)
    w.bind(node.results[1], indices)


def _topk(w: GraphWriter, node: Node) -> None:
    attrs = attrs_of(node)
    _ordered(w, node, w.ints(attrs["k"]), attrs["axis"], True)


def _sort(w: GraphWriter, node: Node) -> None:
    attrs, x = attrs_of(node), node.operands[0]
    assert x is not None
    axis = attrs["axis"] % x.type.rank
    _ordered(w, node, w.dim(x.type.shape[axis]), axis, bool(attrs["descending"]))


def _conv(w: GraphWriter, node: Node) -> None:
    """Depthwise: one group a channel, over [B, C, T]."""
    x, weight, bias = node.operands
    assert weight is not None
    channels, taps = weight.type.shape
    kernel = w.reshape(w.need(weight), None, (channels, 1, taps))
    turned = w.op("Transpose", w.need(x), perm=[0, 2, 1])
    y = w.op("Conv", turned, kernel, w.get(bias), group=int(str(channels)))
    w.bind(node.result, w.op("Transpose", y, perm=[0, 2, 1]))


def _dequantise(w: GraphWriter, node: Node) -> None:
    """A stored weight as numbers."""
    value, to = node.operands[0], attrs_of(node)["to"]
    assert value is not None
    if not value.weight:
        raise refuse(
            node, "it reads codes that are not a weight's", "read a state through cache_read, a weight where it is used"
        )
    w.bind(node.result, rounded(w, w.weight(value), to))


TABLE: dict[str, Lowering] = {
    "sum": _reduce("ReduceSum"),
    "max": _reduce("ReduceMax"),
    "mean": _reduce("ReduceMean"),
    "argmax": _argmax,
    "cumsum": _cumsum,
    "softmax": _softmax,
    "gather": _gather,
    "index_select": _index_select,
    "scatter": _scatter,
    "topk": _topk,
    "sort": _sort,
    "depthwise_conv1d": _conv,
    "dequantise": _dequantise,
}
