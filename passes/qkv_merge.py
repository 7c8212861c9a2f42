"""The projections of queries, keys and values as one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnic.ir.graph import Module, Node, Uses, Value
from omnic.ir.rewrite import Remark
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass
from omnic.passes.merging import Group, merge_groups

__all__ = ["QkvMerge"]

# What may lie between a projection and attention; each is done on the parts of the joined product.
_BETWEEN = frozenset(
    {"reshape", "transpose", "rope", "rms_norm", "layer_norm", "cast", "cache_read", "broadcast", "split"}
)


def _projection(value: Value | None, uses: Uses) -> Node | None:
    """Rule 1: walk back from an operand of attention to its product; past a cache, to what was written."""
    while value is not None and (node := uses.producer.get(value)) is not None:
        if node.op == "linear":
            return node
        if node.op == "cache_write":
            value = node.operands[1]
        elif node.op in _BETWEEN:
            value = node.operands[0]
        else:
            return None
    return None


@register_pass
@dataclass(frozen=True)
class QkvMerge:
    """Compute queries, keys and values by one product.

    1. The projections of an ``attention`` are the ``linear`` nodes that its queries, keys and values come from, through
       reshapes, norms of a head, rope and the cache.
    2. All three read the same value, with the same activation type, all with a bias or all without.
    3. Their weights (and biases) have one element type, whose groups do not run along rows: the joined weight holds
       the rows of q, k and v below each other, codes and scales as they are.
    4. Nothing else reads those weights; functions that share them are changed alike.
    5. A ``split`` gives each part back; norms of a head, rope and the cache follow it unchanged.  MLA is left alone:
       its projections have different inputs.

    Given::

        %q = linear(%x, @blocks.0.attn.q) : f32[B, T, 64]
        %k = linear(%x, @blocks.0.attn.k) : f32[B, T, 32]
        %v = linear(%x, @blocks.0.attn.v) : f32[B, T, 32]

    Result::

        %qkv = linear(%x, @blocks.0.attn.qkv) : f32[B, T, 128]
        %q, %k, %v = split(%qkv) {axis = -1, sizes = [64, 32, 32]} : f32[B, T, 64], f32[B, T, 32], f32[B, T, 32]
    """

    name: ClassVar[str] = "qkv-merge"
    stage: ClassVar[Stage] = "legalise"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with the projections of every attention joined."""
        groups, missed = list[Group](), list[Remark]()
        for function in module.functions.values():
            uses = Uses(function)
            for node in function.nodes:
                if node.op != "attention":
                    continue
                found = [_projection(v, uses) for v in node.operands[:3]]
                linears = tuple(n for n in found if n is not None)
                if len(linears) == 3:
                    groups.append(Group(function.name, linears, "qkv", node))
                else:
                    which = [name for name, n in zip(("queries", "keys", "values"), found, strict=True) if n is None]
                    missed.append(Remark(self.name, f"its {' and '.join(which)} come from no product", node.name, True))
        merged = merge_groups(module, self.name, groups)
        return PassResult(merged.module, merged.changed, (*missed, *merged.remarks))
