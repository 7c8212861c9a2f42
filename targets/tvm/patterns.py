"""Attention that reads its states where they lie: which nodes can, and with what.

``attention`` or ``mla`` runs on states in place when

1. keys and values (latent and rotated keys) are ``cache_read`` of states, for the same ``start`` and ``length``,
2. nothing writes these states between the read and the attention,
3. the index of the keys is that of one of the reads, and that of the queries is ``start + 0, 1, ...``,
4. a token tree counts from the same ``start``,
5. it reads no ring of recent tokens beside a state.

Otherwise it is decomposed into core ops.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnic.ir.graph import Function, Node, Uses, Value
from omnic.targets.cut import state_values

__all__ = ["AttentionForm", "attention_forms"]


@dataclass(frozen=True)
class AttentionForm:
    """How one attention runs.

    Attributes:
        states: names of the states that it reads, keys (latent) first.
        ring: whether they are rings.
        start: tokens committed before the call.
        length: valid tokens of the call.
        parents: of a token tree, or None.
        inputs: every value that it reads when it runs.
    """

    states: tuple[str, str]
    ring: bool
    start: Value
    length: Value
    parents: Value | None
    inputs: tuple[Value, ...]


def attention_forms(function: Function) -> dict[str, AttentionForm]:
    """Return name of a node -> how it runs on states in place, for those that can."""
    uses = Uses(function)
    states = state_values(function)
    place = {node: at for at, node in enumerate(function.nodes)}
    found: dict[str, AttentionForm] = {}
    for node in function.nodes:
        form = _form(node, uses, states, place) if node.op in ("attention", "mla") else None
        if form is not None:
            found[node.name] = form
    return found


def _form(node: Node, uses: Uses, states: dict[Value, str], place: dict[Node, int]) -> AttentionForm | None:
    operands = node.operands
    if node.op == "attention":
        own, (k, v), (q_index, k_index) = operands[:1], operands[1:3], operands[3:5]
        sinks, parents, tree_start = operands[5:8]
        extra: tuple[Value | None, ...] = (sinks,)
    else:
        if any(x is not None for x in operands[10:12]):
            return None
        own, (k, v), (q_index, k_index) = operands[:2], operands[2:4], operands[6:8]
        parents, tree_start = operands[8:10]
        extra = operands[4:6]
    reads: list[Node] = []
    for value in (k, v):
        assert value is not None
        read = uses.producer.get(value)
        if read is None or read.op != "cache_read" or value is not read.results[0] or read.operands[0] not in states:
            return None
        reads.append(read)
    start, length = reads[0].operands[1:3]
    assert start is not None and length is not None and q_index is not None
    if reads[1].operands[1:3] != (start, length) or not any(k_index is r.results[1] for r in reads):
        return None
    ring = bool(reads[0].attrs.get("ring", False))
    if bool(reads[1].attrs.get("ring", False)) != ring or _counts_from(q_index, uses) is not start:
        return None
    if parents is not None and tree_start is not start:
        return None
    sources: list[Value] = []
    for read in reads:
        source = read.operands[0]
        assert source is not None
        written = [n for n, _ in uses.users.get(source, []) if n.op in ("cache_write", "cache_move", "cache_close")]
        if any(place[n] < place[node] for n in written):
            return None
        sources.append(source)
    inputs = (*own, *sources, start, length, parents, *extra)
    present = tuple(v for v in inputs if v is not None)
    return AttentionForm((states[sources[0]], states[sources[1]]), ring, start, length, parents, present)


def _counts_from(index: Value, uses: Uses) -> Value | None:
    """Return ``start`` where ``index`` is ``start[:, None] + iota``, else None."""
    node = uses.producer.get(index)
    if node is None or node.op != "add":
        return None
    made = [uses.producer.get(v) for v in node.inputs()]
    first = next((n for n in made if n is not None and n.op == "reshape"), None)
    steps = next((n for n in made if n is not None and n.op == "iota"), None)
    if first is None or steps is None or steps.result.type.shape != (index.type.shape[-1],):
        return None
    return first.operands[0]
