"""Products, tables and experts whose weights are stored in blocks of codes, which com.microsoft operators read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as onnx

from omnic.ir.graph import Node, Value
from omnic.ir.ops.composite import gate_of
from omnic.targets.onnx import columns
from omnic.targets.onnx.blocks import Blocks
from omnic.targets.onnx.legalise import expert_forms
from omnic.targets.onnx.tensors import Layout, Piece
from omnic.targets.onnx.writer import MICROSOFT, GraphWriter, attrs_of, weight_shape

__all__ = ["PER_TOKEN", "embedding", "experts_fit", "integer_product", "product", "quantised_experts", "stored_form",
           "swiglu"]

#: the activations of an integer product
PER_TOKEN = "i8<per_token>"
#: the least scale of a token, so that one of zeros divides by something
TINY = 1e-30


def stored_form(w: GraphWriter, *values: Value) -> Blocks | None:
    """Return how weights lie in blocks that an operator of this profile reads, None when they do not."""
    found = w.form(*values) if w.profile == "fused" else "the standard set has no such operator"
    return found if isinstance(found, Blocks) else None


def product(
    w: GraphWriter, x: onnx.Value, values: tuple[Value, ...], act: str, expert: int | None = None
) -> onnx.Value:
    """Return x [..., K] times the rows of weights [N_i, K] side by side (or of one expert's), without their biases."""
    form = stored_form(w, *values)
    assert form is not None
    made = w.blocks(*values, expert=expert)
    rows, count = made["codes"].shape[0], form.count
    codes = w.tensor(made["codes"], (rows, count, form.block * form.bits // 8))
    # Flat, so that a table which an embedding reads too is another initializer there (of the same bytes): a packed
    # one that two operators share comes back wrong from a prepacked program.
    scale, zero = (w.tensor(made[p], (int(np.prod(made[p].shape)),)) if p in made else None for p in ("scale", "zero"))
    return w.op(
        "MatMulNBits",
        x,
        codes,
        scale,
        zero,
        domain=MICROSOFT,
        K=form.width,
        N=rows,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=0 if act == "none" else 4,
    )


def _columns(w: GraphWriter, values: tuple[Value, ...]) -> dict[str, Layout]:
    """Return the parts of weights [N_i, K] of 8-bit rows, their columns side by side: [K, sum of N_i]."""
    name = "@" + "+".join(v.name for v in values)
    made: dict[str, Layout] = {}
    for part in columns.DTYPES:
        pieces, offset, axis = list[Piece](), 0, int(part == columns.CODES)
        for value in values:
            shape = weight_shape(w.module.weights[value.name])
            swap, type = part == columns.CODES, str(value.type.element)
            pieces.append(Piece(value.name, shape, None, swap, axis, offset, 1, part, type))
            offset += shape[0]
        shape = (*pieces[0].placed()[:-1], offset)
        made[part] = Layout(f"{name}.{part}", shape, tuple(pieces), group=f"{name}.{columns.CODES}")
        w.tensors.add(made[part])
    return made


def integer_product(w: GraphWriter, x: onnx.Value, values: tuple[Value, ...]) -> onnx.Value:
    """Return x [..., K], in 8 bits with a scale a token, times the rows of weights [N_i, K] of 8 bits, side by side."""
    made, one = _columns(w, values), w.const(np.float32(1))
    zero = w.const(np.uint8(columns.ZERO), np.uint8)
    key = ("units", x)
    if key not in w.memo:
        largest = w.op("ReduceMax", w.op("Abs", x), w.ints(-1), keepdims=1)
        scale = w.op("Max", w.op("Div", largest, w.const(np.float32(127))), w.const(np.float32(TINY)))
        w.memo[key] = w.op("QuantizeLinear", w.op("Div", x, scale), one, zero), scale
    units, scale = w.memo[key]
    codes, rows = w.tensor(made[columns.CODES]), w.tensor(made[columns.SCALE])
    found = w.op("MatMulIntegerToFloat", units, codes, one, rows, zero, zero, domain=MICROSOFT)
    return w.op("Mul", found, scale)


def embedding(w: GraphWriter, table: Value, tokens: onnx.Value) -> onnx.Value:
    """Return rows of a stored table; a head that shares the table reads the same bytes of the file."""
    form = stored_form(w, table)
    assert form is not None
    made = w.blocks(table)
    found = w.op(
        "GatherBlockQuantized",
        w.tensor(made["codes"]),
        tokens,
        w.tensor(made["scale"]),
        w.tensor(made["zero"]) if "zero" in made else None,
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=form.block,
        bits=form.bits,
    )
    return w.op("Slice", found, w.ints(0), w.ints(form.width), w.ints(-1)) if form.ragged else found


def experts_fit(node: Node) -> bool:
    """Whether QMoE computes the products of a ``moe`` exactly as the node says.

    Measured of ONNX Runtime 1.31 (tests/targets/onnx/test_blocks.py): 4 bits at both accuracy levels; 8 bits only
    with 8-bit activations, which it uses at level 0 too; 2 bits are wrong at blocks of 32 and more.
    """
    forms, act = expert_forms(node), attrs_of(node)["act"]
    if forms is None or any(f.ragged or f.type.asym != forms[0].type.asym for f in forms):
        return False
    if len({(f.bits, f.block) for f in forms}) != 1:
        return False
    return forms[0].bits == 4 or (forms[0].bits == 8 and act != "none")


def swiglu(node: Node) -> dict[str, float | int]:
    """Return the attributes of MoE and QMoE for the gated activation of a ``moe``, gate and up interleaved."""
    numbers = gate_of(attrs_of(node))
    limit = {} if numbers["limit"] is None else {"swiglu_limit": float(numbers["limit"])}
    return {"swiglu_fusion": 1, "activation_alpha": float(numbers["alpha"]),
            "activation_beta": float(numbers["beta"]), **limit}


def quantised_experts(
    w: GraphWriter,
    node: Node,
    inputs: tuple[onnx.Value, onnx.Value],
    kind: str,
    interleave: Callable[[Value, Value], dict[str, Layout]],
) -> onnx.Value:
    """Return the result of QMoE for flat tokens and router logits (``inputs``)."""
    up, down, gate, up_bias, down_bias = node.operands[3:8]
    forms = expert_forms(node)
    assert up is not None
    assert down is not None
    assert forms is not None
    first = w.blocks(up) if gate is None else interleave(gate, up)
    second = w.blocks(down)
    asym = forms[0].type.asym
    return w.op(
        "QMoE",
        *inputs,
        w.tensor(first["codes"]),
        w.tensor(first["scale"]),
        w.get(up_bias),
        w.tensor(second["codes"]),
        w.tensor(second["scale"]),
        w.get(down_bias),
        None,
        None,
        None,
        w.tensor(first["zero"]) if asym else None,
        w.tensor(second["zero"]) if asym else None,
        domain=MICROSOFT,
        k=int(str(node.operands[1].type.shape[2])),  # type: ignore[union-attr]
        activation_type=kind,
        normalize_routing_weights=0,
        expert_weight_bits=forms[0].bits,
        block_size=forms[0].block,
        accuracy_level=0 if attrs_of(node)["act"] == "none" else 4,
        **({} if gate is None else swiglu(node)),
    )
