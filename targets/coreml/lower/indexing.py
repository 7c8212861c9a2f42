"""Ops that read or write at computed places, and the ones that order elements."""

from __future__ import annotations

from omnic.ir.graph import Node
from omnic.targets.coreml.lower.core import Lowering
from omnic.targets.coreml.writer import MilWriter, attrs_of, refuse, word_of

__all__ = ["TABLE"]


def _gather(w: MilWriter, node: Node) -> None:
    """gather_along_axis wants equal dims beside the axis; dims of 1 are repeated."""
    x, index = node.operands
    assert x is not None and index is not None
    axis = int(attrs_of(node)["axis"]) % x.type.rank
    found, at = (w.as_float(x) if x.type.is_float else w.need(x)), w.need(index)
    same = all(i == axis or a == b for i, (a, b) in enumerate(zip(x.type.shape, index.type.shape, strict=True)))
    alone = all(i == axis or d == 1 for i, d in enumerate(index.type.shape))
    if alone and not same:
        # One index for all of the other dims: whole slices.
        flat = w.op("reshape", x=at, shape=[-1])
        w.bind(node.result, w.op("gather", x=found, indices=flat, axis=axis, validate_indices=False))
        return
    shapes = []
    for shape, other in ((x.type.shape, index.type.shape), (index.type.shape, x.type.shape)):
        shapes.append([1 if i == axis or d != 1 else o for i, (d, o) in enumerate(zip(shape, other, strict=True))])
    if any(not isinstance(r, int) for reps in shapes for r in reps):
        raise refuse(node, "it repeats to a flexible length", "compile with length=fixed")
    reps = [[int(str(r)) for r in one] for one in shapes]
    if any(r != 1 for r in reps[0]):
        found = w.op("tile", x=found, reps=reps[0])
    if any(r != 1 for r in reps[1]):
        at = w.op("tile", x=at, reps=reps[1])
    w.bind(node.result, w.op("gather_along_axis", x=found, indices=at, axis=axis, validate_indices=False))


def _index_select(w: MilWriter, node: Node) -> None:
    x, index = node.operands
    assert x is not None and index is not None
    found = w.as_float(x) if x.type.is_float else w.need(x)
    made = w.op("gather", x=found, indices=w.need(index), axis=int(attrs_of(node)["axis"]), validate_indices=False)
    w.bind(node.result, made)


def _scatter(w: MilWriter, node: Node) -> None:
    x, index, updates = node.operands
    assert x is not None and index is not None and updates is not None
    attrs = attrs_of(node)
    axis = int(attrs["axis"]) % x.type.rank
    data, new = (w.as_float(v) if v.type.is_float else w.need(v) for v in (x, updates))
    at = w.need(index)
    reps = [1 if i == axis or d != 1 else o
            for i, (d, o) in enumerate(zip(index.type.shape, updates.type.shape, strict=True))]
    if any(not isinstance(r, int) for r in reps):
        raise refuse(node, "it repeats to a flexible length", "compile with length=fixed")
    if any(r != 1 for r in reps):
        at = w.op("tile", x=at, reps=[int(str(r)) for r in reps])
    mode = "update" if attrs["reduce"] == "none" else "add"
    w.bind(node.result, w.op(
        "scatter_along_axis", data=data, indices=at, updates=new, axis=axis, mode=mode, validate_indices=False))


def _topk(w: MilWriter, node: Node) -> None:
    x, attrs = node.operands[0], attrs_of(node)
    assert x is not None
    found = w.as_float(x) if x.type.is_float else w.need(x)
    values, indices = w.op("topk", x=found, k=int(attrs["k"]), axis=int(attrs["axis"]), ascending=False, sort=True,
                           return_indices=True)
    w.bind(node.results[0], values)
    w.bind(node.results[1], indices)


def _sort(w: MilWriter, node: Node) -> None:
    x, attrs = node.operands[0], attrs_of(node)
    assert x is not None
    axis = int(attrs["axis"]) % x.type.rank
    found = w.as_float(x) if x.type.is_float else w.need(x)
    if word_of(found) == "bool":
        found = w.cast(found, "int32")
    at = w.op("argsort", x=found, axis=axis, ascending=not attrs["descending"])
    w.bind(node.results[1], at)
    w.bind(node.results[0], w.op("gather_along_axis", x=found, indices=at, axis=axis, validate_indices=False))


TABLE: dict[str, Lowering] = {
    "gather": _gather, "index_select": _index_select, "scatter": _scatter, "topk": _topk, "sort": _sort,
}
