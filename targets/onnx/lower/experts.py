"""Mixtures of experts: ONNX Runtime's MoE where it computes our activation, else a product per expert.

What the CPU kernel of ``com.microsoft.MoE`` 1.31 was measured to do (tests/targets/onnx/test_experts.py):
relu, silu and interleaved SwiGLU are exact; its ``gelu`` is the tanh approximation; gated kinds other than
SwiGLU do not exist.  An expert that no token chose is skipped in both forms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as onnx

from omnic.ir.graph import Node, Value
from omnic.ir.types import Storage
from omnic.targets.onnx.lower.composites import activation, gated
from omnic.targets.onnx.lower.stored import experts_fit, product, quantised_experts, stored_form, swiglu
from omnic.targets.onnx.tensors import Layout, Piece
from omnic.targets.onnx.writer import MICROSOFT, GraphWriter, attrs_of, weight_shape

__all__ = ["CONTRIB", "TABLE", "contrib_activation"]

Lowering = Callable[[GraphWriter, Node], None]

#: kind of act -> activation_type of the contrib operator, without a gate
UNGATED = {"relu": "relu", "silu": "silu", "gelu_tanh": "gelu"}


def contrib_activation(kind: str, gated: bool) -> str | None:
    """Return the ``activation_type`` that computes exactly ``kind``, or None."""
    if gated:
        return "swiglu" if kind == "silu" else None
    return UNGATED.get(kind)


def _weights(node: Node) -> tuple[Value | None, ...]:
    return node.operands[3:9]


def _fused(w: GraphWriter, node: Node) -> None:
    """One MoE node; our routing reaches it as the logarithm of the gates, so that its own softmax gives them back."""
    x, indices, gates = node.operands[:3]
    up, down, gate, up_bias, _, gate_bias = _weights(node)
    assert x is not None
    assert indices is not None
    kind = contrib_activation(attrs_of(node)["kind"], gate is not None)
    stored = any(v is not None and isinstance(v.type.element, Storage) for v in _weights(node))
    if stored and not experts_fit(node):
        kind = None
    constant = all(v is None or v.weight for v in _weights(node))
    # The packed gate and up cannot share an interleaved bias in our data file, so biased SwiGLU goes expert by expert.
    if kind is None or not constant or (gate is not None and (up_bias is not None or gate_bias is not None)):
        _per_expert(w, node)
        return
    assert up is not None
    assert down is not None
    experts, _, width = weight_shape(w.module.weights[up.name])
    top_k = int(str(indices.type.shape[2]))
    flat = w.op("Reshape", w.need(x), w.ints(-1, width))
    chosen = w.op("Reshape", w.need(indices), w.ints(-1, top_k))
    share = w.op("Reshape", w.need(gates), w.ints(-1, top_k))
    # A gate of exactly 0 keeps a finite logarithm; it stays far below what f32 can add.
    logits = w.op("Log", w.op("Max", share, w.const(np.float32(1e-30))))
    shape = w.op("Concat", w.op("Shape", flat, start=0, end=1), w.ints(experts), axis=0)
    probs = w.op("ScatterElements", w.op("Expand", w.const(np.float32(-1e30)), shape), chosen, logits, axis=1)
    if stored:
        y = quantised_experts(w, node, (flat, probs), kind, lambda g, u: w.blocks(g, u, weave=True))
    else:
        y = _float_experts(w, node, flat, probs, kind)
    # The operator's gates sum to 1; ours need not.
    y = w.op("Mul", y, w.op("ReduceSum", share, w.ints(1), keepdims=1))
    w.bind(node.result, w.op("Reshape", y, w.op("Shape", w.need(x))))


def _float_experts(w: GraphWriter, node: Node, flat: onnx.Value, probs: onnx.Value, kind: str) -> onnx.Value:
    """Return the result of MoE for flat tokens and router logits."""
    up, down, gate, up_bias, down_bias, _ = _weights(node)
    assert up is not None
    experts, hidden, width = weight_shape(w.module.weights[up.name])
    if gate is None:
        first, first_bias, extra = w.need(up), w.get(up_bias), {}
    else:
        first = w.tensor(_interleaved(w, gate, up, (experts, 2 * hidden, width)))
        first_bias, extra = None, swiglu(node)
    return w.op(
        "MoE",
        flat,
        probs,
        first,
        first_bias,
        w.need(down),
        w.get(down_bias),
        domain=MICROSOFT,
        k=int(str(node.operands[1].type.shape[2])),  # type: ignore[union-attr]
        activation_type=kind,
        normalize_routing_weights=0,
        **extra,
    )


def _interleaved(w: GraphWriter, gate: Value, up: Value, shape: tuple[int, ...]) -> Layout:
    """Rows g0, u0, g1, u1.. of each expert, as ``swiglu_fusion = 1`` reads them."""
    own = weight_shape(w.module.weights[up.name])
    pieces = tuple(Piece(v.name, own, axis=1, offset=i, stride=2) for i, v in enumerate((gate, up)))
    return Layout(f"@{gate.name}|{up.name}", shape, pieces)


def _per_expert(w: GraphWriter, node: Node) -> None:
    """For each expert: if some token chose it, gather those tokens, multiply, weight and add.

    Every product is then one packed matrix product over just the tokens that need it.
    """
    x, indices, gates = node.operands[:3]
    up = _weights(node)[0]
    assert x is not None
    assert indices is not None
    assert up is not None
    experts, width = int(str(up.type.shape[0])), int(str(up.type.shape[2]))
    top_k = int(str(indices.type.shape[2]))
    flat = w.op("Reshape", w.need(x), w.ints(-1, width))
    chosen = w.op("Reshape", w.need(indices), w.ints(-1, top_k, 1))
    share = w.op("Reshape", w.need(gates), w.ints(-1, top_k, 1))
    hits = w.op("Equal", chosen, w.const(np.arange(experts).reshape(1, 1, experts)))
    spread = w.op("ReduceSum", w.op("Where", hits, share, w.const(np.float32(0))), w.ints(1), keepdims=0)
    member = w.op("ReduceMax", w.op("Cast", hits, to=onnx.DataType.INT32), w.ints(1), keepdims=0)
    used = w.op("Cast", w.op("ReduceMax", member, w.ints(0), keepdims=0), to=onnx.DataType.BOOL)
    y = w.op("Mul", flat, w.const(np.float32(0)))
    kind = [onnx.TensorType(onnx.DataType.FLOAT)]
    for expert in range(experts):

        def add(expert: int = expert, y: onnx.Value = y) -> list[onnx.Value]:
            column = w.op("Gather", member, w.const(np.array(expert)), axis=1)
            rows = w.op("Transpose", w.op("NonZero", column), perm=[1, 0])
            out = _expert(w, node, expert, w.op("GatherND", flat, rows))
            weight = w.op(
                "Unsqueeze",
                w.op("GatherND", w.op("Gather", spread, w.const(np.array(expert)), axis=1), rows),
                w.ints(1),
            )
            return [w.op("ScatterND", y, rows, w.op("Mul", out, weight), reduction="add")]

        y = w.branch(
            w.op("Gather", used, w.const(np.array(expert)), axis=0), kind, add, lambda y=y: [w.op("Identity", y)]
        )[0]
    w.bind(node.result, w.op("Reshape", y, w.op("Shape", w.need(x))))


def _expert(w: GraphWriter, node: Node, expert: int, x: onnx.Value) -> onnx.Value:
    """down(act(up x)), or down(act(gate x) * up x), of one expert; x is [N, D]."""
    up, down, gate, up_bias, down_bias, gate_bias = _weights(node)
    kind, act = attrs_of(node)["kind"], attrs_of(node)["act"]
    inner = _affine(w, x, up, up_bias, expert, act)
    hidden = (
        activation(w, inner, kind)
        if gate is None
        else gated(w, _affine(w, x, gate, gate_bias, expert, act), inner, node)
    )
    return _affine(w, hidden, down, down_bias, expert, act)


def _affine(
    w: GraphWriter, x: onnx.Value, weight: Value | None, bias: Value | None, expert: int, act: str
) -> onnx.Value:
    assert weight is not None
    if stored_form(w, weight) is not None:
        y = product(w, x, (weight,), act, expert)
    else:
        y = w.op("MatMul", x, _slice(w, weight, expert, True))
    return y if bias is None else w.op("Add", y, _slice(w, bias, expert, False))


def _slice(w: GraphWriter, value: Value, expert: int, matrix: bool) -> onnx.Value:
    """One expert's matrix [K, N], or its bias [N]."""
    if not value.weight or isinstance(value.type.element, Storage):
        one = w.op("Gather", w.need(value), w.const(np.array(expert)), axis=0)
        return w.op("Transpose", one, perm=[1, 0]) if matrix else one
    shape = weight_shape(w.module.weights[value.name])
    piece = Piece(value.name, shape, expert=expert, swap=matrix)
    return w.tensor(Layout(f"@{value.name}[{expert}]" + (":T" if matrix else ""), piece.placed(), (piece,)))


TABLE: dict[str, Lowering] = {"moe": _per_expert}
CONTRIB: dict[str, Lowering] = {"moe": _fused}
