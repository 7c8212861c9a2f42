"""Which keys each query sees: masks recognised by what they let through.

A mask is a function of integers: where a row starts, how far a token is into the call, which slot a key is in.  It is
evaluated at the beginning, the middle and the end of the cache, wrapped rings and ragged rows included, and compared
with the rule of ``attention``, whose window is read off the longest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.ir.op import Array
from omnic.ir.ops.attention import visible_keys
from omnic.ir.types import DType
from omnic.passes.fusion.look import Declined, Look, Site
from omnic.passes.fusion.probe import depends_on, run, shape_at, sizes
from omnic.passes.fusion.scores import HIDDEN, Masking, Scores, arrange

__all__ = ["Cache", "Visibility", "cache_of", "is_mask", "see"]

_TOKENS = 5


@dataclass(frozen=True)
class Cache:
    """Where the keys come from: the slots of a state, read by the node ``read``."""

    read: Node
    slots: int
    ring: bool

    @property
    def start(self) -> Value:
        """Tokens committed before this call, i64 [B]."""
        start = self.read.operands[1]
        assert start is not None
        return start

    @property
    def length(self) -> Value:
        """Tokens of this call, i64 [B]."""
        length = self.read.operands[2]
        assert length is not None
        return length


@dataclass(frozen=True)
class Visibility:
    """What a mask turned out to be.

    Attributes:
        window: attended keys, 0 = all.
        query: the queries' own logical indices, None when they are ``start + t``.
        parents: the token tree of the call, or None.
    """

    window: int
    query: Value | None = None
    parents: Value | None = None


def is_mask(look: Look, value: Value) -> bool:
    """Whether a value is made of integers, bools and constants alone, without any product."""
    inputs = [look.params[v] for v in depends_on(look, value) if v in look.params]
    if any(p.value.type.is_float or p.state is not None for p in inputs):
        return False
    pending, seen = [value], set[Value]()
    while pending:
        top = pending.pop()
        node = look.node(top)
        if top in seen or node is None:
            continue
        if node.op in ("matmul", "linear", "embedding"):
            return False
        seen.add(top)
        pending.extend(node.inputs())
    return True


def cache_of(look: Look, keys: Value) -> Cache | None:
    """Return the state that keys are made from, token by token; None when they come from this call alone.

    Raises:
        Declined: they come from states that were read at different places.
    """
    reads: dict[int, Node] = {}
    pending, seen = [keys], set[Value]()
    while pending:
        top = pending.pop()
        if top in seen or len(seen) > 64:
            continue
        seen.add(top)
        node = look.node(top)
        if node is None or node.op in ("softmax", "attention", "mla", "rms_norm", "layer_norm", "rope"):
            continue
        if node.op == "cache_read":
            reads[look.number_of(node.results[1])] = node
            continue
        pending.extend(v for v in node.inputs() if v.type.is_float)
    found = list(reads.values())
    if not found:
        return None
    first = found[0]
    for other in found[1:]:
        alike = all(look.same(a, b) for a, b in zip(first.operands[1:], other.operands[1:], strict=True)
                    if a is not None and b is not None)
        if not alike or other.attrs != first.attrs or other.results[1].type != first.results[1].type:
            raise Declined("keys come from states that are read at different places", other)
    slots = first.results[0].type.shape[-2]
    if not isinstance(slots, int):
        raise Declined(f"the state has {slots} slots, which is no number", first)
    return Cache(first, slots, bool(first.attrs.get("ring", False)))


@dataclass(frozen=True)
class _Case:
    """One evaluation: symbols, arrays for the parameters, and the indices that attention would be given."""

    dims: dict[str, int]
    given: dict[Value, Array]
    query: Array
    key: Array
    start: Array
    rows: Array


def see(look: Look, scores: Scores, cache: Cache | None, batch: Dim, heads: int, tokens: Dim, slots: Dim,
        node: Node) -> Visibility:
    """Return the rule that the masks of ``scores`` follow.

    Raises:
        Declined: there is no mask, it depends on other things, or it follows no rule of attention.
    """
    if not scores.masks:
        raise Declined("there is no mask: every key is seen, later ones too", node)
    if cache is None and tokens != slots:
        raise Declined(f"{slots} keys of no state for {tokens} queries", node)
    own = frozenset[Value]() if cache is None else depends_on(look, cache.start) | depends_on(look, cache.length)
    others: set[Value] = set()
    for mask in scores.masks:
        others |= {v for v in depends_on(look, mask.value) - own if v in look.params}
    query, parents = _roles(look, others, cache, node)
    cases = [_case(look, cache, batch, tokens, query, parents, which) for which in range(4)]
    found = [_visible(look, scores, case, heads) for case in cases]
    window = _window(cases, found, parents is not None)
    for case, seen in zip(cases, found, strict=True):
        tree = case.given[parents] if parents is not None else None
        wanted = visible_keys(case.query, case.key, window, tree, case.start if parents is not None else None)
        if not np.array_equal(seen[case.rows], wanted[case.rows]):
            place = np.argwhere((seen != wanted) & case.rows[:, :, None])[0]
            raise Declined(
                f"the mask {'shows' if seen[tuple(place)] else 'hides'} key {place[2]} "
                f"{'to' if seen[tuple(place)] else 'from'} query {case.query[place[0], place[1]]}, "
                f"a causal mask{f' with window {window}' if window else ''} does not", _first(look, scores, node))
    return Visibility(window, query, parents)


def _first(look: Look, scores: Scores, node: Node) -> Node:
    return look.node(scores.masks[0].value) or node


def _roles(look: Look, others: set[Value], cache: Cache | None, node: Node) -> tuple[Value | None, Value | None]:
    """Return which parameter holds the queries' indices and which the tree, of those that a mask also reads."""
    query: Value | None = None
    parents: Value | None = None
    for value in sorted(others, key=lambda v: v.name):
        if value.type.element != DType.I64 or value.type.rank != 2:
            raise Declined(f"the mask depends on {value}: {value.type}", node)
        if value.name == "parents" and cache is not None:
            parents = value
        elif query is None:
            query = value
        else:
            raise Declined(f"the mask depends on {query} and on {value}", node)
    return query, parents


def _case(look: Look, cache: Cache | None, batch: Dim, tokens: Dim, query: Value | None, parents: Value | None,
          which: int) -> _Case:
    """Make one of four cases: the empty cache, its middle, its end, and for a ring twice around."""
    most = look.module.dims
    wide = max((r.high for r in most.values()), default=1) if cache is None and which == 0 else _TOKENS
    dims = sizes(most, B=2, T=min(wide, cache.slots) if cache is not None else wide)
    rows, steps = shape_at((batch, tokens), dims)
    room = cache.slots if cache is not None else steps
    ends = [(0, 1), (room // 2, room // 3), (room - steps, max(room - steps - 1, 0)),
            (2 * room + 3, room + 1) if cache is not None and cache.ring else (1, 0)]
    start = np.resize(np.asarray(ends[which], np.int64), rows) if cache is not None else np.zeros(rows, np.int64)
    start = np.maximum(start if cache is None or cache.ring else np.minimum(start, room - steps), 0)
    length = np.full(rows, steps, np.int64)
    if which == 1 and cache is not None and rows > 1:
        length[-1] = max(steps - 2, 1)
    random = np.random.default_rng(which)
    index = start[:, None] + np.arange(steps)
    given: dict[Value, Array] = {}
    key = index
    if cache is not None:
        given |= {cache.start: start, cache.length: length}
        slot = np.arange(room)[None]
        last = (start + length - 1)[:, None]
        key = np.maximum(last - (last - slot) % room if cache.ring else np.where(slot <= last, slot, -1), -1)
    if query is not None:
        index = index if which % 2 == 0 else np.maximum(index - random.integers(0, 3, index.shape), 0)
        key = index if cache is None else key
        given[query] = index.reshape(shape_at(query.type.shape, dims))
    if parents is not None:
        given[parents] = np.stack([[int(random.integers(-1, t)) if t else -1 for t in range(steps)]
                                   for _ in range(rows)])
    return _Case(dims, given, index, key, start, np.arange(steps)[None] < length[:, None])


def _visible(look: Look, scores: Scores, case: _Case, heads: int) -> Array:
    """Return bool [B, T, S]: what all masks together let through."""
    together: Array | None = None
    for mask in scores.masks:
        one = _evaluate(look, mask, case)
        together = one if together is None else together & one
    assert together is not None
    rows, steps = case.query.shape
    every = together.reshape(rows, heads, steps, -1)
    if not (every == every[:, :1]).all():
        raise Declined("the mask differs between heads", look.node(scores.masks[0].value))
    return every[:, 0]


def _evaluate(look: Look, mask: Masking, case: _Case) -> Array:
    array = run(look, mask.value, case.given, case.dims)
    if mask.kind == "add":
        hidden = array <= HIDDEN
        if not np.all(hidden | (array == 0)):
            raise Declined(f"{mask.value} adds numbers to the scores that hide nothing", look.node(mask.value))
        array = ~hidden
    kept = array.astype(bool) if mask.kind != "drop" else ~array.astype(bool)
    return arrange(mask.above, np.broadcast_to(kept, shape_at(mask.shape.type.shape, case.dims)), case.dims)


def _window(cases: list[_Case], found: list[Array], tree: bool) -> int:
    """Read the window off the rows: the fewest keys a query sees that has more before it."""
    if tree:
        return _tree_window(cases, found)
    counts = [(int(seen[r, t].sum()), int(case.query[r, t]) + 1)
              for case, seen in zip(cases, found, strict=True)
              for r, t in np.argwhere(case.rows)]
    short = [count for count, all_keys in counts if count < all_keys]
    return max(short, default=0)


def _tree_window(cases: list[_Case], found: list[Array]) -> int:
    """With a tree, the window is read off the committed keys: tokens of the call may be hidden for being no parents."""
    reach: list[int] = []
    for case, seen in zip(cases, found, strict=True):
        for r, t in np.argwhere(case.rows):
            old = case.key[r][seen[r, t] & (case.key[r] < case.start[r])]
            if old.size and old.min() > 0:
                reach.append(int(case.query[r, t] - old.min()) + 1)
    return max(reach, default=0)


def indices(site: Site, visibility: Visibility, cache: Cache | None, batch: Dim, tokens: Dim) -> tuple[Value, Value]:
    """Build the queries' and the keys' logical indices, i64 [B, T] and i64 [B, S]."""
    b = site.b
    if visibility.query is not None:
        query = site.current(visibility.query)
        if query.type.shape != (batch, tokens):
            query = b.op("broadcast", query, shape=(batch, tokens))
    elif cache is not None:
        start = site.current(cache.start)
        query = b.op("add", b.reshape(start, batch, 1), b.op("iota", size=(tokens,)), hint="q_index")
    else:
        query = b.op("broadcast", b.op("iota", size=(tokens,)), shape=(batch, tokens), hint="q_index")
    return query, query if cache is None else site.current(cache.read.results[1])
