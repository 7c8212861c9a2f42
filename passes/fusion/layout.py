"""Which heads, tokens and keys stand where: layouts read off by moving numbered elements.

Between a projection and a product, exporters split, transpose, repeat and merge heads in many ways.  All of that
only moves elements, so the piece is run on the elements' own numbers; what comes out says exactly what stands where.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.ir.op import Array
from omnic.passes.fusion.look import Declined, Look, Site
from omnic.passes.fusion.probe import constant, depends_on, run, scalar_of, shape_at, walk_back

__all__ = ["MOVES", "Heads", "declined_layout", "heads_of", "rows_of_product"]

MOVES = frozenset({"reshape", "transpose", "broadcast", "slice", "split", "concat", "index_select", "gather", "cast"})
_NODES = 24
# More elements than this are not numbered: such a layout is declined.
_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Heads:
    """Heads found in the order a composite wants.

    Attributes:
        value: what holds them.
        shape: [B, G, S, D], the composite's order.
        split: the shape to give ``value`` first, when its heads are merged.
        swap: whether heads and tokens are then swapped.
        factor: what the piece multiplies every element by.
        operand: element numbers of the product's operand, in terms of [B, G, S, D].
        distance: how far back the value lies.
    """

    value: Value
    shape: tuple[Dim, ...]
    split: tuple[Dim, ...] | None
    swap: bool
    factor: float
    operand: Array
    distance: int

    def build(self, site: Site) -> Value:
        """Return the heads as a value [B, G, S, D]."""
        now = site.current(self.value)
        if self.split is not None and now.type.shape != self.split:
            now = site.b.reshape(now, *self.split)
        return site.b.op("transpose", now, perm=(0, 2, 1, 3)) if self.swap else now


def _factor(look: Look, node: Node) -> float | None:
    """Return the number that a node multiplies one operand by, None when it is no such node."""
    if node.op not in ("mul", "div") or len(node.operands) != 2:
        return None
    left, right = node.operands
    by = None if right is None else scalar_of(look, right)
    if by is not None and left is not None and left.type.shape == node.result.type.shape:
        return 1.0 / by if node.op == "div" and by else by if node.op == "mul" else None
    by = None if left is None or node.op == "div" else scalar_of(look, left)
    return by if by is not None and right is not None and right.type.shape == node.result.type.shape else None


def heads_of(look: Look, operand: Value, batch: Dim, tokens: Dim, width: Dim, most: int,
             dims: dict[str, int], swapped: bool) -> list[Heads]:
    """Return the readings of a product's operand as heads [batch, G, tokens, width], G a divisor of ``most``.

    The first is the best.  ``swapped`` says that the operand holds [.., width, tokens].
    """
    factors: dict[Node, float] = {}

    def through(node: Node) -> bool:
        factor = _factor(look, node)
        if factor is not None:
            factors[node] = factor
        return factor is not None or node.op in MOVES

    chain = [operand, *walk_back(look, operand, through,
                                 lambda v: not v.weight and not depends_on(look, v) and constant(look, v) is not None,
                                 _NODES)]
    found: list[Heads] = []
    for distance, value in enumerate(chain):
        if value.type.element != operand.type.element:
            continue
        for shape, split, swap in _readings(value, batch, tokens, width, most):
            heads = _trace(look, operand, value, shape, split, swap, dims, swapped, distance)
            if heads is not None:
                found.append(heads)
    return sorted(found, key=_preference)


def _preference(heads: Heads) -> tuple[int, bool, int]:
    """Fewest heads; then what needs no new layout, the farthest of those; else the nearest."""
    moved = heads.swap or heads.split is not None
    return int(str(heads.shape[1])), moved, heads.distance if moved else -heads.distance


def _readings(value: Value, batch: Dim, tokens: Dim, width: Dim, most: int
              ) -> list[tuple[tuple[Dim, ...], tuple[Dim, ...] | None, bool]]:
    """Return how a value may be read as heads: the shape [B, G, S, D], the split before it, and the swap."""
    shape = value.type.shape
    out: list[tuple[tuple[Dim, ...], tuple[Dim, ...] | None, bool]] = []
    for count in (c for c in range(1, most + 1) if most % c == 0):
        straight, across = (batch, count, tokens, width), (batch, tokens, count, width)
        if shape == straight:
            out.append((straight, None, False))
        elif shape == across:
            out.append((straight, None, True))
        elif shape in ((batch * count, tokens, width), (batch, count, 1, tokens, width)):
            out.append((straight, straight, False))
        elif count > 1 and shape == (batch, tokens, count * width):
            out.append((straight, across, True))
        elif count == 1 and shape == (batch, tokens, width):
            out.append((straight, straight, False))
    return out


def _trace(look: Look, operand: Value, value: Value, shape: tuple[Dim, ...], split: tuple[Dim, ...] | None, swap: bool,
           dims: dict[str, int], swapped: bool, distance: int) -> Heads | None:
    sizes = shape_at(shape, dims)
    count = int(np.prod(sizes))
    if count > _ELEMENTS or int(np.prod(shape_at(operand.type.shape, dims))) > _ELEMENTS:
        return None
    numbers = 1.0 + np.arange(count, dtype=np.float64).reshape(sizes)
    base = numbers.swapaxes(1, 2) if swap else numbers
    moved = run(look, operand, {value: base.reshape(shape_at(value.type.shape, dims))}, dims)
    # The elements are numbered from 1, so the smallest number that arrives is the factor itself.
    factor = 1.0 if value is operand else float(moved.min())
    if factor <= 0:
        return None
    numbered = np.rint(moved / factor) - 1.0
    if not np.allclose(numbered, moved / factor - 1.0, atol=1e-6):
        return None
    found = numbered.swapaxes(-1, -2) if swapped else numbered
    width = sizes[3]
    rows = found[..., :1]
    if not np.array_equal(found, rows + np.arange(width)) or np.any(rows % width):
        return None
    return Heads(value, shape, split, swap, factor, (rows[..., 0] // width).astype(np.int64), distance)


def rows_of_product(left: Array, right: Array) -> tuple[Array, Array]:
    """Return, for each element of a product, which row of the left and of the right operand it is made of."""
    lead = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    shape = (*lead, left.shape[-1], right.shape[-1])
    return np.broadcast_to(left[..., :, None], shape), np.broadcast_to(right[..., None, :], shape)


def declined_layout(what: str, value: Value, node: Node) -> Declined:
    """Return the near-miss of an operand whose layout was not understood."""
    return Declined(f"{what} ({value}: {value.type}) is not heads by tokens by width in an order that is known", node)
