"""Bringing a residual sum and the norm that reads it together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.ir.graph import Function, Module, Node, Uses, Value
from omnic.ir.rewrite import Remark
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass

__all__ = ["NormResidual"]

_NORMS = ("rms_norm", "layer_norm")


def _moved(function: Function, rule: str) -> tuple[Function, list[Remark]]:
    uses = Uses(function)
    place = {node: index for index, node in enumerate(function.nodes)}
    born = {r: index for index, node in enumerate(function.nodes) for r in node.results}
    late: dict[Node, Node] = {}
    remarks: list[Remark] = []
    taken: set[Node] = set()
    for node in function.nodes:
        if node.op not in _NORMS:
            continue
        total = uses.producer.get(node.operands[0]) if node.operands[0] is not None else None
        if total is None:
            continue
        reason = _refusal(node, total, taken)
        if reason:
            remarks.append(Remark(rule, reason, node.name, True))
            continue
        taken.add(total)
        # Rule 3: the sum moves down only as far as the last of what it reads; here it stays where it is.
        if place[node] != place[total] + 1 and all(v.weight or born.get(v, -1) <= place[total] for v in node.inputs()):
            late[total] = node
            remarks.append(Remark(rule, f"moved behind {total.name}", node.name))
    if not late:
        return function, remarks
    moving = set(late.values())
    nodes: list[Node] = []
    for node in function.nodes:
        if node in moving:
            continue
        nodes.append(node)
        if node in late:
            nodes.append(late[node])
    return replace(function, nodes=tuple(nodes)), remarks


def _refusal(norm: Node, total: Node, taken: set[Node]) -> str | None:
    """Rules 1 and 2."""
    if total.op != "add":
        return f"it reads {total.op}, not a sum"
    if any(_is_small(v, total) for v in total.inputs()):
        return "the sum broadcasts, so it is no residual"
    if total in taken:
        return "another norm of the same sum is with it already"
    return None


def _is_small(value: Value, total: Node) -> bool:
    return value.weight or value.type.shape != total.result.type.shape


@register_pass
@dataclass(frozen=True)
class NormResidual:
    """Bring each residual sum and the norm that reads it together.

    1. The sum is an ``add`` of two values of one shape, neither a weight; the norm an ``rms_norm`` or ``layer_norm``
       of it.
    2. A sum that several norms read keeps the first.
    3. The norm moves directly behind its sum; nothing else moves, and every node keeps its name and its numbers.

    Given::

        %x = add(%residual, %update) : f32[B, T, 96]
        %k = linear(%other, @k) : f32[B, T, 96]
        %normed = rms_norm(%x, @norm) : f32[B, T, 96]

    Result::

        %x = add(%residual, %update) : f32[B, T, 96]
        %normed = rms_norm(%x, @norm) : f32[B, T, 96]
        %k = linear(%other, @k) : f32[B, T, 96]
    """

    name: ClassVar[str] = "norm-residual"
    stage: ClassVar[Stage] = "legalise"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with sums and norms side by side."""
        after, remarks = module, list[Remark]()
        for function in module.functions.values():
            moved, said = _moved(function, self.name)
            if moved is not function:
                after = after.with_function(moved)
            remarks.extend(said)
        return PassResult(after, after is not module, tuple(remarks))
