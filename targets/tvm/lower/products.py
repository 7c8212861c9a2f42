"""Products with packed weights, embeddings and experts."""

from __future__ import annotations

from omnic.ir.dims import Dim, evaluate
from omnic.ir.graph import Value
from omnic.targets.tvm.lower.common import ACTIVATIONS, act_of, attrs_of, operand, vector
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.text import dim, f32
from omnic.targets.tvm.tuning.products import Product, panels_text
from omnic.targets.tvm.views import Rows

__all__ = ["LOWERINGS", "product"]


def tuned_call(p: Planner, product: Product, rows: Dim) -> str:
    """Return the first argument of a product kernel: the call, with the tuning of so many rows where there is one."""
    dims = {name: r.high for name, r in p.module.dims.items()}
    high = evaluate(rows, {**dims, **p.plan.fixed})
    low = evaluate(rows, {**dict.fromkeys(dims, 1), "T": 2, **p.plan.fixed})
    name = p.matrices.tuning(product, min(low, high), high)
    return f"(omnic_call[]){{omnic_tuned(&c, K, {name}, {dim(rows)})}}" if name else "&c"


def product(
    p: Planner, x: Rows, weight: Value, bias: str, y: Rows, act: str = "none", residual: Rows | None = None,
    turned: bool = False,
) -> None:
    """Append y = residual + act(x) W^T + bias."""
    matrix = p.matrices.matrix(weight, turned)
    views = {"x": x.view, "y": y.view}
    beside = "NULL, 0"
    if residual is not None:
        views["residual"] = residual.view
        beside = f"$residual, {dim(residual.stride)}"
    call = tuned_call(p, Product("linear", (matrix.n,), matrix.k, (panels_text(matrix.panels),), act), x.count)
    p.step(
        f"K->linear({call}, &W[{matrix.name}], $x, {dim(x.count)}, {dim(x.stride)}, {act_of(act)}, {bias}, {beside}, "
        f"$y, {dim(y.stride)});",
        scratch=f"omnic_scratch_linear(&W[{matrix.name}], {dim(x.count)}, {act_of(act)}, threads)",
        **views,
    )


def _linear(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    x = p.rows(operand(node, 0))
    product(p, x, operand(node, 1), vector(p, node.operands[2]), p.out_rows(node.result), attrs_of(node)["act"])


def _residual(p: Planner, turn: Turn) -> None:
    node, total = turn.nodes
    assert turn.residual is not None
    x = p.rows(operand(node, 0))
    residual = p.rows(turn.residual)
    result = total.result
    if result not in p.destinations and residual.view.buffer is p.view(turn.residual).buffer and p.dies(turn.residual):
        # The sum takes the place of what it is added to.
        p.views[result] = p.view(turn.residual)
        y = residual
    else:
        y = p.out_rows(result)
    act = attrs_of(node)["act"]
    product(p, x, operand(node, 1), vector(p, node.operands[2]), y, act, residual)


def _many(p: Planner, turn: Turn) -> None:
    nodes = turn.nodes
    x = p.rows(operand(nodes[0], 0))
    rounding = attrs_of(nodes[0])["act"]
    act = act_of(rounding)
    matrices = [p.matrices.matrix(operand(n, 1)) for n in nodes]
    kinds = tuple(panels_text(m.panels) for m in matrices)
    call = tuned_call(
        p, Product("linear_many", tuple(m.n for m in matrices), matrices[0].k, kinds, rounding), x.count
    )
    outs = [p.out_rows(n.result) for n in nodes]
    biases = [vector(p, n.operands[2]) for n in nodes]
    with_bias = any(b != "NULL" for b in biases)
    text = (
        f"K->linear_many({call}, (const omnic_weight *const[]){{{', '.join(f'&W[{m.name}]' for m in matrices)}}}, "
        f"{len(nodes)}, $x, {dim(x.count)}, {dim(x.stride)}, {act}, "
        + (f"(const float *const[]){{{', '.join(biases)}}}, " if with_bias else "NULL, ")
        + f"(float *const[]){{{', '.join(f'$y{i}' for i in range(len(nodes)))}}}, "
        + f"(const int64_t[]){{{', '.join(dim(o.stride) for o in outs)}}});"
    )
    scratch = [f"omnic_scratch_linear(&W[{m.name}], {dim(x.count)}, {act}, threads)" for m in matrices]
    together = scratch[0]
    for one in scratch[1:]:
        together = f"omnic_larger({together}, {one})"
    p.step(text, together, x=x.view, **{f"y{i}": o.view for i, o in enumerate(outs)})


def _matmul(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    product(p, p.rows(operand(node, 0)), operand(node, 1), "NULL", p.out_rows(node.result),
            turned=not attrs_of(node)["tb"])


def _embedding(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    matrix = p.matrices.matrix(operand(node, 0))
    ids = p.dense(operand(node, 1))
    y = p.out_rows(node.result)
    p.step(f"K->embed(&c, &W[{matrix.name}], $ids, {dim(y.count)}, $y, {dim(y.stride)});", ids=ids, y=y.view)


def _moe(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs = attrs_of(node)
    x, y = p.rows(operand(node, 0)), p.out_rows(node.result)
    up, down, gate = (
        None if (v := node.operands[at]) is None else p.matrices.matrix(v) for at in (3, 4, 5)
    )
    assert up is not None and down is not None
    top = dim(operand(node, 1).type.shape[2])
    tables: list[str] = []
    lines: list[str] = []
    for at, name in ((8, "gate"), (6, "up"), (7, "down")):
        value = node.operands[at]
        tables.append("NULL" if value is None else f"{name}_bias")
        if value is not None:
            width = dim(value.type.shape[1])
            lines += [f"const float *{name}_bias[{up.count}];",
                      f"omnic_table({name}_bias, {up.count}, {p.matrices.vector(value)}, {width});"]
    act = act_of(attrs["act"])
    kinds = tuple(panels_text(m.panels) for m in (gate, up, down) if m is not None)
    top_k = operand(node, 1).type.shape[2]
    assert isinstance(top_k, int)
    tuned = tuned_call(p, Product("moe", (up.n,), up.k, kinds, attrs["act"], up.count, top_k), x.count)
    call = (
        f"K->moe({tuned}, {f'&P[{gate.name}]' if gate else 'NULL'}, &P[{up.name}], &P[{down.name}], {up.count}, $x, "
        f"{dim(x.count)}, {dim(x.stride)}, $indices, $gates, {top}, {ACTIVATIONS[attrs['kind']]}, "
        f"{f32(attrs['alpha'])}, {f32(attrs['beta'])}, {f32(attrs['limit'] or 0.0)}, {act}, "
        f"{', '.join(tables)}, $y, {dim(y.stride)});"
    )
    text = call if not lines else "{\n  " + "\n  ".join([*lines, call]) + "\n}"
    p.step(
        text,
        f"omnic_scratch_moe(&W[{up.name}], &W[{down.name}], {dim(x.count)}, {top}, {up.count}, {act}, threads)",
        x=x.view, indices=p.dense(operand(node, 1)), gates=p.dense(operand(node, 2)), y=y.view,
    )


LOWERINGS: dict[str, Lowering] = {
    "linear": _linear,
    "residual": _residual,
    "many": _many,
    "matmul": _matmul,
    "embedding": _embedding,
    "moe": _moe,
}
