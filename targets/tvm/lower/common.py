"""What lowerings share: attributes, rounding of activations, views of four dims."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Node, Value
from omnic.ir.op import find_op
from omnic.ir.ops.linear import activation_group
from omnic.targets.tvm.plan import Planner
from omnic.targets.tvm.text import dim
from omnic.targets.tvm.views import View

__all__ = ["ACTIVATIONS", "act_of", "attrs_of", "heads_view", "operand", "vector", "with_heads"]

ACTIVATIONS = {
    "silu": "OMNIC_SILU", "gelu": "OMNIC_GELU", "gelu_tanh": "OMNIC_GELU_TANH", "relu": "OMNIC_RELU",
    "relu2": "OMNIC_RELU2",
}


def attrs_of(node: Node) -> dict[str, Any]:
    """Return every attribute of a node, defaults filled in."""
    return dict(find_op(node.op).bind(node.attrs))


def operand(node: Node, at: int) -> Value:
    """Return an operand that is always there."""
    found = node.operands[at]
    assert found is not None
    return found


def act_of(act: str) -> str:
    """Return the two arguments that say how activations are rounded: kind and group."""
    if act == "bf16":
        return "OMNIC_ACT_BF16, 0"
    group = activation_group(act)
    if group is None:
        return "OMNIC_ACT_F32, 0"
    return f"OMNIC_ACT_I8_GROUP, {group}" if group else "OMNIC_ACT_I8_ROW, 0"


def vector(p: Planner, value: Value | None) -> str:
    """Return the address of a weight of plain numbers, NULL where there is none."""
    return "NULL" if value is None else p.matrices.vector(value)


def with_heads(view: View) -> View:
    """Return a view [B, T, D] as [B, 1, T, D], one of four dims as it is."""
    if len(view.shape) == 4:
        return view
    batch, count, width = view.shape
    return View(view.buffer, (batch, 1, count, width), (view.strides[0], 0, *view.strides[1:]), view.offset)


def heads_view(name: str, view: View) -> str:
    """Return the C literal of a view [B, H, T, D] whose address is ``$name``."""
    return f"(omnic_view){{${name}, {', '.join(dim(s) for s in view.strides[:3])}}}"
