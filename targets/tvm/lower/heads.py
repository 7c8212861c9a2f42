"""Heads: logits, and the most likely token without them."""

from __future__ import annotations

from omnic.ir.dims import Dim
from omnic.ir.graph import Node
from omnic.targets.tvm.lower.common import act_of, attrs_of, operand, vector
from omnic.targets.tvm.lower.products import product
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.text import dim, f32
from omnic.targets.tvm.views import Rows

__all__ = ["LOWERINGS"]


def _lm_head(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    x = _wanted_rows(p, node)
    y = p.out_rows(node.result)
    product(p, x, operand(node, 1), vector(p, node.operands[3]), y, attrs["act"])
    if attrs["softcap"]:
        cap = f32(attrs["softcap"])
        p.step(f"omnic_softcap({dim(y.count)}, {dim(y.width)}, {cap}, $y, {dim(y.stride)});", y=y.view)


def _lm_argmax(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x, act = _wanted_rows(p, node), act_of(attrs_of(node)["act"])
    ids, logits = (p.out_dense(value) for value in node.results)
    head = p.matrices.matrix(operand(node, 1)).name
    if node.operands[3] is None:
        p.step(
            f"K->head_argmax(&c, &W[{head}], $x, {dim(x.count)}, {dim(x.stride)}, {act}, 0.0f, $ids, $logits);",
            scratch=f"omnic_scratch_linear(&W[{head}], {dim(x.count)}, {act}, threads)",
            x=x.view, ids=ids, logits=logits,
        )
        return
    basis, screen = (p.matrices.matrix(operand(node, at)).name for at in (3, 4))
    parts, reach = f"&W[{head}], &W[{basis}], &W[{screen}]", vector(p, operand(node, 5))
    p.step(
        f"K->head_shortlist(&c, &(const omnic_shortlist){{{parts}, {reach}}}, $x, {dim(x.count)}, {dim(x.stride)}, "
        f"{act}, $ids, $logits, NULL);",
        scratch=f"omnic_scratch_shortlist(&(const omnic_shortlist){{{parts}, NULL}}, {dim(x.count)}, {act}, threads)",
        x=x.view, ids=ids, logits=logits,
    )


def _wanted_rows(p: Planner, node: Node) -> Rows:
    """Return the rows of x whose logits are wanted."""
    source, index = operand(node, 0), node.operands[2]
    x = p.rows(source)
    if index is None:
        return x
    batch, count, width = source.type.shape
    wanted: Dim = index.type.shape[1]
    if count == 1 and wanted == 1:
        return x
    rows = p.dense(index)
    picked = p.new((batch, wanted, width), source.type.dtype, f"{source.name}_rows")
    p.step(
        f"omnic_rows({dim(batch)}, {dim(count)}, {dim(wanted)}, {dim(width)}, $rows, $x, {dim(x.stride)}, $y);",
        rows=rows, x=x.view, y=picked,
    )
    found = picked.rows()
    assert found is not None
    return found


LOWERINGS: dict[str, Lowering] = {"lm_head": _lm_head, "lm_argmax": _lm_argmax}
