"""How a mixture's shares come from the router's logits.

Between the logits and the shares lie a choice and a normalisation.  They are evaluated on random logits and compared
with what ``router`` makes of the same logits under each of its rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.op import Array, find_op
from omnic.passes.fusion.experts import Experts
from omnic.passes.fusion.linear import rows_of, weight_rows
from omnic.passes.fusion.look import Declined, Look, Site
from omnic.passes.fusion.probe import constant, depends_on, run, shape_at, sizes

__all__ = ["Routing", "find_routing"]

_NODES = 4000
_CLOSE = 1e-9


@dataclass(frozen=True)
class _Product:
    """x times a weight of the router."""

    value: Value
    x: Value
    weight: Value
    across: bool
    bias: Value | None = None


@dataclass(frozen=True)
class Routing:
    """A router as found.

    Attributes:
        product: of the tokens and the gate.
        group: of the tokens and the group gate.
        bias: of the selection.
        gate_bias: of the logits.
        indices: the value that holds the chosen experts.
        attrs: the attributes of ``router``.
    """

    product: _Product
    group: _Product | None
    bias: Value | None
    gate_bias: Value | None
    indices: Value
    attrs: dict[str, Any]

    @property
    def x(self) -> Value:
        """What the router sees."""
        return self.product.x

    @property
    def logits(self) -> Value | None:
        """The value that holds the logits; None where the bias is added behind it."""
        return self.product.value if self.gate_bias is self.product.bias else None

    @property
    def note(self) -> str:
        """What a remark says of it."""
        return f"top {self.attrs['top_k']} by {self.attrs['score']}"

    def weights(self, site: Site) -> tuple[Value | None, ...]:
        """Return the gate, the group gate, the bias of the selection and that of the logits."""
        group = self.group
        return (rows_of(site, self.product.weight, self.product.across),
                None if group is None else rows_of(site, group.weight, group.across),
                *(v and site.current(v) for v in (self.bias, self.gate_bias)))


def find_routing(look: Look, experts: Experts, node: Node) -> Routing:
    """Return the router behind the shares of ``experts``.

    Raises:
        Declined: the shares are no function of one choice among logits, or follow no rule of ``router``.
    """
    leaves, nodes = _cone(look, experts.shares)
    products = [p for v in leaves if (p := _product(look, v)) is not None]
    logits = [p for p in products if p.value.type.shape[-1] == experts.count]
    choices = sorted((n for n in nodes if n.op == "topk"), key=lambda n: look.place[n])
    if not logits or not choices:
        raise Declined("the shares of the experts do not come from a choice among logits", node)
    vectors = [v for v in leaves if v.weight]
    others = [p for p in products if p is not logits[0]]
    if len(logits) > 1 or len(others) > 1 or len(vectors) > 1 or len(products) + len(vectors) != len(leaves):
        raise Declined(f"the shares depend on {', '.join(sorted(str(v) for v in leaves))}", node)
    product, added = logits[0], vectors[0] if vectors else None
    # The choice of groups stands before that of experts; before both may stand the choice of two in each group.
    by_group = choices[-2] if len(choices) > 1 else None
    top_k, top_groups = (1 if c is None else int(str(c.attrs["k"])) for c in (choices[-1], by_group))
    groups = _groups(look, nodes, experts.count, by_group)
    group = others[0] if others else None
    if group is not None and group.bias is not None:
        raise Declined("the group gate has a bias", node)
    ways = [Routing(product, group, added, product.bias, choices[-1].results[1], {})]
    if added is not None and product.bias is None:
        ways.append(replace(ways[0], bias=None, gate_bias=added))
    for way in ways:
        attrs = _rule(look, experts, way, top_k, top_groups, groups)
        if attrs is not None:
            return replace(way, attrs=attrs)
    raise Declined(f"no rule of router gives the shares of the {experts.count} experts", node)


def _cone(look: Look, roots: tuple[Value, ...]) -> tuple[list[Value], set[Node]]:
    """Return what the shares are made from, back to products of weights, and the nodes between."""
    leaves: dict[Value, None] = {}
    nodes: set[Node] = set()
    pending, seen = list(roots), set[Value]()
    while pending and len(seen) < _NODES:
        top = pending.pop()
        if top in seen:
            continue
        seen.add(top)
        node = look.node(top)
        if top.weight or node is None or node.op in ("linear", "matmul", "embedding", "cache_read"):
            if top.weight or depends_on(look, top):
                leaves[top] = None
            continue
        nodes.add(node)
        pending.extend(node.inputs())
    return list(leaves), nodes


def _product(look: Look, value: Value) -> _Product | None:
    node = look.is_op(value, "linear", "matmul")
    if node is None or node.operands[0] is None or node.operands[1] is None:
        return None
    if node.op == "linear":
        weight, bias = look.weight(node.operands[1]), node.operands[2]
        if weight is None or (bias is not None and look.weight(bias) is None):
            return None
        return _Product(value, node.operands[0], weight, False, bias)
    found = weight_rows(look, node.operands[1], bool(node.attrs.get("tb", False)))
    if found is None or node.attrs.get("ta", False):
        return None
    return _Product(value, node.operands[0], *found)


def _groups(look: Look, nodes: set[Node], count: int, choice: Node | None) -> tuple[int, ...] | None:
    """Return the sizes of the expert groups that a first choice is made among."""
    if choice is None or choice.operands[0] is None:
        return None
    total = choice.operands[0].type.shape[-1]
    if not isinstance(total, int):
        return None
    for node in nodes:
        if node.op == "constant" and node.result.type.shape in ((count,), (1, 1, count, 1)):
            member = constant(look, node.result)
            if member is not None and np.array_equal(np.unique(member), np.arange(total)):
                return tuple(int(c) for c in np.bincount(member.reshape(-1).astype(np.int64)))
    return (count // total,) * total if count % total == 0 else None


def _rule(look: Look, experts: Experts, routing: Routing, top_k: int, top_groups: int,
          groups: tuple[int, ...] | None) -> dict[str, Any] | None:
    """Return the attributes under which ``router`` gives the same shares; None when there are none."""
    dims = sizes(look.module.dims, B=2, T=7)
    random = np.random.default_rng(5)
    value = routing.product.value
    logits = random.standard_normal(shape_at(value.type.shape, dims))
    given: dict[Value, Array] = {value: logits}
    group_logits = bias = None
    if routing.group is not None:
        group_logits = random.standard_normal(shape_at(routing.group.value.type.shape, dims))
        given[routing.group.value] = group_logits
    if routing.bias is not None:
        bias = 0.3 * random.standard_normal(shape_at(routing.bias.type.shape, dims))
        given[routing.bias] = bias
    if routing.gate_bias is not None and routing.logits is None:
        added = 0.3 * random.standard_normal(shape_at(routing.gate_bias.type.shape, dims))
        given[routing.gate_bias] = added
        logits = logits + added.reshape(-1)
    found = experts.table([run(look, v, given, dims) for v in experts.shares])
    for attrs in _candidates(top_k, top_groups, groups, routing.group is not None):
        table = _shares(logits, group_logits, bias, attrs, experts.count)
        if table.shape != found.shape:
            break
        scale = float(found.sum() / table.sum())
        if not np.allclose(found, table * scale, rtol=_CLOSE, atol=_CLOSE):
            continue
        return attrs if abs(scale - 1.0) < _CLOSE else {**attrs, "scale": _round(scale)}
    return None


def _round(scale: float) -> float:
    """Return a scale as the number it was written as."""
    near = float(f"{scale:.9g}")
    return near if abs(near - scale) < _CLOSE * near else scale


def _candidates(top_k: int, top_groups: int, groups: tuple[int, ...] | None, gated: bool) -> Iterator[dict[str, Any]]:
    rules = ("max",) if groups is None or gated or min(groups) < 2 else ("max", "top2_sum")
    for score in ("softmax", "sigmoid"):
        for renormalise in (True, False):
            attrs: dict[str, Any] = {"top_k": top_k, "score": score, "renormalise": renormalise}
            if groups is None:
                yield attrs
                continue
            for rule in rules:
                yield {**attrs, "groups": groups, "top_groups": top_groups, "group_score": rule}


def _shares(logits: Array, group_logits: Array | None, bias: Array | None, attrs: dict[str, Any], count: int) -> Array:
    """Return [rows, E] as ``router`` makes it, the logits standing for what the gate would give."""
    rows = logits.reshape(1, -1, count)
    gate, group_gate = np.eye(count), None
    if group_logits is not None:
        few = group_logits.shape[-1]
        rows = np.concatenate([rows, group_logits.reshape(1, -1, few)], axis=-1)
        gate, group_gate = np.eye(count, count + few), np.eye(few, count + few, k=count)
    op = find_op("router")
    full = {a.name: a.default for a in op.attrs} | attrs
    found: Any = op.reference(rows, gate, group_gate, None if bias is None else bias.reshape(-1), None, **full)
    out = np.zeros((rows.shape[1], count))
    np.add.at(out, (np.arange(len(out))[:, None], found[0][0]), found[1][0])
    return out

