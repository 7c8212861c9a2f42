"""Lowerings of ops that move elements: reshapes, slices, joins, and constants of a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from omnic.ir.dims import Dim, Expr, product, symbols
from omnic.ir.graph import Recipe, Value
from omnic.ir.types import DType
from omnic.models.onnx.converter import Converter, Refusal
from omnic.models.onnx.kinds import Causal, Flow, Known, Past, Sizes, Stored, Tensor, Uniform
from omnic.models.onnx.lower.elementwise import Lowering
from omnic.models.onnx.node import OnnxNode
from omnic.models.onnx.symbolic import divided

__all__ = ["SHAPES", "cut", "transposed"]


def _relaid(c: Converter, x: Tensor, shape: Sequence[Dim]) -> Tensor:
    """Return ``x`` under another shape of the same size."""
    wanted = tuple(shape)
    if tuple(x.shape) == wanted:
        return x
    if isinstance(x, Stored):
        fixed = tuple(d for d in wanted if isinstance(d, int))
        return Stored(Recipe("reshape", {"shape": fixed}, (x.recipe,)), fixed, x.dtype, x.label)
    if isinstance(x, Known):
        return Known(x.array.reshape([int(d) for d in wanted if isinstance(d, int)]), x.dtype)
    if isinstance(x, Sizes):
        return Sizes(x.dims.reshape([int(d) for d in wanted if isinstance(d, int)]), x.dtype)
    if isinstance(x, Uniform):
        return Uniform(x.value, wanted, x.dtype)
    if isinstance(x, Causal) and wanted[-2:] == x.shape[-2:]:
        return Causal(x.row_start, wanted, x.flip, x.dtype)
    return c.reshape(c.emit(x), wanted)


def _reshape(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    wanted: tuple[Dim, ...] = c.sizes(node.need(1)) if node.get(1) is not None else node.ints("shape")
    out: list[Dim] = []
    open_at: int | None = None
    for index, dim in enumerate(wanted):
        if dim == 0 and not node.integer("allowzero", 0):
            dim = x.shape[index]
        if dim == -1:
            open_at, dim = index, 1
        out.append(dim)
    if open_at is not None:
        rest = divided(product(tuple(x.shape)), product(tuple(out)))
        if rest is None:
            raise Refusal(f"[{_text(x.shape)}] does not divide into [{_text(wanted)}]")
        out[open_at] = rest
    if product(tuple(out)) != product(tuple(x.shape)):
        raise Refusal(f"[{_text(x.shape)}] reshaped to [{_text(out)}] changes the number of elements")
    return _relaid(c, x, out)


def _text(dims: Sequence[Dim]) -> str:
    return ", ".join(str(d) for d in dims)


def _axes(c: Converter, node: OnnxNode) -> tuple[int, ...]:
    given = node.get(1)
    return node.ints("axes") if given is None else tuple(int(a) for a in c.sizes(given) if isinstance(a, int))


def _unsqueeze(c: Converter, node: OnnxNode) -> Tensor:
    x, axes = node.need(0), _axes(c, node)
    rank = len(x.shape) + len(axes)
    at = {a % rank for a in axes}
    rest = iter(x.shape)
    return _relaid(c, x, [1 if i in at else next(rest) for i in range(rank)])


def _squeeze(c: Converter, node: OnnxNode) -> Tensor:
    x, axes = node.need(0), _axes(c, node)
    at = {a % len(x.shape) for a in axes} or {i for i, d in enumerate(x.shape) if d == 1}
    return _relaid(c, x, [d for i, d in enumerate(x.shape) if i not in at])


def _flatten(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    axis = node.integer("axis", 1) % (len(x.shape) + 1)
    return _relaid(c, x, [product(tuple(x.shape[:axis])), product(tuple(x.shape[axis:]))])


def _transpose(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    perm = node.ints("perm") or tuple(reversed(range(len(x.shape))))
    if isinstance(x, Stored):
        return transposed(x, perm)
    if isinstance(x, Known):
        return Known(x.array.transpose(perm), x.dtype)
    if isinstance(x, Uniform):
        return Uniform(x.value, tuple(x.shape[p] for p in perm), x.dtype)
    return c.transpose(c.emit(x), perm)


def transposed(x: Stored, perm: Sequence[int]) -> Stored:
    """Return a weight with its dims in another order; two transposes in a row cancel."""
    shape = tuple(x.shape[p] for p in perm)
    inner = x.recipe
    if inner.kind == "transpose":
        before = cast("tuple[int, ...]", inner.args["perm"])
        joined = tuple(before[p] for p in perm)
        recipe = inner.inputs[0]
        if joined != tuple(range(len(joined))):
            recipe = Recipe("transpose", {"perm": joined}, (recipe,))
        return Stored(recipe, shape, x.dtype, x.label)
    return Stored(Recipe("transpose", {"perm": tuple(perm)}, (inner,)), shape, x.dtype, x.label)


def _expand(c: Converter, node: OnnxNode) -> Tensor:
    x, wanted = node.need(0), c.sizes(node.need(1))
    rank = max(len(wanted), len(x.shape))
    have = (*[1] * (rank - len(x.shape)), *x.shape)
    want = (*[1] * (rank - len(wanted)), *wanted)
    out: list[Dim] = []
    for a, b in zip(have, want, strict=True):
        if a != b and a != 1 and b != 1:
            raise Refusal(f"[{_text(x.shape)}] does not expand to [{_text(wanted)}]")
        out.append(b if a == 1 else a)
    if tuple(out) == tuple(x.shape):
        return x
    if isinstance(x, Uniform):
        return Uniform(x.value, tuple(out), x.dtype)
    scalar = c.scalar(x)
    if scalar is not None and not isinstance(x, Stored):
        return Uniform(scalar, tuple(out), x.dtype)
    if isinstance(x, Causal) and tuple(out[-2:]) == tuple(x.shape[-2:]):
        return Causal(x.row_start, tuple(out), x.flip, x.dtype)
    return c.broadcast(c.emit(x), out)


def _constant_of_shape(c: Converter, node: OnnxNode) -> Tensor:
    held = node.tensor("value")
    value, dtype = (held[0].reshape(-1)[0].item(), held[1]) if held else (0.0, DType.F32)
    return Uniform(value, c.sizes(node.need(0)), dtype)


def _trilu(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    given = node.get(1)
    offset = c.sizes(given)[0] if given is not None else 0
    value = c.scalar(x)
    if value is None or len(x.shape) < 2:
        raise Refusal("a triangle of something other than one number")
    if node.integer("upper", 1):
        kept: Tensor = Causal(offset - 1, tuple(x.shape), flip=True)  # column > row + offset - 1
    else:
        kept = Causal(offset, tuple(x.shape))
    if value == 1 or value is True:
        assert isinstance(kept, Causal)
        return Causal(kept.row_start, kept.shape, kept.flip, x.dtype)
    zero = Flow(c.constant(np.asarray(0), x.dtype))
    inside = Flow(c.constant(np.asarray(value), x.dtype))
    values, lifted = c.aligned(c.emit(kept), inside, zero)
    return Flow(c.f.op("where", *values), lifted)


def _range(c: Converter, node: OnnxNode) -> Tensor:
    first, last, step = (c.sizes(node.need(i))[0] for i in range(3))
    if not isinstance(step, int) or step < 1:
        raise Refusal(f"a range in steps of {step}")
    count = last - first if step == 1 else None
    if count is None:
        raise Refusal(f"a range over {last - first} in steps of {step}")
    return c.range_from(first, count) if node.need(0).dtype == DType.I64 else c.cast(
        c.range_from(first, count), node.need(0).dtype)


# -- joining and cutting ----------------------------------------------------------------------------------
def _concat(c: Converter, node: OnnxNode) -> Tensor:
    parts = [t for t in node.inputs if t is not None and 0 not in t.shape]
    if len(parts) == 1:
        return parts[0]
    axis = node.integer("axis") % len(parts[0].shape)
    if isinstance(parts[0], Past):
        past = parts[0]
        if len(parts) != 2 or axis != past.axis:
            raise Refusal(f"the cache {past.name} is joined with more than the new tokens of a call")
        return c.append(past, c.emit(parts[1]))
    if any(isinstance(p, Past) for p in parts):
        raise Refusal("new tokens stand before the cache")
    if all(isinstance(p, Stored) for p in parts):
        stored = [p for p in parts if isinstance(p, Stored)]
        total = sum(p.shape[axis] for p in stored)
        first = stored[0]
        shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
        recipe = Recipe("concat", {"axis": axis}, tuple(p.recipe for p in stored))
        return Stored(recipe, shape, first.dtype, first.label)
    if all(isinstance(p, Uniform) for p in parts) and len({p.value for p in parts if isinstance(p, Uniform)}) == 1:
        length: Dim = 0
        for part in parts:
            length = length + part.shape[axis]
        shape_: tuple[Dim, ...] = (*parts[0].shape[:axis], length, *parts[0].shape[axis + 1 :])
        first_ = parts[0]
        assert isinstance(first_, Uniform)
        return Uniform(first_.value, shape_, first_.dtype)
    values, lifted = c.joinable([c.emit(p) for p in parts])
    return Flow(c.f.op("concat", *values, axis=axis + lifted), lifted)


def _split(c: Converter, node: OnnxNode) -> tuple[Tensor, ...]:
    x = node.need(0)
    axis = node.integer("axis", 0) % len(x.shape)
    given = node.get(1)
    if given is not None:
        sizes = c.sizes(given)
    elif node.has("split"):
        sizes = node.ints("split")
    else:
        count = node.integer("num_outputs", node.outputs)
        size = x.shape[axis]
        if not isinstance(size, int):
            raise Refusal(f"the dim {size} in {count} pieces")
        step = -(-size // count)
        sizes = tuple(min(step, size - step * i) for i in range(count))
    if isinstance(x, (Stored, Uniform, Known)):
        first: Dim = 0
        out: list[Tensor] = []
        for size in sizes:
            out.append(cut(c, x, axis, first, first + size))
            first = first + size
        return tuple(out)
    flow = c.emit(x)
    return tuple(Flow(v, flow.lifted) for v in c.f.emit("split", flow.value, axis=axis + flow.lifted, sizes=sizes))


def _slice(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    if node.get(1) is None:
        starts: Sequence[Dim] = node.ints("starts")
        ends: Sequence[Dim] = node.ints("ends")
        axes, steps = node.ints("axes"), (1,) * len(starts)
    else:
        starts, ends = c.sizes(node.need(1)), c.sizes(node.need(2))
        axes = tuple(int(a) for a in c.sizes(node.need(3)) if isinstance(a, int)) if node.get(3) is not None else ()
        steps = c.sizes(node.need(4)) if node.get(4) is not None else (1,) * len(starts)
    axes = axes or tuple(range(len(starts)))
    for first, last, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis % len(x.shape)
        size = x.shape[at]
        if step != 1:
            x = _every(c, x, at, first, _bound(last, size), step)
            continue
        x = cut(c, x, at, _bound(first, size), _bound(last, size))
    return x


def _every(c: Converter, x: Tensor, axis: int, first: Dim, last: Dim, step: Dim) -> Tensor:
    """Return x[first::step] along ``axis``, where steps divide the dim: one column of the dim as a table."""
    size = x.shape[axis]
    count = divided(size, step) if isinstance(step, int) and step > 1 else None
    if count is None or last != size or first not in range(int(str(step))):
        raise Refusal(f"a slice {first}..{last} in steps of {step}")
    table = _relaid(c, x, (*x.shape[:axis], count, step, *x.shape[axis + 1 :]))
    column = cut(c, table, axis + 1, first, first + 1)
    return _relaid(c, column, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def _bound(bound: Dim, size: Dim) -> Dim:
    """Return a slice's bound counted from the front and inside 0..size."""
    if isinstance(bound, int):
        if bound < 0:
            inside = size + bound
            return max(inside, 0) if isinstance(inside, int) else inside
        return size if bound >= 2**31 - 1 else min(bound, size) if isinstance(size, int) else bound
    return bound


def cut(c: Converter, x: Tensor, axis: int, first: Dim, last: Dim) -> Tensor:
    """Return x[first:last] along ``axis``.  A start that holds the past is looked up row by row."""
    size = x.shape[axis]
    if first == 0 and last == size:
        return x
    shape = (*x.shape[:axis], last - first, *x.shape[axis + 1 :])
    if isinstance(x, Uniform):
        return Uniform(x.value, shape, x.dtype)
    if isinstance(x, Causal) and axis >= len(x.shape) - 2:
        c.table_needs(size, last)
        if axis == len(x.shape) - 2:
            return Causal(x.row_start + first, shape, x.flip, x.dtype)
        return Causal(x.row_start - first, shape, x.flip, x.dtype)
    moving = isinstance(first, Expr) and "S" in symbols(first)
    if moving:
        c.table_needs(size, last)
        return c.pick(c.emit(x), axis, c.range_from(first, last - first))
    if isinstance(x, Past):
        raise Refusal(f"only a part of the cache {x.name} is read")
    if isinstance(first, int) and isinstance(last, int):
        if isinstance(x, Known):
            return Known(np.take(x.array, np.arange(first, max(last, first)), axis=axis), x.dtype)
        if isinstance(x, Stored) and last > first:
            recipe = Recipe("slice", {"axis": axis, "start": first, "stop": last}, (x.recipe,))
            return Stored(recipe, tuple(int(d) for d in shape if isinstance(d, int)), x.dtype, x.label)
    c.table_needs(size, last)
    flow = c.emit(x)
    inside = _pieces(c, flow, axis + flow.lifted, first, last)
    if inside is not None:
        return inside
    return Flow(c.f.op("slice", flow.value, axis=axis + flow.lifted, start=(first,), stop=(last,)), flow.lifted)


def _pieces(c: Converter, flow: Flow, axis: int, first: Dim, last: Dim) -> Flow | None:
    """Return the operands of a concat that a slice of it consists of, when it cuts through none."""
    made = c.made_by(flow.value)
    if made is None or made.op != "concat" or made.attrs["axis"] != axis:
        return None
    at: Dim = 0
    kept: list[Value] = []
    edges: list[Dim] = [0]
    for operand in made.operands:
        assert operand is not None
        size = operand.type.shape[axis]
        end = at + size
        if isinstance(first, int) and isinstance(last, int) and isinstance(at, int) and isinstance(end, int):
            kept += [operand] if first <= at and end <= last else []
        at = end
        edges.append(at)
    if first not in edges or last not in edges or not kept:
        return None
    return Flow(kept[0] if len(kept) == 1 else c.f.op("concat", *kept, axis=axis), flow.lifted)


def _tile(c: Converter, node: OnnxNode) -> Tensor:
    x, repeats = node.need(0), c.sizes(node.need(1))
    if isinstance(x, Uniform):
        return Uniform(x.value, tuple(d * r for d, r in zip(x.shape, repeats, strict=True)), x.dtype)
    flow = c.emit(x)
    for axis, count in enumerate(repeats):
        if count == 1:
            continue
        if not isinstance(count, int) and flow.shape[axis] != 1:
            raise Refusal(f"repeated {count} times")
        shape = flow.shape
        wide = c.reshape(flow, (*shape[:axis], 1, *shape[axis:]))
        wide = c.broadcast(wide, (*shape[:axis], count, *shape[axis:]))
        flow = c.reshape(wide, (*shape[:axis], shape[axis] * count, *shape[axis + 1 :]))
    return flow


def _pad(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    if node.text("mode", "constant") != "constant":
        raise Refusal(f"padding by {node.text('mode', 'constant')}")
    rank = len(x.shape)
    pads: Sequence[Dim] = c.sizes(node.need(1)) if node.get(1) is not None else node.ints("pads")
    given = node.get(2)
    value = c.scalar(given) if given is not None else 0.0
    axes_given = node.get(3)
    axes = tuple(int(a) % rank for a in c.sizes(axes_given) if isinstance(a, int)) if axes_given else tuple(range(rank))
    flow = c.emit(x)
    for index, axis in enumerate(axes):
        before, after = pads[index], pads[index + len(axes)]
        if before == 0 and after == 0:
            continue
        if not isinstance(before, int) or not isinstance(after, int) or value is None:
            raise Refusal("padding that depends on the sizes of the inputs")
        if before < 0 or after < 0:
            flow = c.emit(cut(c, flow, axis, max(-before, 0), flow.shape[axis] - max(-after, 0)))
            before, after = max(before, 0), max(after, 0)
        if before or after:
            flow = c.unary("pad", flow, axis=axis + flow.lifted, before=before, after=after, value=float(value))
    return flow


SHAPES: dict[str, Lowering] = {
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Trilu": _trilu,
    "Range": _range,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Tile": _tile,
    "Pad": _pad,
}
