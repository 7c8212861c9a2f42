"""Mixtures of experts: every expert on every token, weighted; one expert after another; or each token's own experts.

However the work is laid out, a mixture is the experts' products and a share of each expert for each token.  The
products are read off the graph; the shares, and how they come from the router's logits, are functions of few numbers
and are recognised by their values.
"""

from __future__ import annotations

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.passes.fusion.experts import find_experts, unshaped
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site
from omnic.passes.fusion.routing import find_routing

__all__ = ["MOE"]

def _mixture(look: Look, node: Node) -> Plan | None:
    """Rules: find the experts, then the routing behind their shares; replace both."""
    found = find_experts(look, node)
    if found is None:
        return None
    routing = find_routing(look, found, node)
    x, tokens = _tokens(look, routing.x, node)
    if not look.same(unshaped(look, found.x), unshaped(look, x)):
        raise Declined(f"the router sees {x}, the experts {found.x}", node)
    shape = node.result.type.shape

    def build(site: Site) -> tuple[Value, ...]:
        b = site.b
        now = _batched(site, x, tokens)
        indices, gates, logits = b.emit(
            "router", now, *routing.weights(site), hint="route", **routing.attrs)
        weights = found.build(site)
        y = b.op("moe", now, indices, gates, *weights, hint="experts", **found.act)
        made = y if y.type.shape == shape else b.reshape(y, *shape)
        if made.type != node.result.type:
            made = b.op("cast", made, to=node.result.type.element)
        out = [made]
        for value, new in ((routing.indices, indices), (routing.logits, logits)):
            if value is not None:
                out.append(new if value.type.shape == new.type.shape else b.reshape(new, *value.type.shape))
        return tuple(out)

    replaced = tuple(v for v in (node.result, routing.indices, routing.logits) if v is not None)
    return Plan(replaced, build, f"{found.count} experts, {routing.note}")


def _tokens(look: Look, x: Value, node: Node) -> tuple[Value, tuple[Dim, ...]]:
    """Return what the router sees as [B, T, D], behind a reshape that only flattens rows."""
    while x.type.rank != 3:
        inner = look.is_op(x, "reshape", "cast")
        if inner is None or inner.operands[0] is None or inner.operands[0].type.shape[-1] != x.type.shape[-1]:
            raise Declined(f"the router sees {x}: {x.type}, which is no [B, T, D]", node)
        x = inner.operands[0]
    return x, x.type.shape


def _batched(site: Site, x: Value, shape: tuple[Dim, ...]) -> Value:
    now = site.current(x)
    return now if now.type.shape == shape else site.b.reshape(now, *shape)


MOE: tuple[Fusion, ...] = (Fusion("moe", frozenset({"sum", "add", "reshape", "matmul", "scatter"}), _mixture),)
