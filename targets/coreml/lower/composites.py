"""Composites that MIL computes in one operation or a few: products, norms, activations, rotation, heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Node, Value
from omnic.ir.op import find_op
from omnic.ir.ops.rope import rope_tables
from omnic.ir.types import DType
from omnic.targets.coreml.legalise import rounds
from omnic.targets.coreml.lower import core, indexing
from omnic.targets.coreml.lower.core import Lowering
from omnic.targets.coreml.lower.experts import decompose_experts
from omnic.targets.coreml.writer import MilWriter, attrs_of, refuse

__all__ = ["COLUMNS", "SMALLEST_PEAK", "TABLE", "TABLE_STEP", "position_limit"]

#: what a norm of the neural engine divides by at least
SMALLEST_PEAK = 2.0**-14
#: where something is rounded to fp16, tables of cosines in fp32 hold multiples of this, which the reference can too
TABLE_STEP = 2.0**-22


def position_limit(w: MilWriter) -> int:
    """Return how many positions the tables of cosines hold: the tokens a row can, or the trained context."""
    meta = w.module.meta
    known = [v for v in (meta.get("capacity"), meta.get("context")) if isinstance(v, int)]
    sizes = [s.type.shape[-2] for s in w.module.states.values() if not s.ring]
    known += [d for d in sizes if isinstance(d, int)]
    return max(known, default=w.module.dims["T"].high if "T" in w.module.dims else 1)


def _no_activation(node: Node) -> None:
    act = attrs_of(node).get("act", "none")
    if act != "none":
        raise refuse(node, f"it quantises activations as {act}; the products of an ML Program take fp16 and fp32"
                           " (coremltools 9.0, iOS18 linear)", "compile without activation quantisation")


def _linear(w: MilWriter, node: Node) -> None:
    x, weight, bias = node.operands
    assert x is not None and weight is not None
    _no_activation(node)
    w.bind(node.result, _product(w, w.as_float(x), weight, bias))


def _product(w: MilWriter, x: Any, weight: Value, bias: Value | None) -> Any:
    if weight.weight and (bias is None or bias.weight):
        # Without a bias each operation would bring zeros of its own into the file.
        zeros = w.const(np.zeros(int(str(weight.type.shape[0])))) if bias is None else w.weight(bias)
        return w.op("linear", x=x, weight=w.weight(weight), bias=zeros)
    y = w.op("matmul", x=x, y=w.as_float(weight), transpose_y=True)
    return y if bias is None else w.op("add", x=y, y=w.as_float(bias))


def _conv(w: MilWriter, node: Node) -> None:
    """A product over [1, D, 1, T] is a convolution of 1x1."""
    x, weight, bias = node.operands
    assert x is not None and weight is not None
    _no_activation(node)
    if x.type.rank != 3 or not weight.weight or (bias is not None and not bias.weight):
        _linear(w, node)
        return
    y = w.op("conv", x=w.columns(x), weight=w.weight(weight, columns=True), pad_type="valid",
             bias=None if bias is None else w.weight(bias))
    w.bind_columns(node.result, y)


def _embedding(w: MilWriter, node: Node) -> None:
    table, tokens = node.operands
    assert table is not None
    found = w.op("gather", x=w.need(table), indices=w.need(tokens), axis=0, validate_indices=False)
    w.bind(node.result, w.cast(found, w.float))


def _activated(w: MilWriter, x: Any, kind: str) -> Any:
    if kind == "gelu":
        return w.op("gelu", x=x, mode="EXACT")
    if kind == "gelu_tanh":
        return w.op("gelu", x=x, mode="TANH_APPROXIMATION")
    if kind == "relu":
        return w.op("relu", x=x)
    if kind == "relu2":
        y = w.op("relu", x=x)
        return w.op("mul", x=y, y=y)
    return w.op("silu", x=x)


def _act(w: MilWriter, node: Node) -> None:
    x, kind = node.operands[0], str(attrs_of(node)["kind"])
    assert x is not None
    if w.has_columns(x):
        w.bind_columns(node.result, _activated(w, w.columns(x), kind))
        return
    w.bind(node.result, _activated(w, w.as_float(x), kind))


def _gated(w: MilWriter, node: Node) -> None:
    gate, up = node.operands
    assert gate is not None and up is not None
    attrs = attrs_of(node)
    columns = w.has_columns(gate) and w.has_columns(up)
    g, u = (w.columns(v) if columns else w.as_float(v) for v in (gate, up))
    limit, alpha, beta = attrs.get("limit"), attrs.get("alpha", 1.0), attrs.get("beta", 0.0)
    if limit:
        g = w.op("minimum", x=g, y=w.const(float(limit)))
        u = w.op("minimum", x=w.op("maximum", x=u, y=w.const(-float(limit))), y=w.const(float(limit)))
    if alpha != 1.0:
        opened = w.op("mul", x=g, y=w.op("sigmoid", x=w.op("mul", x=g, y=w.const(float(alpha)))))
    else:
        opened = _activated(w, g, str(attrs["kind"]))
    if beta:
        u = w.op("add", x=u, y=w.const(float(beta)))
    made = w.op("mul", x=opened, y=u)
    (w.bind_columns if columns else w.bind)(node.result, made)


def _rms_norm(w: MilWriter, node: Node) -> None:
    x, weight = node.operands
    assert x is not None
    eps = float(attrs_of(node)["eps"])
    if w.columnar and w.has_columns(x) and (weight is None or weight.weight):
        found, axis = w.columns(x), 1
        scale = None if weight is None else w.op("reshape", x=w.weight(weight), shape=[1, -1, 1, 1])
    else:
        found, axis = w.as_float(x), -1
        scale = None if weight is None else w.as_float(weight)
    added = None
    if w.columnar and w.half:
        # Divided by its largest number first, and eps by the square of that: squares beyond 65504 do not fit fp16.
        peak = w.op("reduce_max", x=w.op("abs", x=found), axes=[axis], keep_dims=True)
        peak = w.op("maximum", x=peak, y=w.const(SMALLEST_PEAK))
        found = w.op("real_div", x=found, y=peak)
        root = w.op("real_div", x=w.const(math.sqrt(eps)), y=peak)
        added = w.op("mul", x=root, y=root)
    square = w.op("reduce_mean", x=w.op("mul", x=found, y=found), axes=[axis], keep_dims=True)
    square = square if added is None else w.op("add", x=square, y=added)
    y = w.op("mul", x=found, y=w.op("rsqrt", x=square, epsilon=w.const(eps if added is None else 0.0)))
    y = y if scale is None else w.op("mul", x=y, y=scale)
    (w.bind_columns if axis == 1 else w.bind)(node.result, y)


def _rope(w: MilWriter, node: Node) -> None:
    """Rows of tables of cosines and sines, computed in f64, and the rotation."""
    x, positions = node.operands
    assert x is not None and positions is not None
    attrs = attrs_of(node)
    dims, width = int(attrs["dims"]), int(str(x.type.shape[-1]))
    frequency = {k: v for k, v in attrs.items() if k != "interleaved"}
    key = ("rope", repr(sorted(frequency.items(), key=str)), positions, w.half)
    if key not in w.caches:
        tables = rope_tables(np.arange(position_limit(w)), attrs)
        if not w.half and rounds(w.module):
            tables = tuple(np.rint(t / TABLE_STEP) * TABLE_STEP for t in tables)
        w.caches[key] = tuple(
            w.op("gather", x=w.const(t), indices=w.need(positions), axis=0, validate_indices=False) for t in tables)
    cos, sin = w.caches[key]
    if x.type.rank == 4:
        four = (*key, "heads")
        if four not in w.caches:
            w.caches[four] = tuple(w.op("expand_dims", x=t, axes=[1]) for t in (cos, sin))
        cos, sin = w.caches[four]
    found, axis = w.as_float(x), x.type.rank - 1
    rest = None
    if dims < width:
        found, rest = w.op("split", x=found, split_sizes=[dims, width - dims], axis=axis)
    if attrs["interleaved"]:
        lead = w.dims(x.type.shape[:-1])
        pairs = w.op("reshape", x=found, shape=[*lead, dims // 2, 2])
        first, second = (w.op("squeeze", x=p, axes=[axis + 1])
                         for p in w.op("split", x=pairs, num_splits=2, axis=axis + 1))
    else:
        first, second = w.op("split", x=found, num_splits=2, axis=axis)
    left = w.op("sub", x=w.op("mul", x=first, y=cos), y=w.op("mul", x=second, y=sin))
    right = w.op("add", x=w.op("mul", x=first, y=sin), y=w.op("mul", x=second, y=cos))
    if attrs["interleaved"]:
        both = w.op("stack", values=[left, right], axis=axis + 1)
        y = w.op("reshape", x=both, shape=[*w.dims(x.type.shape[:-1]), dims])
    else:
        y = w.op("concat", values=[left, right], axis=axis)
    w.bind(node.result, y if rest is None else w.op("concat", values=[y, rest], axis=axis))


def _lm_head(w: MilWriter, node: Node) -> None:
    x, table, rows, bias = node.operands
    assert x is not None and table is not None
    _no_activation(node)
    attrs = attrs_of(node)
    found = w.as_float(x)
    if rows is not None and not (x.type.shape[1] == 1 and rows.type.shape[1] == 1):
        key = ("row of", x, w.half)
        if key not in w.caches:
            flat = w.op("reshape", x=w.need(rows), shape=[-1])
            w.caches[key] = w.op("gather", x=found, indices=flat, axis=1, validate_indices=False)
        found = w.caches[key]
    if w.columnar and table.weight and (bias is None or bias.weight):
        moved = w.op("expand_dims", x=w.op("transpose", x=found, perm=[0, 2, 1]), axes=[2])
        y = w.op("conv", x=moved, weight=w.weight(table, columns=True), pad_type="valid",
                 bias=None if bias is None else w.weight(bias))
        y = w.op("transpose", x=w.op("squeeze", x=y, axes=[2]), perm=[0, 2, 1])
    else:
        y = _product(w, found, table, bias)
    if attrs["softcap"]:
        cap = w.const(float(attrs["softcap"]))
        y = w.op("mul", x=w.op("tanh", x=w.op("real_div", x=y, y=cap)), y=cap)
    w.bind(node.result, y)


def _dequantise(w: MilWriter, node: Node) -> None:
    x = node.operands[0]
    assert x is not None
    if not x.weight:
        raise refuse(node, "what it reads is no weight", "only weights are stored as codes")
    found, to = w.as_float(x), attrs_of(node)["to"]
    if to == DType.BF16:
        raise refuse(node, "MIL has no bf16 (MIL format, DataType)", "ask for f16 or f32")
    w.bind(node.result, w.cast(w.cast(found, "fp16"), w.float) if to == DType.F16 else found)


def _experts(w: MilWriter, node: Node) -> None:
    """Lower what :func:`decompose_experts` builds."""
    b = FunctionBuilder(node.name)
    with b.at(node):
        y = decompose_experts(b, *find_op("moe").arrange(node.operands), **attrs_of(node))
    entries = {**core.TABLE, **indexing.TABLE, **TABLE}
    for inner in b.nodes:
        if inner.op not in entries:
            raise refuse(inner, "a program has no such operation", "compile without activation quantisation")
        entries[inner.op](w, inner)
    w.bind(node.result, w.need(y))


TABLE: dict[str, Lowering] = {
    "linear": _linear, "embedding": _embedding, "act": _act, "gated_act": _gated, "rms_norm": _rms_norm, "rope": _rope,
    "lm_head": _lm_head, "dequantise": _dequantise, "moe": _experts,
}
#: what replaces entries of :data:`TABLE` where products are convolutions
COLUMNS: dict[str, Lowering] = {"linear": _conv}
