"""Routers and top-k."""

from __future__ import annotations

from omnic.targets.tvm.lower.common import attrs_of, operand, vector
from omnic.targets.tvm.lower.products import product
from omnic.targets.tvm.plan import Lowering, Planner
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
    views["work"] = p.new((8 * (experts + len(groups) + top),), logits.dtype, "route_work")
    sizes = f"(const int64_t[]){{{', '.join(str(g) for g in groups)}}}" if groups else "NULL"
    p.step(
        f"omnic_route(K, &c, &(omnic_router){{.experts = {dim(experts)}, .top = {top}, .groups = {len(groups)}, "
        f".sizes = {sizes}, .top_groups = {attrs['top_groups']}, .top2_sum = {int(attrs['group_score'] == 'top2_sum')},"
        f" .sigmoid = {int(attrs['score'] == 'sigmoid')}, .renormalise = {int(attrs['renormalise'])}, "
        f".scale = {f32(attrs['scale'])}}}, {count}, $logits, {by_group}, {vector(p, node.operands[3])}, $work, "
        "$indices, $gates);",
        "",
        **views,
    )


def _topk(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x = p.dense(operand(node, 0))
    values, indices = (p.out_dense(v) for v in node.results)
    rows = _rows(x)
    p.step(f"K->topk(&c, $x, {dim(rows.count)}, {dim(rows.width)}, {attrs_of(node)['k']}, $values, $indices);", x=x,
           values=values, indices=indices)


LOWERINGS: dict[str, Lowering] = {"router": _router, "topk": _topk}
