"""Gate and up of a gated feed-forward layer as one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnic.ir.graph import Module, Uses
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass
from omnic.passes.merging import Group, merge_groups

__all__ = ["GateUpMerge"]


@register_pass
@dataclass(frozen=True)
class GateUpMerge:
    """Compute gate and up by one product.

    1. Both operands of a ``gated_act`` come straight from a ``linear``.
    2. Both read the same value, with the same activation type, both with a bias or both without.
    3. Their weights (and biases) have one element type, whose groups do not run along rows: the joined weight holds
       the rows of gate, then those of up, codes and scales as they are.
    4. Nothing else reads those weights; functions that share them are changed alike.
    5. Routed experts are left alone: ``moe`` reads gate and up as tensors of their own.

    Given::

        %up = linear(%x, @blocks.0.ffn.up) : f32[B, T, 192]
        %gate = linear(%x, @blocks.0.ffn.gate) : f32[B, T, 192]
        %inner = gated_act(%gate, %up) {kind = "silu"} : f32[B, T, 192]

    Result::

        %gate_up = linear(%x, @blocks.0.ffn.gate_up) : f32[B, T, 384]
        %gate, %up = split(%gate_up) {axis = -1, sizes = [192, 192]} : f32[B, T, 192], f32[B, T, 192]
        %inner = gated_act(%gate, %up) {kind = "silu"} : f32[B, T, 192]
    """

    name: ClassVar[str] = "gate-up-merge"
    stage: ClassVar[Stage] = "legalise"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with gate and up joined."""
        groups: list[Group] = []
        for function in module.functions.values():
            uses = Uses(function)
            for node in function.nodes:
                if node.op != "gated_act":
                    continue
                found = [uses.producer.get(v) if v is not None else None for v in node.operands[:2]]
                linears = tuple(n for n in found if n is not None and n.op == "linear")
                if len(linears) == 2:
                    groups.append(Group(function.name, linears, "gate_up", node))
        return merge_groups(module, self.name, groups)
