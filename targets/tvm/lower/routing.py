"""Routers and top-k."""

from __future__ import annotations

from omnic.ir.graph import Value
from omnic.ir.types import DType
from omnic.targets.tvm.lower.common import attrs_of, operand, vector
from omnic.targets.tvm.lower.products import product
from omnic.targets.tvm.plan import Lowering, Planner, refuse
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.text import dim, f32
from omnic.targets.tvm.views import Rows, View

__all__ = ["LOWERINGS"]


def _rows(view: View) -> Rows:
    found = view.rows()
    assert found is not None
    return found


def _router(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    x = p.rows(operand(node, 0))
    experts = node.results[2].type.shape[-1]
    indices, gates, logits = (p.out_dense(v) for v in node.results)
    product(p, x, operand(node, 1), vector(p, node.operands[4]), _rows(logits))
    top, count = attrs["top_k"], dim(x.count)
    plain = node.operands[3] is None and attrs["groups"] is None and attrs["score"] == "softmax"
    if plain and attrs["renormalise"] and attrs["scale"] == 1.0:
        values = p.new(gates.shape, gates.dtype, f"{node.results[1].name}_logits")
        p.step(f"K->topk(&c, $x, {count}, {dim(experts)}, {top}, $values, $indices);", x=logits, values=values,
               indices=indices)
        p.step(f"K->softmax(&c, $x, {count}, {top}, $y);", x=values, y=gates)
        return
    views = {"logits": logits, "indices": indices, "gates": gates}
    groups = attrs["groups"] or ()
    by_group = "NULL"
    group_gate = node.operands[2]
    if group_gate is not None:
        shape = (*logits.shape[:-1], len(groups))
        views["group_logits"] = p.new(shape, logits.dtype, f"{node.results[2].name}_groups")
        product(p, x, group_gate, "NULL", _rows(views["group_logits"]))
        by_group = "$group_logits"
    sizes = f"(const int64_t[]){{{', '.join(str(g) for g in groups)}}}" if groups else "NULL"
    form = (
        f"&(omnic_router){{.experts = {dim(experts)}, .top = {top}, .groups = {len(groups)}, .sizes = {sizes}, "
        f".top_groups = {attrs['top_groups']}, .top2_sum = {int(attrs['group_score'] == 'top2_sum')}, "
        f".sigmoid = {int(attrs['score'] == 'sigmoid')}, .renormalise = {int(attrs['renormalise'])}, "
        f".scale = {f32(attrs['scale'])}}}"
    )
    p.step(
        f"omnic_route(K, &c, {form}, {count}, $logits, {by_group}, {vector(p, node.operands[3])}, $indices, $gates);",
        f"omnic_scratch_route({form}, threads)",
        **views,
    )


def _topk(p: Planner, turn: Turn) -> None:
    """The k largest of the last dim of f32 numbers; else the first k of them in order."""
    node = turn.nodes[0]
    source, attrs = operand(node, 0), attrs_of(node)
    axis, rank = attrs["axis"] % source.type.rank, source.type.rank
    if axis != rank - 1 or not source.type.is_float:
        for value, view in zip(node.results, sorted_views(p, source, axis, True), strict=True):
            p.views[value] = view.slice(axis, 0, attrs["k"])
        return
    x = p.dense(source)
    values, indices = (p.out_dense(v) for v in node.results)
    rows = _rows(x)
    p.step(f"K->topk(&c, $x, {dim(rows.count)}, {dim(rows.width)}, {attrs_of(node)['k']}, $values, $indices);", x=x,
           values=values, indices=indices)


def sorted_views(p: Planner, source: Value, axis: int, descending: bool) -> tuple[View, View]:
    """Append a stable sort along a dim and return the numbers and their indices."""
    x = p.view(source)
    rank = len(x.shape)
    order = [i for i in range(rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank)]
    dense = p.dense_view(x.transpose(order))
    values = p.new(dense.shape, dense.dtype, f"{source.name}_sorted")
    indices = p.new(dense.shape, DType.I64, f"{source.name}_order")
    rows = _rows(dense)
    work = p.new((rows.width,), DType.I64, "sort_work")
    p.step(
        f"omnic_sort({dim(rows.count)}, {dim(rows.width)}, {int(dense.dtype is DType.F32)}, {int(descending)}, $x, "
        "$work, $values, $indices);",
        x=dense, work=work, values=values, indices=indices,
    )
    return values.transpose(back), indices.transpose(back)


def _sort(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    source, attrs = operand(node, 0), attrs_of(node)
    if source.type.dtype not in (DType.F32, DType.F16, DType.BF16, DType.I64):
        raise refuse(node, f"sorting {source.type.dtype}", "cast to i64 first")
    views = sorted_views(p, source, attrs["axis"] % source.type.rank, attrs["descending"])
    p.views.update(zip(node.results, views, strict=True))


LOWERINGS: dict[str, Lowering] = {"router": _router, "topk": _topk, "sort": _sort}
