"""Activations and gates from elementwise arithmetic.

An activation is a function of one number, so it is recognised by its values: the piece between a root and the one value
it is made from is evaluated over a grid and compared with the kinds of ``act``.  Constants that an exporter rounded to
f32 are taken for what they were rounded from.
"""

from __future__ import annotations

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.op import Array
from omnic.ir.ops.composite import ACTIVATIONS, activate
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan
from omnic.passes.fusion.probe import constant, run, walk_back

__all__ = ["FFN"]

_CURVED = frozenset({"sigmoid", "erf", "tanh", "relu", "maximum", "exp"})
_ELEMENTWISE = _CURVED | {"mul", "add", "sub", "div", "neg", "cast"}
_NODES = 14
# The grid covers both tails; 1e-7 is what rounding its constants to f32 does to an activation.
_GRID: Array = np.concatenate([np.linspace(-12.0, 12.0, 481), np.array([-1e-3, 1e-3, -40.0, 40.0])])
_CLOSE, _EXACT = 1e-7, 1e-12


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


#: the activation first, then the gate around it
FFN: tuple[Fusion, ...] = (
    Fusion("activation", frozenset({"mul", "relu", "maximum", "div"}), _activation),
    Fusion("gate", frozenset({"mul"}), _gated),
)
