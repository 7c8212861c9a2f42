"""Norms, rotary positions and activations."""

from __future__ import annotations

from omnic.ir.rope import rope_frequencies
from omnic.targets.tvm.lower.common import ACTIVATIONS, attrs_of, heads_view, operand, vector, with_heads
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.text import dim, f32, f64, wrapped
from omnic.targets.tvm.views import Rows, View

__all__ = ["LOWERINGS"]


def _norm_rows(p: Planner, turn: Turn) -> tuple[Rows, Rows]:
    """Return what a norm over the last dim reads and writes; heads may lie behind tokens, for rows have no order."""
    node = turn.nodes[0]
    value = operand(node, 0)
    for order in ((0, 1, 2, 3), (0, 2, 1, 3)) if value.type.rank == 4 else ():
        x, y = p.view(value).transpose(order).rows(), p.destinations.get(node.result)
        if x is not None and y is None:
            y = p.out(node.result, order).transpose(order)
            rows = y.rows()
            assert rows is not None
            return x, rows
    return p.rows(value), p.out_rows(node.result)


def _rms_norm(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x, y = _norm_rows(p, turn)
    p.step(
        f"K->rms_norm(&c, $x, {dim(x.count)}, {dim(x.stride)}, {dim(x.width)}, {vector(p, node.operands[1])}, "
        f"{f32(attrs_of(node)['eps'])}, $y, {dim(y.stride)});",
        x=x.view, y=y.view,
    )


def _layer_norm(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x, y = _norm_rows(p, turn)
    p.step(
        f"K->layer_norm(&c, $x, {dim(x.count)}, {dim(x.stride)}, {dim(x.width)}, {vector(p, node.operands[1])}, "
        f"{vector(p, node.operands[2])}, {f32(attrs_of(node)['eps'])}, $y, {dim(y.stride)});",
        x=x.view, y=y.view,
    )


def _rope(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    rotated, interleaved = attrs["dims"], attrs.pop("interleaved")
    frequencies, magnitude = rope_frequencies(**attrs)
    name = p.table("freq", wrapped([f64(v) for v in frequencies]), len(frequencies))
    value = operand(node, 0)
    x = with_heads(p.view(value))
    if x.strides[-1] != 1:
        x = with_heads(p.dense(value))
    if node.result not in p.destinations and p.dies(value) and x.buffer is p.view(value).buffer:
        p.views[node.result] = p.view(value)
        y = x
    else:
        order = (0, 2, 1, 3) if node.result.type.rank == 4 else None
        y = with_heads(p.out(node.result, order))
    batch, heads, tokens, width = x.shape
    p.step(
        f"K->rope(&c, {dim(batch)}, {dim(heads)}, {dim(tokens)}, {dim(width)}, {rotated}, {name}, {f64(magnitude)}, "
        f"{int(interleaved)}, $positions, {heads_view('x', x)}, {heads_view('y', y)});",
        positions=p.dense(operand(node, 1)), x=x, y=y,
    )


def _act(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x, y = p.dense(operand(node, 0)), p.out_over(node.result, operand(node, 0))
    p.step(f"K->act(&c, {ACTIVATIONS[attrs_of(node)['kind']]}, $x, {dim(node.result.type.size)}, $y);", x=x, y=y)


def _gated_act(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    kind = ACTIVATIONS[attrs_of(node)["kind"]]
    gate, up = operand(node, 0), operand(node, 1)
    views = p.view(gate), p.view(up)
    if all(v.contiguous for v in views):
        y = p.out_over(node.result, gate, up)
        text = f"K->gated_act(&c, {kind}, $gate, $up, {dim(node.result.type.size)}, $y);"
        p.step(text, gate=views[0], up=views[1], y=y)
        return
    rows, beside, out = p.rows(gate), p.rows(up), p.out_rows(node.result)
    p.step(
        f"for (int64_t i = 0; i < {dim(out.count)}; i++)\n  K->gated_act(&c, {kind}, $gate + i * {dim(rows.stride)}, "
        f"$up + i * {dim(beside.stride)}, {dim(out.width)}, $y + i * {dim(out.stride)});",
        gate=rows.view, up=beside.view, y=out.view,
    )


def _add(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    a, b = p.dense(operand(node, 0)), p.dense(operand(node, 1))
    y = p.out_over(node.result, *node.inputs())
    p.step(f"K->add(&c, $a, $b, {dim(node.result.type.size)}, $y);", a=a, b=b, y=y)


def _softmax(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x, y = p.dense(operand(node, 0)), p.out_dense(node.result)
    width = node.result.type.shape[-1]
    count = _rows(y)
    p.step(f"K->softmax(&c, $x, {count}, {dim(width)}, $y);", x=x, y=y)


def _rows(view: View) -> str:
    rows = view.rows()
    assert rows is not None
    return dim(rows.count)


LOWERINGS: dict[str, Lowering] = {
    "rms_norm": _rms_norm, "layer_norm": _layer_norm, "rope": _rope, "act": _act, "gated_act": _gated_act, "add": _add,
    "softmax": _softmax,
}
