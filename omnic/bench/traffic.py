"""What a token costs at least: bytes that must be read and operations that must be done, from the IR alone."""

from __future__ import annotations

from dataclasses import dataclass

from omnic.ir.dims import evaluate
from omnic.ir.graph import Module, Node
from omnic.ir.op import find_op
from omnic.ir.types import TensorType
from omnic.models.summary import Summary, summarise

__all__ = ["Traffic"]


@dataclass(frozen=True)
class Traffic:
    """Bytes and operations of one row.

    Attributes:
        summary: totals of the model.
        slots: (bytes of one slot, slots that are read at most) of each state.
        head_flops: operations of one row of logits.
    """

    summary: Summary
    slots: tuple[tuple[float, int], ...]
    head_flops: int

    @staticmethod
    def of(module: Module) -> Traffic:
        """Return the traffic of a module."""
        found: list[tuple[float, int]] = []
        forward = module.function()
        for state in (module.states[p.state] for p in forward.params if p.state):
            shape = tuple(d if isinstance(d, int) else 1 for d in state.type.shape)
            slots = shape[-2]
            total = TensorType(state.type.element, shape).bytes()
            found.append((total / slots, min(slots, state.window) if state.window else slots))
        head = sum(_flops(node) for node in forward.nodes if node.op == "lm_head")
        return Traffic(summarise(module), tuple(found), head)

    def bytes(self, context: int) -> int:
        """Return the bytes that one decoded token reads: weights its products touch, states up to ``context``."""
        return round(self.summary.weight_bytes_per_token) + self.held(context)

    def held(self, tokens: int) -> int:
        """Return the bytes of the slots that ``tokens`` tokens of one row fill."""
        return round(sum(size * min(tokens, most) for size, most in self.slots))

    def flops(self, tokens: int) -> int:
        """Return the operations of a prompt of ``tokens``: products with weights, one row of logits, and of attention
        what a causal mask leaves.
        """
        capacity = max((most for _, most in self.slots), default=1)
        attention = self.summary.attention_flops_per_token * (tokens + 1) / 2 / capacity
        return round(tokens * (self.summary.flops_per_token - self.head_flops + attention)) + self.head_flops


def _flops(node: Node) -> int:
    op = find_op(node.op)
    types = op.arrange(tuple(v.type if v else None for v in node.operands))
    return evaluate(op.flops(*types, **op.bind(node.attrs)), {"B": 1, "T": 1, "R": 1})
