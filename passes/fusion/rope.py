"""Rotary position embeddings from tables of cosines and sines.

A rotation is a small linear function of x, its coefficients functions of integer positions.  Layouts, halves and
neighbours, angles by product, by table or in split turns: the piece between the root and x is evaluated on random
numbers at positions up to the end of the context and compared with ``rope``; frequencies are read off the table at
position 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.op import Array, find_op
from omnic.ir.types import DType
from omnic.passes.fusion.frequencies import Frequencies, fit
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site
from omnic.passes.fusion.probe import Frontier, constant, depends_on, run, shape_at, sizes

__all__ = ["ROPE"]

_MOVES = frozenset({"add", "sub", "mul", "neg", "concat", "slice", "split", "reshape", "transpose", "broadcast",
                    "index_select", "gather", "cast"})
# What angles and tables are made with.
_ANGLES = _MOVES | {"constant", "iota", "cos", "sin", "div", "round", "floordiv", "mod", "matmul", "where", "pow",
                    "exp"}
_NODES = 40
# Positions that every table is looked at, besides powers of two up to the end of the context.
_EARLY = 24
# What rounding a table, or the frequency it came from, to f32 does to a cosine: absolute, and per radian of the angle.
_ROUNDED, _ROUNDED_ANGLE = 3e-7, 4e-7
_EXACT = 1e-12


@dataclass(frozen=True)
class _Rotation:
    """A rotation as found: x, its layout, the positions, and the piece between."""

    x: Value
    positions: Value
    tokens: int
    root: Value


def _is_table(look: Look, value: Value) -> bool:
    """Whether a value is a function of integer positions and constants alone that holds a cosine, a sine or a table."""
    key = ("table", value)
    if key not in look.cache:
        look.cache[key] = _holds_table(look, value)
    return bool(look.cache[key])


def _holds_table(look: Look, value: Value) -> bool:
    if not value.type.is_float or not depends_on(look, value):
        return False
    pending, seen, turned = [value], set[Value](), False
    while pending:
        top = pending.pop()
        if top in seen or not top.type.is_float:
            continue
        seen.add(top)
        node = look.node(top)
        if node is None:
            if not top.weight or not _is_vector(top):
                return False
            continue
        if node.op not in _ANGLES:
            return False
        table = node.operands[0] if node.operands else None
        if node.op == "index_select" and table is not None and not depends_on(look, table):
            turned = True
            continue
        turned = turned or node.op in ("cos", "sin")
        pending.extend(node.inputs())
    return turned


def _is_vector(value: Value) -> bool:
    """Whether a weight is a vector in any shape, as inverse frequencies are and projections are not."""
    return value.type.size in (1, *value.type.shape)


def _rotate(look: Look, node: Node) -> Plan | None:
    """Rules 1 to 4: find x, the positions and the layout; read the frequencies; compare; replace."""
    found = _find(look, node)
    if found is None:
        return None
    rotation, tables = found
    return _decide(look, node, rotation, tables)


def _find(look: Look, node: Node) -> tuple[_Rotation, set[Value]] | None:
    """Walk back to the one value x that is turned."""
    tables: set[Value] = set()

    def ignore(value: Value) -> bool:
        if _is_table(look, value):
            tables.add(value)
            return True
        return constant(look, value) is not None if not value.weight else False

    if _is_table(look, node.result) or not node.result.type.is_float:
        return None
    frontier = Frontier(look, node.result, ignore)
    best: Value | None = None
    for _ in range(_NODES):
        if not frontier.step(lambda n: n.op in _MOVES):
            break
        x = frontier.single()
        if x is None or not tables or not _alike(x, node.result) or x.weight:
            continue
        best = x
        break
    if best is None or len(tables) < 2:
        return None
    if not any(n.op == "mul" for n in frontier.nodes):
        return None
    positions = _positions(look, tables, node)
    batch, steps = positions.type.shape[0], positions.type.shape[-1]
    shape = best.type.shape
    places = [i for i, d in enumerate(shape[1:-1], 1) if d == steps]
    if len(shape) not in (3, 4) or shape[0] != batch or not places:
        if (len(shape) in (3, 4) and positions.type.rank == 1) or batch == 1:
            places = [i for i, d in enumerate(shape[1:-1], 1) if d == steps]
        if not places or len(shape) not in (3, 4):
            raise Declined(f"{best} is {best.type}, which is no [B, H, T, R] for positions {positions.type}", node)
    tokens = 2 if len(shape) == 4 and 2 in places else places[0]
    return _Rotation(best, positions, tokens, node.result), tables


def _alike(x: Value, root: Value) -> bool:
    """Whether two values have one shape, but for a head dim of 1 that only the second has."""
    wide, shape = root.type.shape, x.type.shape
    return shape == wide or (len(wide) == 4 and wide[1] == 1 and shape == (wide[0], *wide[2:]))


def _positions(look: Look, tables: set[Value], node: Node) -> Value:
    """Return the integer value that every table is a function of."""
    found: Value | None = None
    for table in sorted(tables, key=lambda v: v.name):
        one = _position_of(look, table, node)
        if found is not None and not look.same(one, found):
            raise Declined(f"one table is of {found}, another of {one}", node)
        found = one
    assert found is not None
    return found


def _position_of(look: Look, table: Value, node: Node) -> Value:
    frontier = Frontier(look, table, lambda v: v.weight or not depends_on(look, v))
    for _ in range(4 * _NODES):
        single = frontier.single()
        if single is not None and single.type.element == DType.I64 and single.type.rank in (1, 2):
            inner = look.is_op(single, "reshape", "cast", "broadcast")
            if inner is None or inner.operands[0] is None or inner.operands[0].type.element != DType.I64:
                return single
        if not frontier.step(lambda n: True):
            break
    raise Declined(f"{table} is not a function of one integer value", node)


def _decide(look: Look, node: Node, rotation: _Rotation, tables: set[Value]) -> Plan:
    x, positions = rotation.x, rotation.positions
    probe = _Probe.of(look, rotation)
    outcome = probe.outcome(look, probe.spots(look))
    dims, interleaved, crossed = probe.layout(outcome, node)
    probe = replace(probe, crossed=crossed)
    key = ("rope", tuple(sorted(look.number_of(t) for t in tables)), dims, interleaved, crossed)
    fitted = look.cache.get(key)
    if fitted is None:
        at_one = probe.angles(look, dims, interleaved)
        fitted = fit(at_one, _context(look), look.exact)
        look.cache[key] = fitted if fitted is not None else "none"
    if not isinstance(fitted, Frequencies):
        raise Declined("the frequencies of the table are those of no scaling of rope", node)
    attrs: dict[str, Any] = {"dims": dims, "interleaved": interleaved, **fitted.attrs()}
    probe.check(look, attrs, node)

    def build(site: Site) -> tuple[Value, ...]:
        b, now = site.b, site.current(x)
        if crossed:
            now = _halves(site, now)
        where = _as_rows(site, positions, x, rotation.tokens)
        if rotation.tokens == 1 and x.type.rank == 4:
            turned = b.op("rope", b.op("transpose", now, perm=(0, 2, 1, 3)), where, hint="rot", **attrs)
            return (b.op("transpose", turned, perm=(0, 2, 1, 3)),)
        turned, shape = b.op("rope", now, where, hint="rot", **attrs), rotation.root.type.shape
        return (turned if turned.type.shape == shape else b.reshape(turned, *shape),)

    return Plan((rotation.root,), build, f"{dims} dims, {fitted}")


def _halves(site: Site, x: Value) -> Value:
    """Return x with the first numbers of all pairs before the second ones."""
    lead, width = x.type.shape[:-1], x.type.shape[-1]
    assert isinstance(width, int)
    rank = x.type.rank
    pairs = site.b.reshape(x, *lead, width // 2, 2)
    return site.b.reshape(site.b.op("transpose", pairs, perm=(*range(rank - 1), rank, rank - 1)), *lead, width)


def _as_rows(site: Site, positions: Value, x: Value, tokens: int) -> Value:
    """Return the positions as i64 [B, T]."""
    now = site.current(positions)
    wanted = (x.type.shape[0], x.type.shape[tokens])
    if now.type.shape == wanted:
        return now
    if now.type.rank == 1:
        now = site.b.reshape(now, 1, *now.type.shape)
    return now if now.type.shape == wanted else site.b.op("broadcast", now, shape=wanted, hint="positions")


def _context(look: Look) -> int:
    known = look.module.meta.get("context", look.module.meta.get("capacity", 0))
    return known if isinstance(known, int) and known > 1 else 2048


@dataclass(frozen=True)
class _Probe:
    """The piece under evaluation, for one rotation."""

    rotation: _Rotation
    dims: dict[str, int]
    shape: tuple[int, ...]
    tokens: int
    crossed: bool = False

    @classmethod
    def of(cls, look: Look, rotation: _Rotation) -> _Probe:
        """Choose sizes: two rows, as many tokens as there is room for."""
        chosen = sizes(look.module.dims, T=6, B=2)
        shape = shape_at(rotation.x.type.shape, chosen)
        return cls(rotation, chosen, shape, shape[rotation.tokens])

    def spots(self, look: Look) -> Array:
        """Return positions for one evaluation, different in each row where rows have their own."""
        count = int(np.prod(shape_at(self.rotation.positions.type.shape, self.dims)))
        return (1 + np.arange(count, dtype=np.int64)).reshape(shape_at(self.rotation.positions.type.shape, self.dims))

    def outcome(self, look: Look, spots: Array, x: Array | None = None) -> tuple[Array, Array]:
        """Return x and what becomes of it, tokens moved to the last dim but one.

        When pairs of neighbours go in and halves come out (``crossed``), x is returned in halves.
        """
        given = np.random.default_rng(0).standard_normal(self.shape) if x is None else x
        entering = given
        if self.crossed:
            entering = given.reshape(*self.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(self.shape)
        found = run(look, self.rotation.root, {self.rotation.x: entering, self.rotation.positions: spots}, self.dims)
        found = found.reshape(self.shape)
        if self.rotation.tokens == 1 and len(self.shape) == 4:
            return given.swapaxes(1, 2), found.swapaxes(1, 2)
        return given, found

    def layout(self, outcome: tuple[Array, Array], node: Node) -> tuple[int, bool, bool]:
        """Return how many leading numbers are turned, whether pairs are neighbours, and whether only in x."""
        before, after = outcome
        width = before.shape[-1]
        moved = np.abs(after - before).max(axis=tuple(range(before.ndim - 1))) > 1e-12
        dims = int(np.max(np.nonzero(moved)[0])) + 1 if moved.any() else 0
        dims += dims % 2
        if dims == 0 or dims > width:
            raise Declined("nothing is turned", node)
        neighbours = np.arange(0, dims, 2), np.arange(1, dims, 2)
        halves = np.arange(dims // 2), np.arange(dims // 2, dims)
        ways = [(neighbours, neighbours), (halves, halves)] + ([(neighbours, halves)] if dims == width else [])
        spread = [_spread(before, after, *way) for way in ways]
        best = int(np.argmin(spread))
        if spread[best] > 1e-4:
            raise Declined("pairs of numbers do not keep their length: this is no rotation in pairs", node)
        return dims, best == 0, best == 2

    def angles(self, look: Look, dims: int, interleaved: bool) -> tuple[Array, Array]:
        """Return the angle of each pair at position 1, and its magnitude."""
        half = dims // 2
        x = np.zeros(self.shape)
        first = np.arange(0, dims, 2) if interleaved else np.arange(half)
        second = first + 1 if interleaved else first + half
        x[..., first] = 1.0
        _, got = self.outcome(look, np.ones_like(self.spots(look)), x)
        flat = got.reshape(-1, got.shape[-1])[0]
        return np.arctan2(flat[second], flat[first]), np.hypot(flat[first], flat[second])

    def check(self, look: Look, attrs: dict[str, Any], node: Node) -> None:
        """Compare with ``rope`` over positions up to the end of the context.

        Raises:
            Declined: they differ by more than rounding the tables to f32 explains.
        """
        shape = shape_at(self.rotation.positions.type.shape, self.dims)
        context = _context(look)
        spots = sorted({*range(min(_EARLY, context)), *(2**i for i in range(1, 20) if 2**i < context), context - 1})
        per = int(np.prod(shape))
        full = {n: a.default for n, a in _rope_defaults().items()} | attrs
        for begin in range(0, len(spots), per):
            chosen = np.resize(np.asarray(spots[begin : begin + per], np.int64), shape)
            before, after = self.outcome(look, chosen)
            rows = np.broadcast_to(chosen.reshape((1,) * (2 - chosen.ndim) + chosen.shape),
                                   (before.shape[0], before.shape[-2]))
            wanted = _turn(before, rows, full)
            angle = rows.reshape(rows.shape[0], *(1,) * (before.ndim - 3), rows.shape[1], 1)
            rounded = _EXACT * (1.0 + angle) if look.exact else _ROUNDED + _ROUNDED_ANGLE * angle
            bound = rounded * (1.0 + np.abs(before).max())
            if np.any(np.abs(wanted - after) > bound):
                raise Declined("what becomes of x is not what rope makes of it", node)


def _spread(before: Array, after: Array, entering: tuple[Array, Array], leaving: tuple[Array, Array]) -> float:
    """Return how much the growth of the pairs' lengths differs between pairs."""
    had = before[..., entering[0]] ** 2 + before[..., entering[1]] ** 2
    got = after[..., leaving[0]] ** 2 + after[..., leaving[1]] ** 2
    return float(np.max(np.abs(got / had - np.median(got / had))))


def _rope_defaults() -> dict[str, Any]:
    return {a.name: a for a in find_op("rope").attrs}


def _turn(x: Array, positions: Array, attrs: dict[str, Any]) -> Array:
    """Return what the op ``rope`` makes of x."""
    found = find_op("rope").reference(x, positions, **attrs)
    assert isinstance(found, np.ndarray)
    return found



def _joined(look: Look, node: Node) -> Plan | None:
    """Rule: two turned halves in a concat with what is not turned are a concat of their own, so that rope is seen."""
    parts = [v for v in node.operands if v is not None]
    if len(parts) < 3:
        return None
    for at, (left, right) in enumerate(pairwise(parts)):
        halves = [look.is_op(v, "sub", "add") for v in (left, right)]
        if left.type != right.type or any(n is None or not _turns(look, n) for n in halves):
            continue

        def build(site: Site, at: int = at) -> tuple[Value, ...]:
            now, axis = [site.current(v) for v in parts], node.attrs["axis"]
            turned = site.b.op("concat", *now[at : at + 2], axis=axis)
            return (site.b.op("concat", *now[:at], turned, *now[at + 2 :], axis=axis),)

        return Plan((node.result,), build)
    return None


def _turns(look: Look, node: Node) -> bool:
    """Whether a sum is that of two products with tables."""
    for value in node.operands:
        product = look.is_op(value, "mul", "neg")
        if product is None or not any(_is_table(look, v) for v in product.inputs()):
            return False
    return True


ROPE: tuple[Fusion, ...] = (
    Fusion("rope-halves", frozenset({"concat"}), _joined),
    Fusion("rope", frozenset({"concat", "add", "reshape"}), _rotate),
)
