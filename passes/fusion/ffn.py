"""Activations and gates from elementwise arithmetic.

An activation is a function of one number, so it is recognised by its values: the piece between a root and the one value
it is made from is evaluated over a grid and compared with the kinds of ``act``.  Constants that an exporter rounded to
f32 are taken for what they were rounded from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.op import Array
from omnic.ir.ops.composite import ACTIVATIONS, activate, gated
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan
from omnic.passes.fusion.probe import constant, run, walk_back

__all__ = ["FFN"]

_CURVED = frozenset({"sigmoid", "erf", "tanh", "relu", "maximum", "exp"})
_CUT_OFF = frozenset({"clamp", "minimum", "maximum", "where"})
_SHIFTS = frozenset({"add", "sub", "cast"})
_ELEMENTWISE = _CURVED | {"mul", "add", "sub", "div", "neg", "cast"}
_NODES = 14
# The grid covers both tails; 1e-7 is what rounding its constants to f32 does to an activation.
_GRID: Array = np.concatenate([np.linspace(-12.0, 12.0, 481), np.array([-1e-3, 1e-3, -40.0, 40.0])])
_CLOSE, _EXACT = 1e-7, 1e-12
# Wide enough that every limit in use shows.
_WIDE: Array = np.unique(np.concatenate([_GRID, np.array([-1e3, 0.0, 1e3])]))


def _changed_gate(look: Look, node: Node) -> Plan | None:
    """Rule: ``act(min(g, limit)) * (clamp(u, -limit, limit) + beta)`` is ``gated_act``; silu's alpha may be another.

    The numbers are read off the two pieces' values, which are then compared with the composite's.
    """
    if not node.result.type.is_float or node.operands[0] is node.operands[1]:
        return None
    for left, right in (node.operands, node.operands[::-1]):
        assert left is not None
        assert right is not None
        gates, ups = _pieces(look, left, _ELEMENTWISE | _CUT_OFF), _pieces(look, right, _SHIFTS | _CUT_OFF)
        # From the farthest: what cuts off belongs to the piece.
        for gate in reversed(gates):
            for up in reversed(ups):
                attrs = _numbers(gate.values, up.values, look.exact)
                if attrs is not None and gate.x is not up.x and gate.x.type == up.x.type == node.result.type:
                    return Plan((node.result,), lambda site, gate=gate, up=up, attrs=attrs: (
                        site.b.op("gated_act", site.current(gate.x), site.current(up.x), hint="inner", **attrs),),
                        ", ".join(f"{k} {v}" for k, v in attrs.items()))
    return None


@dataclass(frozen=True)
class _Piece:
    """An elementwise function of one value, and its values over the grid."""

    x: Value
    values: Array


def _pieces(look: Look, root: Value, through: frozenset[str]) -> list[_Piece]:
    """Return the readings of ``root`` as an elementwise function, nearest first."""
    found = [_Piece(root, _WIDE)]
    for x in walk_back(look, root, lambda n: n.op in through and n.result.type.element == root.type.element,
                       lambda v: constant(look, v) is not None, _NODES):
        if x.type != root.type or x.weight:
            break
        values = run(look, root, {x: _WIDE}, {})
        if values.shape == _WIDE.shape:
            found.append(_Piece(x, values))
    return found


def _numbers(gate: Array, up: Array, exact: bool) -> dict[str, Any] | None:
    """Return the attributes of ``gated_act`` that two pieces follow; None when they follow none, or a plain one."""
    low, middle, high = 0, int(np.argmin(np.abs(_WIDE))), len(_WIDE) - 1
    beta = float(up[middle])
    limit = float(up[high]) - beta
    limit = _round(limit) if limit < _WIDE[high] / 2 else None
    if limit is not None and (limit <= 0 or abs(float(up[low]) - beta + limit) > _CLOSE * limit):
        return None
    # Where nothing is cut off yet, gate / g is sigmoid(alpha g).
    at = int(np.argmin(np.abs(_WIDE - min(1.0, 0.5 * limit if limit else 1.0))))
    share = float(gate[at]) / float(_WIDE[at])
    # An alpha of 0 is no activation, but half of its input.
    alpha = _round(float(np.log(share / (1.0 - share)) / _WIDE[at])) if 0.5 < share < 1.0 else 1.0
    if limit is None and alpha == 1.0 and beta == 0.0:
        return None
    close = _EXACT if exact else _CLOSE
    bound = np.inf if limit is None else limit
    if not np.allclose(up, np.clip(_WIDE, -bound, bound) + beta, rtol=close, atol=close):
        return None
    for kind in ACTIVATIONS:
        own = alpha if kind == "silu" else 1.0
        wanted = gated(np.minimum(_WIDE, bound), np.ones_like(_WIDE), kind, own)
        if (own, beta, limit) != (1.0, 0.0, None) and np.allclose(gate, wanted, rtol=close, atol=close):
            return {"kind": kind, "alpha": own, "beta": _round(beta), "limit": limit}
    return None


def _round(number: float) -> float:
    """Return a number as it was written, before an exporter rounded it to f32."""
    near = float(f"{number:.6g}")
    return near if abs(near - number) <= _CLOSE * max(abs(near), 1.0) else number


def _activation(look: Look, node: Node) -> Plan | None:
    """Rule: an elementwise piece with the values of gelu, gelu_tanh, relu, relu2 or silu is ``act``."""
    curved: list[Node] = []
    if not node.result.type.is_float:
        return None

    def through(inner: Node) -> bool:
        if inner.op not in _ELEMENTWISE or inner.result.type.element != node.result.type.element:
            return False
        if inner.op in _CURVED:
            curved.append(inner)
        return True

    near: Value | None = None
    for x in walk_back(look, node.result, through, lambda v: constant(look, v) is not None, _NODES):
        if x.type != node.result.type or x.weight:
            break
        if not curved:
            continue
        found = run(look, node.result, {x: _GRID}, {})
        if found.shape != _GRID.shape:
            return None
        for kind in ACTIVATIONS:
            wanted = activate(_GRID, kind)
            close = _EXACT if look.exact else _CLOSE
            if np.allclose(found, wanted, rtol=close, atol=close):
                return Plan((node.result,), lambda site, x=x, kind=kind: (
                    site.b.op("act", site.current(x), kind=kind, hint="inner"),), kind)
        near = x
    if near is not None and _is_gate_like(look, node, near):
        raise Declined(f"the function of {near} is none of {', '.join(ACTIVATIONS)}", node)
    return None


def _is_gate_like(look: Look, node: Node, x: Value) -> bool:
    """Whether the piece vanishes to the left and grows as x to the right, as an activation does."""
    ends = run(look, node.result, {x: np.array([-60.0, 60.0])}, {})
    return node.op == "mul" and bool(np.allclose(ends, [0.0, 60.0], atol=1e-6))


def _gated(look: Look, node: Node) -> Plan | None:
    """Rule: ``act(gate) * up`` is ``gated_act(gate, up)``."""
    for left, up in (node.operands, node.operands[::-1]):
        act = look.is_op(left, "act")
        if act is None or up is None:
            continue
        if look.is_op(up, "act", "constant"):
            return None
        gate = act.operands[0]
        assert gate is not None
        if gate.type != up.type:
            raise Declined(f"{gate} is {gate.type}, {up} is {up.type}", node)
        return Plan((node.result,), lambda site, act=act, gate=gate, up=up: (
            site.b.op("gated_act", site.current(gate), site.current(up), hint="inner", **act.attrs),))
    return None


#: the activation before the gate around it, and before both what has more numbers than a kind
FFN: tuple[Fusion, ...] = (
    Fusion("gate-with-limits", frozenset({"mul"}), _changed_gate),
    Fusion("activation", frozenset({"mul", "relu", "maximum", "div"}), _activation),
    Fusion("gate", frozenset({"mul"}), _gated),
)
