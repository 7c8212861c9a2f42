"""Ops that no kernel computes: elementwise ones wait to be fused, others are loops of their own."""

from __future__ import annotations

from omnic.ir.graph import Node, Value
from omnic.ir.types import DType
from omnic.targets.tvm.lower.common import attrs_of, operand
from omnic.targets.tvm.plan import Lowering, Planner, held, refuse
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.tail.loops import ELEMENTWISE, Apply, Leaf
from omnic.targets.tvm.text import dim

__all__ = ["LOWERINGS"]


def _apply(p: Planner, node: Node, value: Value) -> Apply:
    args = tuple(p.expression(v) for v in node.inputs())
    return Apply(node.op, args, value.type.shape, value.type.dtype, attrs_of(node))


def _elementwise(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    p.wait(node.result, _apply(p, node, node.result))


def _constant(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    values, type = attrs_of(node)["values"], node.result.type
    if len(values) == 1:
        p.wait(node.result, Apply("constant", (), type.shape, type.dtype, attrs_of(node)))
    else:
        p.views[node.result] = p.numbers(values, type)


def _loop(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    p.loop(node.result, _apply(p, node, node.result))


def _conv(p: Planner, turn: Turn) -> None:
    """The products first; the bias of each channel is added when the sum is read."""
    node = turn.nodes[0]
    type, args = node.result.type, tuple(p.expression(v) for v in node.inputs())
    root = Apply(node.op, args[:2], type.shape, type.dtype)
    if len(args) == 2:
        p.loop(node.result, root)
        return
    made = p.new(type.shape, DType.F32, f"{node.result.name}_sum")
    p.loop_into(made, root)
    p.wait(node.result, Apply("add", (Leaf(made), args[2]), type.shape, type.dtype))


def _mean(p: Planner, turn: Turn) -> None:
    """A sum of f32, and a division by how many there were."""
    node = turn.nodes[0]
    attrs, x = attrs_of(node), operand(node, 0)
    count = 1
    for axis in attrs["axes"]:
        size = x.type.shape[axis]
        if not isinstance(size, int):
            raise refuse(node, f"a mean over {size}, which depends on the call", "use a sum and a product")
        count *= size
    type = node.result.type
    total = p.new(type.shape, DType.F32, f"{node.result.name}_sum")
    p.loop_into(total, Apply("sum", (p.expression(x),), type.shape, type.dtype, attrs))
    divisor = Apply("constant", (), (), type.dtype, {"values": (float(count),)})
    p.wait(node.result, Apply("div", (Leaf(total), divisor), type.shape, type.dtype))


def _argmax(p: Planner, turn: Turn) -> None:
    """The peak first, then the least index of an element that reaches it."""
    node = turn.nodes[0]
    attrs, x = attrs_of(node), operand(node, 0)
    axis = attrs["axis"] % x.type.rank
    shape = (*x.type.shape[:axis], 1, *x.type.shape[axis + 1 :])
    peak = p.new(shape, held(x.type.dtype), f"{node.result.name}_peak")
    source = Leaf(p.view(x))
    p.loop_into(peak, Apply("max", (source,), shape, x.type.dtype, {"axes": (axis,), "keepdims": True}))
    p.loop(node.result, Apply("argmax", (source, Leaf(peak)), node.result.type.shape, DType.I64, attrs))


def _softmax(p: Planner, turn: Turn) -> None:
    """Along another dim than the last: that dim is brought there and back."""
    node = turn.nodes[0]
    x = p.view(operand(node, 0))
    axis, rank = attrs_of(node)["axis"] % len(x.shape), len(x.shape)
    order = [i for i in range(rank) if i != axis] + [axis]
    turned = x.transpose(order)
    source = p.dense_view(turned)
    made = p.new(turned.shape, DType.F32, node.result.name)
    rows = made.rows()
    assert rows is not None
    p.step(f"K->softmax(&c, $x, {dim(rows.count)}, {dim(rows.width)}, $y);", x=source, y=made)
    p.views[node.result] = made.transpose([order.index(i) for i in range(rank)])


def _cache_read(p: Planner, turn: Turn) -> None:
    """Every slot of a state as f32 numbers, and the index of the token in it."""
    node = turn.nodes[0]
    state, start, length = (operand(node, at) for at in range(3))
    name = p.state(p.state_of(state))
    y, index = (p.out_dense(v) for v in node.results)
    batch = dim(y.shape[0])
    p.step(f"omnic_cache_dense({name}, {batch}, $y);", y=y)
    p.step(f"omnic_cache_index({name}, {batch}, $start, $length, $index);", start=p.dense(start),
           length=p.dense(length), index=index)


def _scatter(p: Planner, turn: Turn) -> None:
    """A copy of x with the updates put or added one by one, in order."""
    node = turn.nodes[0]
    x, index, updates = (operand(node, at) for at in range(3))
    attrs = attrs_of(node)
    axis, rank = attrs["axis"] % x.type.rank, x.type.rank
    if x.type.dtype not in (DType.F32, DType.F16, DType.BF16, DType.I64):
        raise refuse(node, f"a scatter into {x.type.dtype}", "cast to i64 first")
    y = p.out_dense(node.result)
    p.copy(p.view(x), y)
    shape = [index.type.shape[d] if d == axis else x.type.shape[d] for d in range(rank)]
    which, values = p.view(index).broadcast(shape), p.view(updates).broadcast(shape)
    lists = [f"(const int64_t[]){{{', '.join(dim(d) for d in dims)}}}" for dims in
             (shape, which.strides, values.strides, y.strides)]
    kind = 2 * int(y.dtype is DType.F32) + int(attrs["reduce"] == "add")
    p.step(f"omnic_scatter({rank}, {lists[0]}, {axis}, {kind}, $which, {lists[1]}, $values, {lists[2]}, $y, "
           f"{lists[3]});", which=which, values=values, y=y)


def _dequantise(p: Planner, turn: Turn) -> None:
    """A weight of codes lies in the file as f32 for whoever reads it so."""
    node = turn.nodes[0]
    source, type = operand(node, 0), node.result.type
    if not source.weight:
        raise refuse(node, "only weights are stored as codes, not what is computed between them")
    if type.element is DType.F32:
        p.views[node.result] = p.view(source)
    else:
        p.wait(node.result, Apply("cast", (Leaf(p.view(source)),), type.shape, type.dtype))


LOWERINGS: dict[str, Lowering] = {
    **{op: _elementwise for op in ELEMENTWISE},
    **{op: _loop for op in ("sum", "max", "cumsum", "matmul", "gather", "index_select", "pad", "iota")},
    "depthwise_conv1d": _conv,
    "constant": _constant,
    "scatter": _scatter,
    "dequantise": _dequantise,
    "mean": _mean,
    "argmax": _argmax,
    "softmax": _softmax,
    "cache_read": _cache_read,
}
