"""The pass ``attention-fusion``: what an exporter wrote out becomes attention, norms, rope and experts again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnic.ir.graph import Module
from omnic.ir.rewrite import Remark
from omnic.passes.base import NOTHING, PassContext, PassResult, register_pass
from omnic.passes.fusion.attention import ATTENTION
from omnic.passes.fusion.ffn import FFN
from omnic.passes.fusion.linear import BIAS, HEADS, LINEAR
from omnic.passes.fusion.look import Fusion, fuse, merge_equal
from omnic.passes.fusion.mla import MLA
from omnic.passes.fusion.moe import MOE
from omnic.passes.fusion.norms import NORMS
from omnic.passes.fusion.packed import PACKED
from omnic.passes.fusion.products import PRODUCTS
from omnic.passes.fusion.rope import ROPE
from omnic.passes.fusion.tidy import TIDY

__all__ = ["AttentionFusion", "FUSIONS"]

#: what is looked for, in order; an entry may count on what stands before it
FUSIONS: tuple[Fusion, ...] = (
    *TIDY, *PRODUCTS, *NORMS, *FFN, *ROPE, *ATTENTION, *TIDY, *MLA, *LINEAR, *MOE, *BIAS, *PACKED, *HEADS, *TIDY,
)


@register_pass
@dataclass(frozen=True)
class AttentionFusion:
    """Fold primitives into composites."""

    name: ClassVar[str] = "attention-fusion"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with every function fused."""
        fused, remarks = module, list[Remark]()
        for name in module.functions:
            fused, found = fuse(fused, fused.function(name), FUSIONS, context.weights)
            fused = fused.with_function(merge_equal(fused.function(name)))
            remarks.extend(found)
        changed = any(r.message.startswith("applied") for r in remarks)
        return PassResult(fused if changed else module, changed, tuple(remarks))
