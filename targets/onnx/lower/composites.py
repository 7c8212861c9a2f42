"""Composites with an operator of their own: products, norms, activations, rope, heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as onnx

from omnic.errors import InternalError
from omnic.ir.graph import Module, Node, Value
from omnic.ir.ops.composite import gate_of
from omnic.ir.ops.rope import rope_tables
from omnic.targets.onnx.lower.stored import PER_TOKEN, embedding, integer_product, product, stored_form
from omnic.targets.onnx.writer import MICROSOFT, GraphWriter, attrs_of

__all__ = ["TABLE", "activation", "gated", "position_limit", "project", "rope_inputs", "rotate", "skip_norm"]

Lowering = Callable[[GraphWriter, Node], None]


def project(
    w: GraphWriter, x: onnx.Value, weights: tuple[Value, ...], biases: tuple[Value | None, ...], act: str = "none"
) -> onnx.Value:
    """Return x [..., K] times the rows of several weights [N_i, K] side by side, plus their biases."""
    if not all(v.weight for v in weights):
        (only,), (bias,) = weights, biases
        y = w.op("MatMul", x, w.op("Transpose", w.need(only), perm=[1, 0]))
        return y if bias is None else w.op("Add", y, w.need(bias))
    if act == PER_TOKEN:
        y = integer_product(w, x, weights)
    elif stored_form(w, *weights) is not None:
        y = product(w, x, weights, act)
    else:
        y = w.op("MatMul", x, w.transposed(*weights))
    present = tuple(b for b in biases if b is not None)
    if not present:
        return y
    if not all(b.weight for b in present):
        return w.op("Add", y, w.need(present[0]))
    return w.op("Add", y, w.joined(*present))


def _linear(w: GraphWriter, node: Node) -> None:
    x, weight, bias = node.operands
    assert weight is not None
    w.bind(node.result, project(w, w.need(x), (weight,), (bias,), attrs_of(node)["act"]))


def _embedding(w: GraphWriter, node: Node) -> None:
    table, tokens = node.operands
    assert table is not None
    if stored_form(w, table) is not None:
        w.bind(node.result, embedding(w, table, w.need(tokens)))
        return
    w.bind(node.result, w.op("Gather", w.need(table), w.need(tokens), axis=0))


def activation(w: GraphWriter, x: onnx.Value, kind: str) -> onnx.Value:
    """Return act(x) (docs/ir.md, op ``act``)."""
    if kind == "silu":
        if w.profile == "fused":
            return w.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)
        return w.op("Mul", x, w.op("Sigmoid", x))
    if kind in ("gelu", "gelu_tanh"):
        return w.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")
    rectified = w.op("Relu", x)
    return rectified if kind == "relu" else w.op("Mul", rectified, rectified)


def gated(w: GraphWriter, gate: onnx.Value, up: onnx.Value, node: Node) -> onnx.Value:
    """Return act(gate) * up with the numbers of the node (docs/ir.md, op ``gated_act``)."""
    kind, numbers = attrs_of(node)["kind"], gate_of(attrs_of(node))
    limit, alpha, beta = numbers["limit"], float(numbers["alpha"]), float(numbers["beta"])
    if limit is not None:
        low, high = w.const(np.float32(-limit)), w.const(np.float32(limit))
        gate, up = w.op("Clip", gate, None, high), w.op("Clip", up, low, high)
    if alpha == 1.0:
        opening = activation(w, gate, kind)
    elif w.profile == "fused":
        opening = w.op("QuickGelu", gate, domain=MICROSOFT, alpha=alpha)
    else:
        opening = w.op("Mul", gate, w.op("Sigmoid", w.op("Mul", gate, w.const(np.float32(alpha)))))
    return w.op("Mul", opening, up if beta == 0.0 else w.op("Add", up, w.const(np.float32(beta))))


def _act(w: GraphWriter, node: Node) -> None:
    w.bind(node.result, activation(w, w.need(node.operands[0]), attrs_of(node)["kind"]))


def _gated_act(w: GraphWriter, node: Node) -> None:
    gate, up = node.operands
    w.bind(node.result, gated(w, w.need(gate), w.need(up), node))


def _scale(w: GraphWriter, value: Value | None, size: Any) -> onnx.Value:
    """The weight of a norm; ones where it has none (the operators need one)."""
    return w.const(np.ones(int(size), np.float32)) if value is None else w.need(value)


def _rms_norm(w: GraphWriter, node: Node) -> None:
    x, weight = node.operands
    scale = _scale(w, weight, node.result.type.shape[-1])
    w.bind(node.result, w.op("RMSNormalization", w.need(x), scale, axis=-1, epsilon=float(attrs_of(node)["eps"])))


def _layer_norm(w: GraphWriter, node: Node) -> None:
    x, weight, bias = node.operands
    scale = _scale(w, weight, node.result.type.shape[-1])
    w.bind(
        node.result,
        w.op("LayerNormalization", w.need(x), scale, w.get(bias), axis=-1, epsilon=float(attrs_of(node)["eps"])),
    )


def skip_norm(w: GraphWriter, add: Node, norm: Node) -> None:
    """Lower ``norm(add)`` as one SkipSimplifiedLayerNormalization that gives the sum too."""
    weight = norm.operands[1]
    with w.at(norm, add):
        found = w.emit(
            "SkipSimplifiedLayerNormalization",
            *(w.need(v) for v in add.operands),
            w.need(weight),
            outputs=4,
            domain=MICROSOFT,
            epsilon=float(attrs_of(norm)["eps"]),
        )
    w.bind(add.result, found[3])
    w.bind(norm.result, found[0])


def position_limit(module: Module) -> int | None:
    """Return how many positions the rotary tables cover: every token a state can hold, or the trained context.

    None where the module says neither; its rotations are computed from the positions then.
    """
    known = [int(str(module.meta[k])) for k in ("capacity", "context") if k in module.meta]
    return max(known, default=None)


def rope_inputs(w: GraphWriter, node: Node) -> tuple[onnx.Value, onnx.Value, onnx.Value]:
    """Return (cos, sin, positions) of a ``rope`` node: tables f32 [P, dims/2] and i64 [B, T] within them.

    The angles are computed in f64 and rounded once.  Positions of tokens beyond ``length`` may lie past
    the table and are clipped; sessions refuse such positions of valid tokens.
    """
    attrs = attrs_of(node)
    limit = position_limit(w.module)
    if limit is None:
        raise InternalError(f"{node.name}: a rotation without a table was to be decomposed")
    key = ("rope", tuple(sorted((k, v) for k, v in attrs.items() if k != "interleaved" and v is not None)))
    if key not in w.memo:
        number = sum(isinstance(k, tuple) and k[0] == "rope" for k in w.memo)
        cos, sin = rope_tables(np.arange(limit), dict(attrs))
        name = f"rope.{w.function.name}.{number}"
        w.memo[key] = tuple(
            w.numbers(f"{name}.{part}", t.astype(np.float32)) for part, t in (("cos", cos), ("sin", sin))
        )
    cos, sin = w.memo[key]
    positions = node.operands[1]
    if w.row:
        return cos, sin, w.need(positions)
    place = ("positions", positions)
    if place not in w.memo:
        w.memo[place] = w.op("Clip", w.need(positions), w.const(np.array(0)), w.const(np.array(limit - 1)))
    return cos, sin, w.memo[place]


def rotate(w: GraphWriter, x: onnx.Value, node: Node, heads: int | None) -> onnx.Value:
    """Rotate x as the ``rope`` node says: [B, H, T, R], or [B, T, heads * R]."""
    attrs, source = attrs_of(node), node.operands[0]
    assert source is not None
    dims = int(attrs["dims"])
    partial = dims if dims != source.type.shape[-1] else 0
    return w.op(
        "RotaryEmbedding",
        x,
        *rope_inputs(w, node),
        interleaved=int(attrs["interleaved"]),
        num_heads=heads,
        rotary_embedding_dim=partial,
    )


def _rope(w: GraphWriter, node: Node) -> None:
    x = node.operands[0]
    assert x is not None
    w.bind(node.result, rotate(w, w.need(x), node, 1 if x.type.rank == 3 else None))


def _row_logits(w: GraphWriter, node: Node, act: str) -> onnx.Value:
    """Logits of the wanted rows of the only row of a batch."""
    x, weight, rows, _ = node.operands
    assert weight is not None
    assert rows is not None
    vocab, width = (int(str(d)) for d in weight.type.shape)
    key = ("rows", x, rows)
    if key not in w.memo:
        flat = w.op("Reshape", w.need(x), w.ints(-1, width))
        w.memo[key] = w.op("Gather", flat, w.need(rows), axis=0)
    if stored_form(w, weight) is not None:
        return _biased(w, node, product(w, w.memo[key], (weight,), act))
    flat = w.op("Reshape", w.memo[key], w.ints(-1, width))
    return w.op("Reshape", w.op("Gemm", flat, w.need(weight), w.get(node.operands[3]), transB=1), w.ints(1, -1, vocab))


def _biased(w: GraphWriter, node: Node, y: onnx.Value) -> onnx.Value:
    return y if node.operands[3] is None else w.op("Add", y, w.need(node.operands[3]))


def _every_logits(w: GraphWriter, node: Node, act: str) -> onnx.Value:
    x, weight, rows, bias = node.operands
    assert weight is not None
    vocab, width = weight.type.shape
    wanted = w.need(x)
    if rows is not None:
        key = ("rows", x, rows)
        if key not in w.memo:
            w.memo[key] = w.op("GatherND", wanted, w.op("Unsqueeze", w.need(rows), w.ints(2)), batch_dims=1)
        wanted = w.memo[key]
    flat = ("flat", wanted)
    if flat not in w.memo:
        w.memo[flat] = w.op("Reshape", wanted, w.ints(-1, int(str(width))))
    shape = w.op("Concat", w.op("Shape", wanted, start=0, end=2), w.ints(int(str(vocab))), axis=0)
    if stored_form(w, weight) is not None:
        y = _biased(w, node, product(w, w.memo[flat], (weight,), act))
    else:
        y = w.op("Gemm", w.memo[flat], w.need(weight), w.get(bias), transB=1)
    return w.op("Reshape", y, shape)


def _lm_head(w: GraphWriter, node: Node) -> None:
    """Only the wanted rows; the operators read the weight as it lies, so a tied table is stored once."""
    rows, act = node.operands[2], attrs_of(node)["act"]
    cap = float(attrs_of(node)["softcap"])
    y = _row_logits(w, node, act) if w.row and rows is not None else _every_logits(w, node, act)
    if cap:
        scale = w.const(np.float32(cap))
        y = w.op("Mul", w.op("Tanh", w.op("Div", y, scale)), scale)
    w.bind(node.result, y)


TABLE: dict[str, Lowering] = {
    "linear": _linear,
    "embedding": _embedding,
    "act": _act,
    "gated_act": _gated_act,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "lm_head": _lm_head,
}
