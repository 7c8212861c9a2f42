"""Evaluating a piece of a function at small sizes: how tables, masks, layouts and activations are recognised.

Exporters compute one table, mask or activation in countless ways, but all of them are functions of very little: of
integer positions, of a number, of the order of elements.  Such a piece is evaluated with each op's own numpy meaning in
f64 and compared with what a composite means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from omnic.errors import InputError
from omnic.ir.dims import Dim, evaluate
from omnic.ir.graph import Node, Value
from omnic.ir.op import Array, find_op
from omnic.passes.fusion.look import Declined, Look

__all__ = ["Frontier", "constant", "depends_on", "number", "run", "scalar_of", "walk_back"]

# A weight larger than this is never read as a table.
_TABLE_NUMBERS = 1 << 24
# Nodes of a piece without inputs that is still worth evaluating as a constant.
_CONSTANT_NODES = 64


def run(look: Look, wanted: Value, given: Mapping[Value, Any], dims: Mapping[str, int]) -> Array:
    """Return ``wanted`` in f64 from the arrays of ``given``, symbols as in ``dims``.

    Raises:
        Declined: it also depends on something else, named in the reason.
    """
    values: dict[Value, Any] = dict(given)
    pending = [wanted]
    while pending:
        top = pending[-1]
        if top in values:
            pending.pop()
            continue
        node = look.node(top)
        if node is None:
            values[top] = _leaf(look, top)
            continue
        missing = [v for v in _needed(node, top) if v not in values]
        if missing:
            pending.extend(missing)
            continue
        values.update(_apply(node, values, dims))
    return np.asarray(values[wanted])


def _needed(node: Node, wanted: Value) -> list[Value]:
    """Return what a node needs; the index of a cache_read does not depend on the state's numbers."""
    skip = node.operands[0] if node.op == "cache_read" and wanted is node.results[1] else None
    return [v for v in node.inputs() if v is not skip]


def _apply(node: Node, values: Mapping[Value, Any], dims: Mapping[str, int]) -> dict[Value, Any]:
    op = find_op(node.op)
    attrs: dict[str, Any] = dict(op.bind(node.attrs))
    for attr in op.attrs:
        if attr.kind == "dims" and attrs[attr.name] is not None:
            attrs[attr.name] = tuple(evaluate(d, dims) for d in attrs[attr.name])
    operands = tuple(None if v is None else values[v] if v in values else _blank(v, dims) for v in node.operands)
    try:
        found: Any = op.reference(*op.arrange(operands), **attrs)
    except (InputError, ValueError, IndexError) as error:
        raise Declined(f"cannot be evaluated: {error}", node) from error
    results = cast("tuple[Any, ...]", found) if isinstance(found, tuple) else (found,)
    return dict(zip(node.results, results, strict=True))


def _blank(value: Value, dims: Mapping[str, int]) -> Array:
    return np.zeros(tuple(evaluate(d, dims) for d in value.type.shape))


def _leaf(look: Look, value: Value) -> Array:
    """Return the numbers of a weight that is small enough to be a table."""
    if not value.weight:
        raise Declined(f"depends on {value}")
    size = value.type.size
    if not isinstance(size, int) or size > _TABLE_NUMBERS:
        raise Declined(f"depends on {value}, which is too large for a table")
    key = ("weight", value.name)
    if key not in look.cache:
        if look.numbers is None:
            raise Declined(f"depends on {value}, and no weights were given")
        look.cache[key] = np.asarray(look.numbers.array(value.name))
    array = np.asarray(look.cache[key])
    return array.astype(np.float64) if value.type.is_float else array


def depends_on(look: Look, value: Value) -> frozenset[Value]:
    """Return the parameters, and the iotas of a symbolic size, that ``value`` depends on.

    The state behind the index of a cache_read is none of them.
    """
    key = ("depends", value)
    known = look.cache.get(key)
    if known is not None:
        return known  # type: ignore[return-value]
    pending = [value]
    while pending:
        top = pending[-1]
        if ("depends", top) in look.cache:
            pending.pop()
            continue
        node = look.node(top)
        if node is None:
            look.cache["depends", top] = frozenset([top]) if not top.weight else frozenset[Value]()
            continue
        if node.op == "iota" and not isinstance(top.type.size, int):
            look.cache["depends", top] = frozenset([top])
            continue
        needed = _needed(node, top)
        missing = [v for v in needed if ("depends", v) not in look.cache]
        if missing:
            pending.extend(missing)
            continue
        parts: list[frozenset[Value]] = [look.cache["depends", v] for v in needed]  # type: ignore[misc]
        look.cache["depends", top] = frozenset[Value]().union(*parts)
    return look.cache[key]  # type: ignore[return-value]


def constant(look: Look, value: Value) -> Array | None:
    """Return the numbers of ``value`` when it depends on no parameter and no large weight, else None."""
    key = ("constant", value)
    if key not in look.cache:
        look.cache[key] = _constant(look, value)
    return look.cache[key]  # type: ignore[return-value]


def _constant(look: Look, value: Value) -> Array | None:
    if depends_on(look, value) or not isinstance(value.type.size, int) or value.type.size > _TABLE_NUMBERS:
        return None
    nodes: set[Node] = set()
    pending = [value]
    while pending:
        top = pending.pop()
        node = look.node(top)
        if top.weight and look.numbers is None:
            return None
        if node is None or node in nodes:
            continue
        nodes.add(node)
        pending.extend(node.inputs())
        if len(nodes) > _CONSTANT_NODES:
            return None
    try:
        return run(look, value, {}, {})
    except (Declined, InputError):
        return None


def scalar_of(look: Look, value: Value) -> float | None:
    """Return the one number that every element of ``value`` is, whatever its shape; None when there is none."""
    while (node := look.is_op(value, "broadcast", "reshape")) is not None and node.operands[0] is not None:
        value = node.operands[0]
    node = look.is_op(value, "constant")
    if node is not None:
        values: Any = node.attrs["values"]
        return float(values[0]) if len(set(values)) == 1 else None
    if value.type.size != 1:
        return None
    array = constant(look, value)
    return None if array is None else float(array.reshape(-1)[0])


def number(look: Look, value: Value, what: str, node: Node) -> float:
    """Return :func:`scalar_of`.

    Raises:
        Declined: ``what`` is no constant.
    """
    found = scalar_of(look, value)
    if found is None or math.isnan(found):
        raise Declined(f"{what} is not a constant", node)
    return found


class Frontier:
    """The values a piece depends on, moved back one node at a time, the latest first.

    When it is a single value, that value dominates the piece: everything the root takes from the rest of the
    function goes through it.
    """

    def __init__(self, look: Look, root: Value, ignore: Callable[[Value], bool]) -> None:
        self.look, self.ignore = look, ignore
        self.values: set[Value] = {root}
        self.nodes: set[Node] = set()

    def single(self) -> Value | None:
        """Return the only value of the frontier, None when there are several or none."""
        return next(iter(self.values)) if len(self.values) == 1 else None

    def step(self, through: Callable[[Node], bool]) -> bool:
        """Replace the latest value by what its node reads; False when it may not be gone through."""
        made = [(self.look.place[n], v, n) for v in self.values if (n := self.look.node(v)) is not None]
        if not made:
            return False
        _, _, node = max(made, key=lambda item: item[0])
        if not through(node):
            return False
        self.values.difference_update(node.results)
        self.values.update(v for v in node.inputs() if not self.ignore(v))
        self.nodes.add(node)
        return True


def walk_back(look: Look, root: Value, through: Callable[[Node], bool], ignore: Callable[[Value], bool],
              limit: int) -> list[Value]:
    """Return the values that dominate ``root``, nearest first, over at most ``limit`` nodes."""
    frontier = Frontier(look, root, ignore)
    found: list[Value] = []
    for _ in range(limit):
        if not frontier.step(through):
            break
        single = frontier.single()
        if single is not None:
            found.append(single)
    return found


def sizes(dims: Mapping[str, Any], **chosen: int) -> dict[str, int]:
    """Return a size for every symbol: those of ``chosen``, and small different ones for the rest."""
    out: dict[str, int] = {}
    for index, (name, bound) in enumerate(dims.items()):
        out[name] = min(max(chosen.get(name, 2 + index), bound.low), bound.high)
    return out


def shape_at(shape: tuple[Dim, ...], dims: Mapping[str, int]) -> tuple[int, ...]:
    """Return a shape as numbers."""
    return tuple(evaluate(d, dims) for d in shape)
