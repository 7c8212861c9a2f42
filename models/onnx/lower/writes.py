"""Lowerings of writes into a part of a tensor, which exporters make of assignments to slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.graph import Value
from omnic.models.onnx.converter import Converter, Refusal
from omnic.models.onnx.kinds import Flow, Tensor
from omnic.models.onnx.lower.elementwise import Lowering
from omnic.models.onnx.lower.shapes import cut
from omnic.models.onnx.node import OnnxNode

__all__ = ["WRITES"]

Span = tuple[Dim, Dim]


def _scatter_nd(c: Converter, node: OnnxNode) -> Tensor:
    """A write of whole slices first..last along one dim: what is before, the new part, what is after."""
    data, index, updates = node.need(0), node.need(1), node.need(2)
    depth = index.shape[-1]
    if node.text("reduction", "none") != "none" or not isinstance(depth, int):
        raise Refusal("a scatter that reduces")
    spans = _spans(c, index, depth)
    partial = [axis for axis, span in enumerate(spans) if span != (0, data.shape[axis])]
    if len(partial) > 1:
        raise Refusal("a write that covers only a part of several dims")
    if not partial:
        return updates
    axis = partial[0]
    first, last = spans[axis]
    parts: list[Tensor] = []
    if first != 0:
        parts.append(cut(c, data, axis, 0, first))
    parts.append(updates)
    if last != data.shape[axis]:
        parts.append(cut(c, data, axis, last, data.shape[axis]))
    values, lifted = c.joinable([c.emit(p) for p in parts])
    return Flow(c.f.op("concat", *values, axis=axis + lifted), lifted)


def _spans(c: Converter, index: Tensor, depth: int) -> list[Span]:
    """Return the range of places along each of the first ``depth`` dims that an index [..., depth] covers.

    Raises:
        Refusal: it is not the grid of such ranges.
    """
    array = c.numbers(index) if not isinstance(index, Flow) else None
    if array is not None:
        if array.ndim != depth + 1:
            raise Refusal("a write to places that are no grid")
        spans: list[Span] = []
        for axis in range(depth):
            line = np.moveaxis(array[..., axis], axis, 0)
            first = int(line.flat[0])
            steps = (first + np.arange(len(line))).reshape(-1, *[1] * (line.ndim - 1))
            if not np.array_equal(line, np.broadcast_to(steps, line.shape)):
                raise Refusal("a write to places that are not consecutive")
            spans.append((first, first + len(line)))
        return spans
    flow = c.emit(index)
    made = c.made_by(flow.value)
    parts = made.operands if made is not None and made.op == "concat" else (flow.value,)
    if flow.lifted or len(flow.shape) != depth + 1 or len(parts) != depth:
        raise Refusal("a write to places that depend on more than sizes")
    return [_line(c, part, axis, flow.shape) for axis, part in enumerate(parts) if part is not None]


def _line(c: Converter, value: Value, axis: int, shape: Sequence[Dim]) -> Span:
    """Return the range that a part of a grid runs through along ``axis``."""
    wide: tuple[Dim, ...] | None = None
    made = c.made_by(value)
    while made is not None and made.op in ("reshape", "broadcast") and made.operands[0] is not None:
        value = made.operands[0]
        if made.op == "broadcast":
            wide = value.type.shape
        made = c.made_by(value)
    count = shape[axis]
    if wide is not None:
        wide = (*[1] * (len(shape) - 1 - len(wide)), *wide)
    if made is None or value.type.size != count or (wide is not None and wide[axis] != count):
        raise Refusal("a write to places that are no grid")
    if made.op == "iota":
        return 0, count
    if made.op == "slice" and (inner := made.operands[0]) is not None:
        base = c.made_by(inner)
        start = made.attrs["start"]
        if base is not None and base.op == "iota" and isinstance(start, tuple) and isinstance(start[0], int):
            return start[0], start[0] + count
    if made.op == "constant":
        numbers = made.attrs["values"]
        if isinstance(numbers, tuple) and isinstance(count, int):
            held = [int(n) for n in numbers if isinstance(n, (int, float))]
            if held == list(range(held[0], held[0] + count)):
                return held[0], held[0] + count
    raise Refusal("a write to places that are not consecutive")


WRITES: dict[str, Lowering] = {"ScatterND": _scatter_nd}
