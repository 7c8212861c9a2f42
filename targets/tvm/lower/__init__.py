"""The lowering table: op of the IR -> the statements that run it."""

from __future__ import annotations

from omnic.ir.types import DType
from omnic.targets.tvm.lower import attention, heads, norms, products, routing, shapes, tail
from omnic.targets.tvm.lower.common import attrs_of
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn

__all__ = ["LOWERINGS"]


def _add(p: Planner, turn: Turn) -> None:
    """A kernel for two values of one shape in memory; part of a chain otherwise."""
    a, b = turn.nodes[0].inputs()
    plain = a.type == b.type and a.type.element is DType.F32 and not a.weight and not b.weight
    in_memory = a not in p.waiting and b not in p.waiting
    (norms if plain and in_memory else tail).LOWERINGS["add"](p, turn)


def _softmax(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    last = attrs_of(node)["axis"] % node.result.type.rank == node.result.type.rank - 1
    (norms if last else tail).LOWERINGS["softmax"](p, turn)


def _matmul(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    a, b = node.inputs()
    product = b.weight and b.type.rank == 2 and not a.weight and not attrs_of(node)["ta"] and a.type.is_float
    (products if product else tail).LOWERINGS["matmul"](p, turn)


LOWERINGS: dict[str, Lowering] = {
    **tail.LOWERINGS,
    **products.LOWERINGS,
    **heads.LOWERINGS,
    **attention.LOWERINGS,
    **norms.LOWERINGS,
    **routing.LOWERINGS,
    **shapes.LOWERINGS,
    "add": _add,
    "softmax": _softmax,
    "matmul": _matmul,
}
