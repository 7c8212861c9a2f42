"""What runs and in which order: nodes that somebody needs, products with their residuals, products of one input.

1. A node runs when a result of the function needs it; attention that reads states in place needs no copy of them.
2. ``add(x, linear(y))`` is one product with a residual, at the place of the addition.
3. Products of one input with one rounding of activations run together, at the place of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omnic.ir.graph import Function, Node, Uses, Value
from omnic.ir.op import find_op
from omnic.targets.tvm.patterns import AttentionForm

__all__ = ["Turn", "needed_inputs", "turns_of"]


@dataclass(frozen=True)
class Turn:
    """Nodes that run together.

    Attributes:
        nodes: several for ``many``; the product and the addition for ``residual``.
        kind: ``one``, ``many`` (products of one input) or ``residual``.
        residual: what the product is added to.
    """

    nodes: tuple[Node, ...]
    kind: str = "one"
    residual: Value | None = None


def needed_inputs(node: Node, forms: Mapping[str, AttentionForm]) -> tuple[Value, ...]:
    """Return the values that a node reads when it runs."""
    form = forms.get(node.name)
    return tuple(node.inputs()) if form is None else form.inputs


def turns_of(function: Function, forms: Mapping[str, AttentionForm]) -> list[Turn]:
    """Return what runs, in order."""
    wanted = {r.value for r in function.results}
    needed: set[Node] = set()
    for node in reversed(function.nodes):
        if any(v in wanted for v in node.results):
            needed.add(node)
            wanted.update(v for v in needed_inputs(node, forms) if not v.weight)
    nodes = [n for n in function.nodes if n in needed]
    residuals = _residuals(function, nodes)
    deferred = {product for product, _ in residuals.values()}
    groups = _groups([n for n in nodes if n not in deferred])
    first = {group[0]: group for group in groups if len(group) > 1}
    later = {n for group in first.values() for n in group[1:]}
    turns: list[Turn] = []
    for node in nodes:
        if node in deferred or node in later:
            continue
        if node in residuals:
            product, other = residuals[node]
            turns.append(Turn((product, node), "residual", other))
        elif node in first:
            turns.append(Turn(tuple(first[node]), "many"))
        else:
            turns.append(Turn((node,)))
    return turns


def _residuals(function: Function, nodes: list[Node]) -> dict[Node, tuple[Node, Value]]:
    """Return addition -> (product, what it is added to)."""
    uses = Uses(function)
    found: dict[Node, tuple[Node, Value]] = {}
    taken: set[Node] = set()
    for node in nodes:
        if node.op != "add":
            continue
        a, b = node.operands
        assert a is not None and b is not None
        for inner, other in ((b, a), (a, b)):
            product = uses.producer.get(inner)
            alone = product is not None and product.op == "linear" and uses.only_user(inner) is node
            if not alone or product in taken or other.weight or inner is other or a.type != b.type:
                continue
            assert product is not None
            found[node] = product, other
            taken.add(product)
            break
    return found


def _groups(nodes: list[Node]) -> list[list[Node]]:
    """Return the products of one input and one rounding of activations, together."""
    found: dict[tuple[Value | None, object], list[Node]] = {}
    for node in nodes:
        if node.op == "linear":
            act = find_op("linear").bind(node.attrs)["act"]
            found.setdefault((node.operands[0], act), []).append(node)
    return list(found.values())
