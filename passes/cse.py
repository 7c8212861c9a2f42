"""Common subexpression elimination: what is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.op import find_op
from omnic.ir.rewrite import Remark, eliminate_dead_code, rebuild_with, replace_values
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass

__all__ = ["CommonSubexpressions"]

# Operands in either order make the same numbers, bit for bit.
_COMMUTES = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "and", "or"})


def _key(node: Node) -> Hashable:
    operands: tuple[Value | None, ...] = node.operands
    if node.op in _COMMUTES:  # rule 2
        operands = tuple(sorted(operands, key=lambda v: id(v)))
    # repr tells 1 from 1.0 and 0.0 from -0.0, which are equal and do not mean the same.
    attrs = tuple(sorted((name, repr(value)) for name, value in node.attrs.items()))
    return node.op, operands, attrs, tuple(r.type for r in node.results)


def _merged(function: Function) -> tuple[Function, tuple[Remark, ...]]:
    first: dict[Hashable, Node] = {}
    same: dict[Value, Value] = {}
    remarks: list[Remark] = []
    for node in function.nodes:
        # Rule 3: a write is the next version of a state and a fetch is an event; neither is merely a value.
        if find_op(node.op).updates or node.op.startswith("host."):
            continue
        current = rebuild_with(node, tuple(same.get(v, v) if v is not None else None for v in node.operands))
        known = first.setdefault(_key(current), node)
        if known is node:
            continue
        same.update(zip(node.results, known.results, strict=True))
        remarks.append(Remark("same-value", f"is {known.name}", node.name))
    if not same:
        return function, ()
    return eliminate_dead_code(replace_values(function, same)), tuple(remarks)


@register_pass
@dataclass(frozen=True)
class CommonSubexpressions:
    """Compute once what is computed twice.

    1. Of two nodes with the same op, attributes and operands, the second's readers read the first.
    2. The operands of ``add mul maximum minimum eq ne and or`` count as the same in either order.
    3. Nodes that write a state or call the host stay, however alike they are.

    Given::

        %a = mul(%x, %y) : f32[B, 8]
        %b = mul(%y, %x) : f32[B, 8]
        %c = add(%a, %b) : f32[B, 8]

    Result::

        %a = mul(%x, %y) : f32[B, 8]
        %c = add(%a, %a) : f32[B, 8]
    """

    name: ClassVar[str] = "cse"
    stage: ClassVar[Stage] = "front"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with equal nodes merged, function by function."""
        after, remarks = module, list[Remark]()
        for function in module.functions.values():
            merged, said = _merged(function)
            if merged is not function:
                after = after.with_function(merged)
            remarks.extend(said)
        return PassResult(after, after is not module, tuple(remarks))
