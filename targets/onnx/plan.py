"""Finding the patterns that one operator computes: attention over cached states, and skip norms.

Rules of the fused attention (``com.microsoft.GroupQueryAttention``), each with the remark it leaves:

1. keys and values are linear states (a ring's slots are not in order) of one head size that 8 divides: f32, or both
   i8 or both i4 with static symmetric scales (``kv-quant{scales=static, symmetric=true}``);
2. there is no token tree (the operator masks by position only);
3. queries count on from ``start``;
4. queries and keys are rotated alike, or not at all;
5. what lies between the projections and the operator is read by nothing else;
6. where projections share their input and no norm lies between, they become one packed product;
7. the rotation is the operator's own where 16 divides the rotated dims, else it is applied before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omnic.ir.graph import Function, Node, Uses, Value
from omnic.ir.types import DType, ElementType, Storage
from omnic.targets.onnx.writer import attrs_of

__all__ = ["ROTARY_MULTIPLE", "Cached", "Fused", "Heads", "Plan", "make_plan"]


#: operands of an op that are keys (latents), values (rope keys), and the index of the keys
_PLACES: Mapping[str, tuple[int, int, int]] = {"attention": (1, 2, 4), "mla": (2, 3, 7), "block_attention": (1, 2, 5)}
_WRITES = ("cache_write", "cache_close")

#: what GroupQueryAttention's checks ask of head sizes, and of rotated dims
HEAD_MULTIPLE, ROTARY_MULTIPLE = 8, 16


@dataclass(frozen=True)
class Cached:
    """An ``attention`` or ``mla`` node whose keys and values are states.

    Attributes:
        node: it.
        writes: the cache_write of keys (latents) and of values (rope keys).
        reads: the cache_read of each.
        scaled: what each is multiplied by and added to after that: weights, the static scales of states of codes.
    """

    node: Node
    writes: tuple[Node, Node]
    reads: tuple[Node, Node]
    scaled: tuple[tuple[Node, ...], tuple[Node, ...]] = ((), ())

    @property
    def start(self) -> Value:
        """Committed tokens, i64[B]."""
        found = self.reads[0].operands[1]
        assert found is not None
        return found

    @property
    def length(self) -> Value:
        """Valid tokens of the call, i64[B]."""
        found = self.reads[0].operands[2]
        assert found is not None
        return found

    @property
    def ring(self) -> bool:
        """Whether slots are reused."""
        return bool(attrs_of(self.reads[0])["ring"])


@dataclass(frozen=True)
class Heads:
    """How [B, T, heads * D] becomes the heads attention reads: a norm and a rotation, or neither."""

    source: Value
    rope: Node | None
    norm: Node | None
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Fused:
    """An attention that GroupQueryAttention computes.

    Attributes:
        cached: the attention and its states.
        q, k, v: where its operands come from.
        linears: the three projections when they are packed into one product.
        merge: the transpose and reshape of its result, which the operator does itself.
        scales: the static scales of keys and values that are stored as codes.
        divides: the divisions by them before the writes.
    """

    cached: Cached
    q: Heads
    k: Heads
    v: Heads
    linears: tuple[Node, Node, Node] | None
    merge: tuple[Node, Node]
    scales: tuple[Value, Value] | None = None
    divides: tuple[Node, ...] = ()


@dataclass
class Plan:
    """What to do with the nodes of one function.

    Attributes:
        cached: attention over states, by node name.
        fused: of these the ones GroupQueryAttention computes, by node name.
        skips: name of an ``add`` -> the rms_norm that is computed with it.
        absorbed: names of nodes that another node's lowering computes.
        remarks: why an attention is not fused, by node name.
    """

    cached: dict[str, Cached] = field(default_factory=dict[str, Cached])
    fused: dict[str, Fused] = field(default_factory=dict[str, Fused])
    skips: dict[str, Node] = field(default_factory=dict[str, Node])
    absorbed: set[str] = field(default_factory=set[str])
    remarks: dict[str, str] = field(default_factory=dict[str, str])


def make_plan(function: Function, profile: str) -> Plan:
    """Find the patterns of ``function`` for a profile."""
    uses, plan = Uses(function), Plan()
    for node in function.nodes:
        found = _cached(node, uses.producer)
        if found is None:
            continue
        plan.cached[node.name] = found
        for read, scaled in zip(found.reads, found.scaled, strict=True):
            if _only_for(read, scaled[0] if scaled else node, node, uses):
                plan.absorbed |= {read.name, *(n.name for n in scaled)}
    if profile != "fused":
        return plan
    for name, found in plan.cached.items():
        fused = _fused(found, uses)
        if isinstance(fused, str):
            plan.remarks[name] = fused
            continue
        plan.fused[name] = fused
        plan.absorbed |= {n.name for n in _members(fused)}
    for node in function.nodes:
        norm = _skip(node, uses, plan.absorbed)
        if norm is not None:
            plan.skips[node.name] = norm
            plan.absorbed.add(norm.name)
    return plan


def _only_for(read: Node, first: Node, node: Node, uses: Uses) -> bool:
    """Whether a cache_read, and the scaling that begins with ``first``, serve ``node`` alone."""
    numbers, index = read.results
    own = uses.count(numbers) == 1 and uses.users[numbers][0][0] is first
    others = uses.users.get(index, [])
    return own and numbers not in uses.returned and index not in uses.returned and all(u is node for u, _ in others)


def _cached(node: Node, producer: Mapping[Value, Node]) -> Cached | None:
    """Match keys and values that are the first result of a cache_read of a fresh cache_write."""
    if node.op not in _PLACES:
        return None
    first, second, at = _PLACES[node.op]
    index = node.operands[at]
    if node.op == "block_attention" and node.operands[8] is None:
        return None
    reads: list[Node] = []
    writes: list[Node] = []
    scaled: list[tuple[Node, ...]] = []
    for place in (first, second):
        value = node.operands[place]
        scaled.append(_scaling(value, producer))
        value = scaled[-1][0].operands[0] if scaled[-1] else value
        read = producer.get(value) if value is not None else None
        if read is None or read.op != "cache_read" or read.results[0] is not value:
            return None
        state = read.operands[0]
        write = producer.get(state) if state is not None else None
        if write is None or write.op not in _WRITES or write.operands[-2:] != read.operands[1:]:
            return None
        if attrs_of(write)["ring"] != attrs_of(read)["ring"]:
            return None
        reads.append(read)
        writes.append(write)
    same = reads[0].operands[1:] == reads[1].operands[1:] and attrs_of(reads[0])["ring"] == attrs_of(reads[1])["ring"]
    slots = [r.results[0].type.shape[-2] for r in reads]
    if not same or slots[0] != slots[1] or index is not reads[0].results[1]:
        return None
    return Cached(node, (writes[0], writes[1]), (reads[0], reads[1]), (scaled[0], scaled[1]))


def _scaling(value: Value | None, producer: Mapping[Value, Node]) -> tuple[Node, ...]:
    """Return the products with, then sums with, weights that make ``value``, the first one first."""
    found: list[Node] = []
    for op in ("add", "mul"):
        node = producer.get(value) if value is not None else None
        if node is not None and node.op == op and node.operands[1] is not None and node.operands[1].weight:
            found.insert(0, node)
            value = node.operands[0]
    return tuple(found)


def _members(fused: Fused) -> list[Node]:
    """The nodes that the fused operator stands for, itself not counted."""
    heads = [*fused.q.nodes, *fused.k.nodes, *fused.v.nodes]
    return [*fused.cached.writes, *fused.divides, *heads, *fused.merge, *(fused.linears or ())]


def _fused(cached: Cached, uses: Uses) -> Fused | str:
    node = cached.node
    if node.op == "mla":
        return "no operator computes latent attention; standard Attention over the latent with one KV head does"
    if node.op == "block_attention":
        return "no operator reads recent tokens beside codes; standard Attention over both does"
    q, k, v, q_index = node.operands[:4]
    assert q is not None
    assert k is not None
    assert v is not None
    assert q_index is not None
    if cached.ring:
        return "the states are rings (rule 1)"
    divides = _static(cached, uses)
    if isinstance(divides, str):
        return divides
    if k.type.shape[-1] != v.type.shape[-1]:
        return "keys and values differ in size (rule 1)"
    size = k.type.shape[-1]
    if not isinstance(size, int) or size % HEAD_MULTIPLE:
        return f"the operator wants head sizes that {HEAD_MULTIPLE} divides, not {size} (rule 1)"
    if node.operands[6] is not None:
        return "the call may be a token tree (rule 2)"
    if not _counts_on(q_index, cached.start, uses):
        return "the queries' index is not start + 0..T-1 (rule 3)"
    written = [n.operands[0] for n in divides] or [n.operands[1] for n in cached.writes]
    parts = [_heads(v, uses) for v in (q, *written)]
    for name, part in zip(("queries", "keys", "values"), parts, strict=True):
        if part is None:
            return f"the {name} are read elsewhere too, or are not heads of one projection (rule 5)"
    of_q, of_k, of_v = (p for p in parts if p is not None)
    if of_v.rope is not None or of_v.norm is not None:
        return "the values are rotated or normed (rule 4)"
    if not _alike(of_q.rope, of_k.rope):
        return "queries and keys are rotated differently (rule 4)"
    merge = _merge(node, uses)
    if merge is None:
        return "the result is not merged into [B, T, H*D] (rule 5)"
    scales = [v for n in divides if (v := n.operands[1]) is not None]
    pair = (scales[0], scales[1]) if scales else None
    return Fused(cached, of_q, of_k, of_v, _packed(of_q, of_k, of_v, uses), merge, pair, divides)


def _static(cached: Cached, uses: Uses) -> tuple[Node, ...] | str:
    """Return the divisions by static scales before the writes (none for f32 states), or why the states do not fit."""
    elements = [n.operands[0].type.element for n in cached.writes if n.operands[0] is not None]
    if all(e == DType.F32 for e in elements):
        return () if cached.scaled == ((), ()) else "the keys are scaled (rule 1)"
    first, second = elements
    if not isinstance(first, Storage) or first != second or first.kind not in ("i8", "i4") or first.scale != "one":
        return "the states are neither f32 nor i8 or i4 with static scales, both alike (rule 1)"
    divides: list[Node] = []
    for write, scaled in zip(cached.writes, cached.scaled, strict=True):
        units = write.operands[1]
        node = uses.producer.get(units) if units is not None else None
        factors = [n.operands[1] for n in scaled if n.op == "mul"]
        if node is None or node.op != "div" or len(scaled) != 1 or factors != [node.operands[1]]:
            return "the static scales have offsets, or differ between writing and reading (rule 1)"
        if uses.count(node.result) != 1 or node.operands[1] is None or not node.operands[1].weight:
            return "the scaled keys are read elsewhere too (rule 5)"
        divides.append(node)
    return tuple(divides)


def _counts_on(q_index: Value, start: Value, uses: Uses) -> bool:
    """Whether q_index is add(reshape(start), iota)."""
    add = uses.producer.get(q_index)
    if add is None or add.op != "add":
        return False
    left, right = (uses.producer.get(v) if v is not None else None for v in add.operands)
    return (
        left is not None
        and right is not None
        and left.op == "reshape"
        and left.operands[0] is start
        and right.op == "iota"
    )


def _heads(value: Value | None, uses: Uses) -> Heads | None:
    """Walk back from [B, H, T, D]: rope? <- rms_norm? <- transpose <- reshape, each read once."""
    rope = norm = None
    nodes: list[Node] = []
    wanted = ["rope", "rms_norm", "transpose", "reshape"]
    while value is not None and wanted:
        node = uses.producer.get(value)
        if node is None or uses.count(value) != 1:
            return None
        while wanted and wanted[0] != node.op and wanted[0] in ("rope", "rms_norm"):
            wanted.pop(0)
        if not wanted or node.op != wanted[0]:
            return None
        wanted.pop(0)
        rope, norm = (node if node.op == "rope" else rope), (node if node.op == "rms_norm" else norm)
        if node.op == "transpose" and attrs_of(node)["perm"] != (0, 2, 1, 3):
            return None
        nodes.append(node)
        value = node.operands[0]
    if value is None or value.weight or value.type.rank != 3:
        return None
    return Heads(value, rope, norm, tuple(nodes))


def _alike(one: Node | None, other: Node | None) -> bool:
    if one is None or other is None:
        return one is other
    return attrs_of(one) == attrs_of(other) and one.operands[1] is other.operands[1]


def _merge(node: Node, uses: Uses) -> tuple[Node, Node] | None:
    turned = uses.only_user(node.result)
    if turned is None or turned.op != "transpose" or attrs_of(turned)["perm"] != (0, 2, 1, 3):
        return None
    merged = uses.only_user(turned.result)
    if merged is None or merged.op != "reshape" or merged.result.type.rank != 3:
        return None
    return turned, merged


def _packed(q: Heads, k: Heads, v: Heads, uses: Uses) -> tuple[Node, Node, Node] | None:
    if q.norm is not None or k.norm is not None:
        return None
    linears: list[Node] = []
    for part in (q, k, v):
        node = uses.producer.get(part.source)
        if node is None or node.op != "linear" or uses.count(part.source) != 1:
            return None
        if not all(w is None or w.weight for w in node.operands[1:]):
            return None
        linears.append(node)
    first = linears[0]
    if any(
        n.operands[0] is not first.operands[0]
        or (n.operands[2] is None) != (first.operands[2] is None)
        or attrs_of(n)["act"] != attrs_of(first)["act"]
        or _element(n) != _element(first)
        for n in linears
    ):
        return None
    return linears[0], linears[1], linears[2]


def _element(linear: Node) -> ElementType | None:
    """The storage type of a weight; plain ones lie side by side whatever they are."""
    weight = linear.operands[1]
    return weight.type.element if weight is not None and isinstance(weight.type.element, Storage) else None


def _skip(node: Node, uses: Uses, absorbed: set[str]) -> Node | None:
    """Return the rms_norm of a residual sum, the first of them."""
    if node.op != "add" or node.name in absorbed or node.result.type.rank != 3 or not node.result.type.is_float:
        return None
    if any(v is None or v.weight or v.type.shape != node.result.type.shape for v in node.operands):
        return None
    for user, _ in uses.users.get(node.result, []):
        if user.op == "rms_norm" and user.operands[1] is not None and user.name not in absorbed:
            return user
    return None
