"""``attention`` from two products around a softmax: MHA, GQA, MQA, windows, sinks, softcaps.

Rules, in the order they are tried at a product of weights and values:

1. the left operand is a softmax over the keys, as an op or written out, with or without a column of sinks;
2. behind it are only scales, one softcap, masks and layouts, down to one product of queries and keys;
3. queries, keys and values are heads by tokens by width, repeated per group at most;
4. weights and values are multiplied head by head;
5. the masks follow the rule of visibility of ``attention``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.ir.op import Array
from omnic.passes.fusion.layout import Heads, declined_layout, heads_of, rows_of_product
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site
from omnic.passes.fusion.masks import Cache, Visibility, cache_of, indices, is_mask, see
from omnic.passes.fusion.probe import run, scalar_of, shape_at, sizes
from omnic.passes.fusion.scores import Scores, Weights, arrange, find_weights, read_scores

__all__ = ["ATTENTION"]

_LAYOUT = frozenset({"reshape", "transpose", "broadcast"})


@dataclass(frozen=True)
class _Found:
    """Everything that the composite takes."""

    q: Heads
    k: Heads
    v: Heads
    scores: Scores
    visibility: Visibility
    cache: Cache | None
    sinks: Value | None
    batch: Dim
    tokens: Dim

    def build(self, site: Site, shape: tuple[Dim, ...]) -> tuple[Value, ...]:
        """Build the composite, in the shape of what it replaces."""
        query, key = indices(site, self.visibility, self.cache, self.batch, self.tokens)
        parents = self.visibility.parents
        start = site.current(self.cache.start) if parents is not None and self.cache is not None else None
        y = site.b.op(
            "attention", self.q.build(site), self.k.build(site), self.v.build(site), query, key,
            self.sinks and _vector(site, self.sinks), parents and site.current(parents), start,
            scale=self.scores.scale * self.q.factor * self.k.factor, window=self.visibility.window,
            softcap=self.scores.softcap, hint="mixed",
        )
        return (y if y.type.shape == shape else site.b.reshape(y, *shape),)


def _vector(site: Site, sinks: Value) -> Value:
    """Return the sinks as [H]."""
    now = site.current(sinks)
    return now if now.type.rank == 1 else site.b.reshape(now, now.type.size)


def _attention(look: Look, node: Node) -> Plan | None:
    """Rules 1 to 5 at a product of weights and values."""
    left, values = node.operands
    assert left is not None
    assert values is not None
    if node.attrs.get("ta", False):
        return None
    steps: list[Node] = []
    top = left
    while (moved := look.is_op(top, *_LAYOUT)) is not None and moved.operands[0] is not None:
        steps.append(moved)
        top = moved.operands[0]
    weights = find_weights(look, top)
    if weights is None:
        return None
    scores = read_scores(look, weights, is_mask)
    found = _parts(look, node, weights, scores, steps, values)
    root = _root(look, node, weights)
    heads, groups = found.q.shape[1], found.k.shape[1]
    note = f"{heads} heads on {groups}" + (f", window {found.visibility.window}" if found.visibility.window else "")
    return Plan((root.result,), lambda site: found.build(site, root.result.type.shape), note)


def _root(look: Look, node: Node, weights: Weights) -> Node:
    """Return the node that the composite replaces: the product, or the division that follows a written-out softmax."""
    if weights.total is None:
        return node
    value = node.result
    for _ in range(4):
        readers = look.readers(value)
        if len(readers) == 1 and readers[0].op == "reshape":
            value = readers[0].result
            continue
        over = readers[0] if len(readers) == 1 and readers[0].op == "div" else None
        if over is not None and over.operands[0] is value and _under(look, over.operands[1]) is weights.total:
            return over
        break
    raise Declined("the weighted sum is not divided by the sum of the exponentials", node)


def _under(look: Look, value: Value | None) -> Value | None:
    """Return the sum that a divisor is, behind its layout and the guard that puts 1 where no key is seen."""
    for _ in range(4):
        node = look.is_op(value, "reshape", "where")
        if node is None:
            break
        if node.op == "reshape":
            value = node.operands[0]
        elif node.operands[2] is not None and scalar_of(look, node.operands[2]) == 1.0:
            value = node.operands[1]
        else:
            break
    return value


def _parts(look: Look, node: Node, weights: Weights, scores: Scores, steps: list[Node], values: Value) -> _Found:
    logits = weights.probabilities
    dims = sizes(look.module.dims, B=2, T=3)
    shape = logits.type.shape
    tokens, slots = shape[-2], shape[-1]
    product = scores.product
    left, right = product.operands
    assert left is not None
    assert right is not None
    width = left.type.shape[-2] if product.attrs.get("ta", False) else left.type.shape[-1]
    batch, heads = _batch(shape, left, tokens)
    q = _best(heads_of(look, left, batch, tokens, width, heads, dims, bool(product.attrs.get("ta", False))),
              heads, "the queries", left, product)
    k = _best(heads_of(look, right, batch, slots, width, heads, dims, not product.attrs.get("tb", False)),
              None, "the keys", right, product)
    depth = values.type.shape[-2] if node.attrs.get("tb", False) else values.type.shape[-1]
    v_all = heads_of(look, values, batch, slots, depth, heads, dims, bool(node.attrs.get("tb", False)))
    groups = k.shape[1]
    v = next((h for h in v_all if h.shape[1] == groups), None)
    if v is None:
        raise declined_layout("the values", values, node)
    rows, cols = rows_of_product(q.operand, k.operand)
    got = [arrange(scores.layout, a, dims) for a in (rows, cols)]
    _check(got[0], got[1], shape_at((batch, tokens, slots), dims), heads, int(str(groups)), product)
    _check_values(node, steps, v, shape_at(shape, dims), dims, heads, int(str(groups)))
    cache = cache_of(look, k.value)
    other = cache_of(look, v.value)
    if (cache is None) != (other is None):
        raise Declined("keys and values do not both come from a state", node)
    visibility = see(look, scores, cache, batch, heads, tokens, slots, node)
    sinks = None if weights.sinks is None else _sinks(look, weights, heads, shape_at(shape, dims), dims, node)
    return _Found(q, k, v, scores, visibility, cache, sinks, batch, tokens)


def _batch(shape: tuple[Dim, ...], left: Value, tokens: Dim) -> tuple[Dim, int]:
    """Return the batch dim and the number of heads of weights [.., T, S]."""
    lead = shape[:-2]
    if len(lead) >= 2:
        heads: Dim = 1
        for dim in lead[1:]:
            heads = heads * dim
        if isinstance(heads, int):
            return lead[0], heads
    raise Declined(f"the weights [{', '.join(map(str, shape))}] have no heads of their own", None)


def _best(found: list[Heads], wanted: int | None, what: str, operand: Value, node: Node) -> Heads:
    fitting = [h for h in found if wanted is None or h.shape[1] == wanted]
    if not fitting:
        raise declined_layout(what, operand, node)
    return fitting[0]


def _check(rows: Array, cols: Array, sizes: tuple[int, ...], heads: int, groups: int, node: Node) -> None:
    """Rule 3: the score of head h, query t and key s is made of row t of head h and of row s of its group."""
    batch, tokens, slots = sizes
    rows, cols = (a.reshape(batch, heads, tokens, slots) for a in (rows, cols))
    query = np.arange(batch * heads * tokens).reshape(batch, heads, tokens, 1)
    group = np.arange(batch)[:, None] * groups + np.arange(heads)[None] // (heads // groups)
    key = (group[:, :, None, None] * slots) + np.arange(slots)
    if not np.array_equal(rows, np.broadcast_to(query, rows.shape)):
        raise Declined("the scores are not in the order of the queries' heads", node)
    if not np.array_equal(cols, np.broadcast_to(key, cols.shape)):
        raise Declined("query heads do not share key heads in order", node)


def _check_values(node: Node, steps: list[Node], v: Heads, shape: tuple[int, ...], dims: dict[str, int], heads: int,
                  groups: int) -> None:
    """Rule 4: the weights of head h meet the values of its group, and stay in their order."""
    rows = int(np.prod(shape[:-1]))
    slots = shape[-1]
    row = np.broadcast_to(np.arange(rows).reshape(*shape[:-1], 1), shape)
    col = np.broadcast_to(np.arange(slots), shape)
    row, col = arrange(steps, row, dims), arrange(steps, col, dims)
    if np.any(row != row[..., :1]) or row.shape[-1] != slots or np.any(col != np.arange(slots)):
        raise Declined("weights are moved between keys before they meet the values", node)
    tokens = shape[-2]
    lead = np.broadcast_shapes(row.shape[:-2], v.operand.shape[:-1])
    order = np.broadcast_to(row[..., 0], (*lead, row.shape[-2]))
    if not np.array_equal(order.reshape(-1), np.arange(rows)):
        raise Declined("the mixed values are not in the order of the heads", node)
    batch_head = order // tokens
    group = (batch_head // heads) * groups + (batch_head % heads) // (heads // groups)
    value = np.broadcast_to(v.operand, (*lead, slots))
    if not np.array_equal(group[..., None] * slots + np.arange(slots),
                          np.broadcast_to(value[..., None, :], (*group.shape, slots))):
        raise Declined("heads do not read the values of their own group", node)


def _sinks(look: Look, weights: Weights, heads: int, shape: tuple[int, ...], dims: dict[str, int],
           node: Node) -> Value:
    """Return the sinks [H]: one logit a head, the same for every query."""
    value = weights.sinks
    assert value is not None
    source = value
    while source.type.shape != (heads,) and not (source.weight and source.type.size == heads):
        inner = look.is_op(source, "reshape", "broadcast", "cast")
        if inner is None or inner.operands[0] is None:
            raise Declined(f"the sinks ({source}: {source.type}) are not one number a head", node)
        source = inner.operands[0]
    numbered = np.arange(heads, dtype=np.float64).reshape(shape_at(source.type.shape, dims))
    spread = run(look, value, {source: numbered}, dims)
    wanted = np.arange(heads).reshape(1, heads, 1, 1)
    full = np.broadcast_to(spread, (*shape[:-1], 1)).reshape(shape[0], heads, shape[-2], 1)
    if not np.array_equal(full, np.broadcast_to(wanted, full.shape)):
        raise Declined("the sinks are not spread over the heads in order", node)
    return look.weight(source) or source


ATTENTION: tuple[Fusion, ...] = (Fusion("attention", frozenset({"matmul"}), _attention),)
