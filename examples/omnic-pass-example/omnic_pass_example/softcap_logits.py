"""Bounding logits by a soft cap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.ir.graph import Function, Module, Node
from omnic.passes.base import NOTHING, PassContext, PassResult, Remark, Stage, option

__all__ = ["SoftcapLogits"]


@dataclass(frozen=True)
class SoftcapLogits:
    """Bound the logits softly: c tanh(logit / c).

    1. Every ``lm_head`` without a soft cap takes ``cap``.  The order of the logits stays, so greedy text does too.
    2. One that has a soft cap keeps it and leaves a remark.

    Given::

        %logits = lm_head(%x, @embed, %rows) : f32[B, R, 512]

    Result (``softcap-logits{cap=20}``)::

        %logits = lm_head(%x, @embed, %rows) {softcap = 20.0} : f32[B, R, 512]

    Attributes:
        cap: the bound, in logits.
    """

    name: ClassVar[str] = "softcap-logits"
    stage: ClassVar[Stage] = "lossy"
    cap: float = option(30.0, low=1.0, high=1000.0)

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with its heads capped."""
        remarks: list[Remark] = []
        after = module
        for function in module.functions.values():
            capped = self._capped(function, remarks)
            if capped is not function:
                after = after.with_function(capped)
        return PassResult(after, after is not module, tuple(remarks))

    def _capped(self, function: Function, remarks: list[Remark]) -> Function:
        nodes = tuple(self._node(node, remarks) if node.op == "lm_head" else node for node in function.nodes)
        return function if nodes == function.nodes else replace(function, nodes=nodes)

    def _node(self, node: Node, remarks: list[Remark]) -> Node:
        known = node.attrs.get("softcap", 0.0)
        if known:  # rule 2
            remarks.append(Remark(self.name, f"it has a soft cap of {known}", node.name, missed=True))
            return node
        remarks.append(Remark(self.name, "applied", node.name))
        return replace(node, attrs={**node.attrs, "softcap": self.cap})
