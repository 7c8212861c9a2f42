"""Ops that change how a value is looked at: views wherever its elements can stay where they are."""

from __future__ import annotations

from omnic.errors import InternalError
from omnic.ir.dims import Dim
from omnic.targets.tvm.lower.common import attrs_of, operand
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn

__all__ = ["LOWERINGS"]


def _reshape(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    shape = node.result.type.shape
    source = operand(node, 0)
    found = p.view(source).reshape(shape) or p.dense(source).reshape(shape)
    if found is None:
        raise InternalError(f"target tvm: %{source.name} does not lie in order")
    p.views[node.result] = found


def _transpose(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    p.views[node.result] = p.view(operand(node, 0)).transpose(attrs_of(node)["perm"])


def _slice(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    start, stop = attrs["start"], attrs["stop"]
    p.views[node.result] = p.view(operand(node, 0)).slice(attrs["axis"], start[0], stop[0])


def _split(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    at: Dim = 0
    for value, size in zip(node.results, attrs["sizes"], strict=True):
        p.views[value] = p.view(operand(node, 0)).slice(attrs["axis"], at, at + size)
        at = at + size


def _broadcast(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    p.views[node.result] = p.view(operand(node, 0)).broadcast(node.result.type.shape)


def _concat(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    whole = p.destinations[node.result]
    at: Dim = 0
    axis = attrs_of(node)["axis"] % node.result.type.rank
    for piece in node.inputs():
        size = piece.type.shape[axis]
        part = whole.slice(axis, at, at + size)
        if not p.view(piece).lies_as(part):
            p.copy(p.view(piece), part)
        at = at + size
    p.views[node.result] = whole


LOWERINGS: dict[str, Lowering] = {
    "reshape": _reshape, "transpose": _transpose, "slice": _slice, "split": _split, "broadcast": _broadcast,
    "concat": _concat,
}
