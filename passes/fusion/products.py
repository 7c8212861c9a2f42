"""One form for the products of an attention, before it is looked for.

The sum ``q_nope k_nope^T + q_rope k_rope^T`` is ``[q_nope, q_rope] [k_nope, k_rope]^T``.
"""

from __future__ import annotations

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.ir.op import broadcast_shapes
from omnic.passes.fusion.look import Fusion, Look, Plan, Site

__all__ = ["PRODUCTS"]

_ON_THE_WAY = frozenset({"mul", "div", "add", "where", "reshape", "tanh", "cast", "sub", "concat"})


def _turned(look: Look, node: Node) -> Plan | None:
    """Rule: a product with the transpose of its right operand reads it transposed."""
    left, right = node.operands
    assert left is not None
    assert right is not None
    swap = look.is_op(right, "transpose")
    if swap is None or swap.operands[0] is None or swap.operands[0].weight:
        return None
    rank = right.type.rank
    if swap.attrs["perm"] != (*range(rank - 2), rank - 1, rank - 2):
        return None
    inner, ta, tb = swap.operands[0], bool(node.attrs.get("ta", False)), not node.attrs.get("tb", False)
    return Plan((node.result,), lambda site: (
        site.b.op("matmul", site.current(left), site.current(inner), ta=ta, tb=tb),))


def _leads_to_softmax(look: Look, value: Value) -> bool:
    for _ in range(12):
        readers = [n for n in look.readers(value) if n.op in _ON_THE_WAY or n.op == "softmax"]
        if not readers:
            return False
        if readers[0].op == "softmax":
            return True
        value = readers[0].results[0]
    return False


def _two(look: Look, node: Node) -> Plan | None:
    """Rule: scores that are the sum of two products are one product of longer queries and keys."""
    left, right = (look.is_op(v, "matmul") for v in node.operands)
    if left is None or right is None or left.attrs.get("ta", False) or right.attrs.get("ta", False):
        return None
    if left.result.type != node.result.type or right.result.type != node.result.type or node.result.type.rank < 4:
        return None
    if not _leads_to_softmax(look, node.result):
        return None

    def build(site: Site) -> tuple[Value, ...]:
        q = _joined(site, [_rows(site, n.operands[0], False) for n in (left, right)])
        k = _joined(site, [_rows(site, n.operands[1], not n.attrs.get("tb", False)) for n in (left, right)])
        return (site.b.op("matmul", q, k, tb=True),)

    return Plan((node.result,), build)


def _rows(site: Site, value: Value | None, swap: bool) -> Value:
    """Return an operand as [.., rows, width]."""
    assert value is not None
    now = site.current(value)
    rank = now.type.rank
    return site.b.op("transpose", now, perm=(*range(rank - 2), rank - 1, rank - 2)) if swap else now


def _joined(site: Site, parts: list[Value]) -> Value:
    """Join along the width, what is shared between heads repeated for them."""
    lead: tuple[Dim, ...] = broadcast_shapes(*(p.type.shape[:-1] for p in parts))
    wide = [p if p.type.shape[:-1] == lead else site.b.op("broadcast", p, shape=(*lead, p.type.shape[-1]))
            for p in parts]
    return site.b.op("concat", *wide, axis=len(lead))


PRODUCTS: tuple[Fusion, ...] = (
    Fusion("product-transposed", frozenset({"matmul"}), _turned),
    Fusion("two-products", frozenset({"add"}), _two),
)
