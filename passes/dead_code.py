"""Dropping what no result depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.ir.graph import Module
from omnic.ir.rewrite import Remark, eliminate_dead_code
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass

__all__ = ["DeadCode", "without_unread_weights"]


def without_unread_weights(module: Module) -> Module:
    """Return ``module`` without the weights that no function reads (itself when all are read)."""
    read = {name for function in module.functions.values() for name in function.weights()}
    kept = {name: weight for name, weight in module.weights.items() if name in read}
    return module if len(kept) == len(module.weights) else replace(module, weights=kept)


@register_pass
@dataclass(frozen=True)
class DeadCode:
    """Drop the nodes that no result depends on, and the weights that no node reads.

    1. A node none of whose results leads to a result of its function goes.
    2. A weight that no function reads any more goes, and its bytes with it.

    Given::

        %h = linear(%x, @w) : f32[B, 8]
        %unused = neg(%h) : f32[B, 8]
        return y = %h

    Result::

        %h = linear(%x, @w) : f32[B, 8]
        return y = %h
    """

    name: ClassVar[str] = "dead-code"
    stage: ClassVar[Stage] = "front"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module without dead nodes and weights."""
        remarks: list[Remark] = []
        after = module
        for name, function in module.functions.items():
            kept = eliminate_dead_code(function)  # rule 1
            if kept is not function:
                gone = len(function.nodes) - len(kept.nodes)
                remarks.append(Remark("dead-node", f"{gone} of {len(function.nodes)} nodes of @{name} went"))
                after = after.with_function(kept)
        lean = without_unread_weights(after)  # rule 2
        for weight in module.weights.values():
            if weight.name not in lean.weights:
                remarks.append(Remark("dead-weight", f"@{weight.name} went, {weight.type.bytes()} bytes"))
        return PassResult(lean, lean is not module, tuple(remarks))
