"""``mla`` from attention over a latent, naive or absorbed.

Naive: keys are ``[latent w_k, rope_k]`` and values ``latent w_v``, expanded per head before the attention.
Absorbed: queries are ``[q_nope w_k, q_rope]``, the only head of keys is ``[latent, rope_k]``, of values the latent, and
w_v comes behind.  Both are read off an ``attention`` that was found before.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnic.ir.graph import Node, Recipe, Value
from omnic.ir.types import Storage, TensorType
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site

__all__ = ["MLA"]


@dataclass(frozen=True)
class _Expand:
    """A weight per head, [H, rows, L], and whether it is stored [H, L, rows]."""

    weight: Value
    across: bool

    def build(self, site: Site) -> Value:
        """Return the weight as [H, rows, L]."""
        if not self.across:
            return site.current(self.weight)
        recipe = site.recipe(self.weight)
        heads, width, rows = self.weight.type.shape
        return site.derived(f"{self.weight.name}.rows", TensorType(self.weight.type.element, (heads, rows, width)),
                            Recipe("transpose", {"perm": (0, 2, 1)}, (recipe,)))


def _head_weight(look: Look, value: Value | None, swapped: bool, node: Node) -> _Expand | None:
    """Return the weight of three dims that an operand is; ``swapped`` says it is read [.., rows, L]."""
    if value is None:
        return None
    moved = look.is_op(value, "transpose")
    if moved is not None and moved.attrs["perm"] == (0, 2, 1):
        value, swapped = moved.operands[0], not swapped
    weight = None if value is None else look.weight(value)
    if weight is None or weight.type.rank != 3:
        return None
    if isinstance(weight.type.element, Storage) and not swapped:
        raise Declined(f"{weight} is {weight.type}: codes cannot be transposed", node)
    return _Expand(weight, not swapped)


def _three(look: Look, value: Value | None) -> Value | None:
    """Return [B, S, W] when ``value`` is it with a head dim of 1."""
    if value is None or value.type.rank != 4 or value.type.shape[1] != 1:
        return None
    node = look.is_op(value, "reshape")
    inner = node.operands[0] if node else None
    batch, _, slots, width = value.type.shape
    return inner if inner is not None and inner.type.shape == (batch, slots, width) else value


def _flat(site: Site, value: Value) -> Value:
    now = site.current(value)
    if now.type.rank == 3:
        return now
    batch, _, slots, width = now.type.shape
    return site.b.reshape(now, batch, slots, width)


def _parts(look: Look, value: Value | None) -> tuple[Value, Value] | None:
    """Return the two operands of a concat along the last dim."""
    node = look.is_op(value, "concat")
    if node is None or len(node.operands) != 2 or int(str(node.attrs["axis"])) % node.result.type.rank != 3:
        return None
    left, right = node.operands
    assert left is not None
    assert right is not None
    return left, right


def _attrs(node: Node) -> dict[str, object]:
    return {k: node.attrs[k] for k in ("scale", "window", "softcap") if k in node.attrs}


def _absorbed(look: Look, node: Node) -> Plan | None:
    """Rule: attention over [latent, rope_k] and latent, then times w_v, is the absorbed form."""
    mixed = look.is_op(node.operands[0], "attention")
    if mixed is None or node.attrs.get("ta", False):
        return None
    w_v = _head_weight(look, node.operands[1], bool(node.attrs.get("tb", False)), node)
    q, k, v, query, key, sinks, parents, start = mixed.operands
    parts, turned = _parts(look, k), _parts(look, q)
    latent = _three(look, v)
    if w_v is None or parts is None or turned is None or latent is None:
        return None
    first, rope_k = _three(look, parts[0]), _three(look, parts[1])
    if first is None or rope_k is None or not look.same(first, latent):
        raise Declined("the keys do not begin with the values' latent", node)
    product = look.is_op(turned[0], "matmul")
    if product is None or product.attrs.get("ta", False):
        raise Declined("the queries' first part is not q_nope times w_k", node)
    # q_nope [.., N] times w_k [H, N, L]: the rows of w_k are what is contracted.
    w_k = _head_weight(look, product.operands[1], not product.attrs.get("tb", False), node)
    q_nope = product.operands[0]
    if w_k is None or q_nope is None:
        raise Declined("w_k is no weight of one matrix a head", product)
    if sinks is not None:
        raise Declined("mla has no sinks", mixed)
    return Plan((node.result,), lambda site: (site.b.op(
        "mla", site.current(q_nope), site.current(turned[1]), _flat(site, latent), _flat(site, rope_k),
        w_k.build(site), w_v.build(site), *(v and site.current(v) for v in (query, key, parents, start)),
        form="absorbed", hint="mixed", **_attrs(mixed)),), "absorbed")


def _shared(look: Look, value: Value) -> Value | None:
    """Return [B, S, R] when ``value`` is it repeated for every head."""
    node = look.is_op(value, "broadcast")
    return _three(look, node.operands[0]) if node is not None else None


def _naive(look: Look, node: Node) -> Plan | None:
    """Rule: attention over [latent w_k, rope_k] and latent w_v is the naive form."""
    k, v, sinks = node.operands[1], node.operands[2], node.operands[5]
    parts = _parts(look, k)
    values = look.is_op(v, "matmul")
    if parts is None:
        return None
    keys = look.is_op(parts[0], "matmul")
    rope_k = _shared(look, parts[1])
    if keys is None or values is None or rope_k is None:
        return _expanded(look, node)
    latent, other = _three(look, keys.operands[0]), _three(look, values.operands[0])
    w_k = _head_weight(look, keys.operands[1], bool(keys.attrs.get("tb", False)), node)
    w_v = _head_weight(look, values.operands[1], bool(values.attrs.get("tb", False)), node)
    if latent is None or other is None or w_k is None or w_v is None:
        return None
    if not look.same(latent, other):
        raise Declined("keys and values are made from different latents", node)
    if sinks is not None:
        raise Declined("mla has no sinks", node)

    def build(site: Site) -> tuple[Value, ...]:
        return _build_naive(site, node, latent, rope_k, w_k.build(site), w_v.build(site))

    return Plan((node.result,), build, "naive")


def _build_naive(site: Site, node: Node, latent: Value, rope_k: Value, w_k: Value, w_v: Value) -> tuple[Value, ...]:
    q, _, _, query, key, _, parents, start = node.operands
    assert q is not None
    nope = w_k.type.shape[1]
    now = site.current(q)
    width = now.type.shape[3]
    assert isinstance(nope, int)
    assert isinstance(width, int)
    q_nope, q_rope = site.b.emit("split", now, axis=3, sizes=(nope, width - nope), hint="q")
    return (site.b.op(
        "mla", q_nope, q_rope, _flat(site, latent), _flat(site, rope_k), w_k, w_v,
        *(v and site.current(v) for v in (query, key, parents, start)), form="naive", hint="mixed", **_attrs(node)),)


def _expanded(look: Look, node: Node) -> Plan | None:
    """Rule: the same with one projection for both, ``latent kv_b^T`` cut into heads and then into keys and values."""
    k, v = node.operands[1:3]
    parts = _parts(look, k)
    assert parts is not None
    rope_k = _shared(look, parts[1])
    cut = look.is_op(parts[0], "split")
    if rope_k is None or cut is None or v is None or look.node(v) is not cut or len(cut.results) != 2:
        return None
    if parts[0] is not cut.results[0] or int(str(cut.attrs["axis"])) % 4 != 3:
        return None
    swap = look.is_op(cut.operands[0], "transpose")
    heads = look.is_op(swap.operands[0], "reshape") if swap and swap.attrs["perm"] == (0, 2, 1, 3) else None
    product = look.is_op(heads.operands[0], "linear", "matmul") if heads else None
    if product is None or heads is None or product.operands[0] is None or product.operands[1] is None:
        return None
    if product.op == "linear" and product.operands[2] is not None:
        raise Declined("the projection of the latent has a bias", product)
    latent = _three(look, product.operands[0]) if product.operands[0].type.rank == 4 else product.operands[0]
    weight = look.weight(product.operands[1])
    if latent is None or weight is None or weight.type.rank != 2 or product.attrs.get("ta", False):
        return None
    across = product.op == "matmul" and not product.attrs.get("tb", False)
    nope, depth = parts[0].type.shape[3], v.type.shape[3]
    count = parts[0].type.shape[1]

    def build(site: Site) -> tuple[Value, ...]:
        w_k, w_v = (_per_head(site, weight, across, count, nope, depth, first) for first in (True, False))
        return _build_naive(site, node, latent, rope_k, w_k, w_v)

    return Plan((node.result,), build, "naive")


def _per_head(site: Site, weight: Value, across: bool, heads: object, nope: object, depth: object,
              first: bool) -> Value:
    """Return the rows of keys (or of values) of a joint projection, as a derived weight [H, rows, L]."""
    assert isinstance(heads, int)
    assert isinstance(nope, int)
    assert isinstance(depth, int)
    width = weight.type.shape[0] if across else weight.type.shape[1]
    recipe = site.recipe(weight)
    if across:
        recipe = Recipe("transpose", {"perm": (1, 0)}, (recipe,))
    joint = Recipe("reshape", {"shape": (heads, nope + depth, width)}, (recipe,))
    begin, end = (0, nope) if first else (nope, nope + depth)
    part = Recipe("slice", {"axis": 1, "start": begin, "stop": end}, (joint,))
    return site.derived(f"{weight.name}.{'w_k' if first else 'w_v'}",
                        TensorType(weight.type.element, (heads, end - begin, width)), part)


MLA: tuple[Fusion, ...] = (
    Fusion("mla-absorbed", frozenset({"matmul"}), _absorbed),
    Fusion("mla-naive", frozenset({"attention"}), _naive),
)
