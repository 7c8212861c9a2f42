"""One form for each small idea, before and after the fusions: what exporters leave around the real ops.

Each rule keeps the numbers: a cast to the type a value has, a reshape of a reshape, two transposes, a scalar folded
from constants, a power that is a square or an inverse root.
"""

from __future__ import annotations

import math
from itertools import pairwise

from omnic.ir.graph import Node, Value
from omnic.ir.types import DType
from omnic.passes.fusion.look import Fusion, Look, Plan
from omnic.passes.fusion.probe import constant, scalar_of

__all__ = ["TIDY"]

# A folded constant is at most this long: longer ones are tables, and belong to weights.
_FOLD_NUMBERS = 4096


def _first(node: Node) -> Value:
    value = node.operands[0]
    assert value is not None
    return value


def _same_value(look: Look, node: Node) -> Plan | None:
    """Rule: a layout op or cast that changes nothing goes."""
    x = _first(node)
    idle = {
        "cast": x.type == node.result.type,
        "reshape": x.type == node.result.type,
        "broadcast": x.type == node.result.type,
        "transpose": node.op == "transpose" and _perm(node) == tuple(range(x.type.rank)),
        "slice": node.op == "slice" and x.type == node.result.type,
        "concat": node.op == "concat" and len(node.operands) == 1,
    }
    return Plan((node.result,), lambda site: (site.current(x),)) if idle[node.op] and not x.weight else None


def _perm(node: Node) -> tuple[int, ...]:
    perm = node.attrs["perm"]
    assert isinstance(perm, tuple)
    return tuple(int(p) % len(perm) for p in perm if isinstance(p, int))


def _two_reshapes(look: Look, node: Node) -> Plan | None:
    """Rule: a reshape of a reshape is one; back to the first shape it is none."""
    inner = look.is_op(_first(node), "reshape")
    if inner is None:
        return None
    x = _first(inner)
    if x.type == node.result.type and not x.weight:
        return Plan((node.result,), lambda site: (site.current(x),))
    return Plan((node.result,), lambda site: (site.b.reshape(site.current(x), *node.result.type.shape),))


def _two_transposes(look: Look, node: Node) -> Plan | None:
    """Rule: a transpose of a transpose is one, or none."""
    inner = look.is_op(_first(node), "transpose")
    if inner is None:
        return None
    x, first, second = _first(inner), _perm(inner), _perm(node)
    perm = tuple(first[p] for p in second)
    if perm == tuple(range(len(perm))) and not x.weight:
        return Plan((node.result,), lambda site: (site.current(x),))
    return Plan((node.result,), lambda site: (site.b.op("transpose", site.current(x), perm=perm),))


def _turned_parts(look: Look, node: Node) -> Plan | None:
    """Rule: parts that are transposed alike, joined and transposed again, are joined first."""
    moved = [look.is_op(v, "transpose") for v in node.operands]
    turned = [n for n in moved if n is not None]
    if len(turned) != len(moved) or len({_perm(n) for n in turned}) != 1:
        return None
    if any(reader.op != "transpose" for reader in look.readers(node.result)) or node.result in look.uses.returned:
        return None
    perm, axis = _perm(turned[0]), int(str(node.attrs["axis"])) % node.result.type.rank
    return Plan((node.result,), lambda site: (site.b.op(
        "transpose", site.b.op("concat", *(site.current(_first(n)) for n in turned), axis=perm[axis]), perm=perm),))


def _apart(look: Look, node: Node) -> Plan | None:
    """Rule: what was joined and is cut at the same places was never joined."""
    joined = look.is_op(_first(node), "concat")
    if joined is None or len(joined.operands) != len(node.results):
        return None
    rank = joined.result.type.rank
    parts = [v for v in joined.operands if v is not None]
    if int(str(joined.attrs["axis"])) % rank != int(str(node.attrs["axis"])) % rank:
        return None
    if [p.type for p in parts] != [r.type for r in node.results] or any(p.weight for p in parts):
        return None
    return Plan(node.results, lambda site: tuple(site.current(p) for p in parts))


def _slices(look: Look, node: Node) -> Plan | None:
    """Rule: slices that together are the whole, one after the other, are one split."""
    x = _first(node)
    places = [_range(n) for n in look.readers(x)]
    found = sorted((p for p in places if p is not None), key=lambda p: p[1])
    axes, ends = {p[0] % x.type.rank for p in found}, [(p[1], p[2]) for p in found]
    size = x.type.shape[min(axes)] if len(axes) == 1 else None
    if len(found) != len(places) or len(found) < 2 or found[0][3] is not node or size != ends[-1][1]:
        return None
    if ends[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(ends)):
        return None
    sizes = tuple(b - a for a, b in ends)
    return Plan(tuple(p[3].result for p in found), lambda site: (
        site.b.emit("split", site.current(x), axis=min(axes), sizes=sizes, hint="part")))


def _range(node: Node) -> tuple[int, int, int, Node] | None:
    """Return the axis and the bounds of a slice whose bounds are numbers."""
    if node.op != "slice":
        return None
    start, stop = node.attrs["start"], node.attrs["stop"]
    assert isinstance(start, tuple)
    assert isinstance(stop, tuple)
    first, last = start[0], stop[0]
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return int(str(node.attrs["axis"])), first, last, node


def _power(look: Look, node: Node) -> Plan | None:
    """Rule: pow 2 is a product, pow 0.5 a root, pow -0.5 an inverse root, pow 1 nothing, pow 3 two products."""
    x, exponent = node.operands
    assert x is not None
    assert exponent is not None
    power = scalar_of(look, exponent)
    if power is None or x.type != node.result.type:
        return None
    if power == 2.0:
        return Plan((node.result,), lambda site: (site.b.op("mul", site.current(x), site.current(x)),))
    if power == 3.0:
        return Plan((node.result,), lambda site: (
            site.b.op("mul", site.b.op("mul", site.current(x), site.current(x)), site.current(x)),))
    if power in (0.5, -0.5):
        name = "sqrt" if power > 0 else "rsqrt"
        return Plan((node.result,), lambda site: (site.b.op(name, site.current(x)),))
    return None


def _over_root(look: Look, node: Node) -> Plan | None:
    """Rule: x / sqrt(y) is x * rsqrt(y), and 1 / sqrt(y) is rsqrt(y)."""
    top, bottom = node.operands
    assert top is not None
    root = look.is_op(bottom, "sqrt")
    if root is None:
        return None
    y = _first(root)
    if scalar_of(look, top) == 1.0 and node.result.type == y.type:
        return Plan((node.result,), lambda site: (site.b.op("rsqrt", site.current(y)),))
    return Plan((node.result,), lambda site: (
        site.b.op("mul", site.current(top), site.b.op("rsqrt", site.current(y))),))


def _sum_is_mean(look: Look, node: Node) -> Plan | None:
    """Rule: a sum over dims divided by (or times one over) their number is a mean."""
    for index in (0, 1):
        x, other = node.operands[index], node.operands[1 - index]
        total = look.is_op(x, "sum")
        if total is None or other is None or (node.op == "div" and index == 1):
            continue
        inner, axes = _first(total), total.attrs["axes"]
        assert isinstance(axes, tuple)
        count: object = 1
        for axis in axes:
            assert isinstance(axis, int)
            dim = inner.type.shape[axis]
            count = count * dim if isinstance(count, int) and isinstance(dim, int) else None
        factor = scalar_of(look, other)
        if not isinstance(count, int) or factor is None or not inner.type.is_float:
            continue
        if total.result.type != node.result.type:
            continue
        wanted = float(count) if node.op == "div" else 1.0 / count
        if math.isclose(factor, wanted, rel_tol=1e-15):
            return Plan((node.result,), lambda site, inner=inner, total=total: (
                site.b.op("mean", site.current(inner), axes=total.attrs["axes"],
                          keepdims=total.attrs.get("keepdims", False)),))
    return None


def _fold(look: Look, node: Node) -> Plan | None:
    """Rule: what depends on constants alone is a constant (as one number when it is one)."""
    if node.op == "constant" or len(node.results) != 1 or any(v.weight for v in node.inputs()):
        return None
    size = node.result.type.size
    element = node.result.type.element
    if not isinstance(size, int) or size > _FOLD_NUMBERS or not isinstance(element, DType):
        return None
    array = constant(look, node.result)
    if array is None or any(v.weight for v in _sources(look, node.result)):
        return None
    numbers = [float(v) if element.is_float else int(v) for v in array.reshape(-1)]
    values = tuple(numbers[:1]) if len(set(map(repr, numbers))) == 1 else tuple(numbers)
    if not values:
        return None
    shape = node.result.type.shape
    return Plan((node.result,), lambda site: (
        site.b.op("constant", values=values, shape=shape, type=element, hint="c"),))


def _sources(look: Look, value: Value) -> set[Value]:
    """Return the values without a node that ``value`` is made from."""
    found: set[Value] = set()
    pending, seen = [value], set[Value]()
    while pending:
        top = pending.pop()
        if top in seen:
            continue
        seen.add(top)
        node = look.node(top)
        if node is None:
            found.add(top)
        else:
            pending.extend(node.inputs())
    return found


_FOLDABLE = frozenset({"add", "sub", "mul", "div", "pow", "neg", "sqrt", "rsqrt", "cast", "reshape", "exp", "log",
                       "floordiv", "minimum", "maximum", "concat", "slice", "transpose", "cos", "sin", "matmul",
                       "where", "eq", "ne", "lt", "le", "gt", "ge", "not", "and", "or", "broadcast"})

#: small forms first: the fusions need only look for one of each
TIDY: tuple[Fusion, ...] = (
    Fusion("tidy-constant", _FOLDABLE, _fold),
    Fusion("tidy-idle", frozenset({"cast", "reshape", "broadcast", "transpose", "slice", "concat"}), _same_value),
    Fusion("tidy-reshape", frozenset({"reshape"}), _two_reshapes),
    Fusion("tidy-concat", frozenset({"concat"}), _turned_parts),
    Fusion("tidy-transpose", frozenset({"transpose"}), _two_transposes),
    Fusion("tidy-slices", frozenset({"slice"}), _slices),
    Fusion("tidy-split", frozenset({"split"}), _apart),
    Fusion("tidy-power", frozenset({"pow"}), _power),
    Fusion("tidy-root", frozenset({"div"}), _over_root),
    Fusion("tidy-mean", frozenset({"div", "mul"}), _sum_is_mean),
)
