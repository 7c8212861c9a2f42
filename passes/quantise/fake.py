"""The module as its quantised self would compute, with its weights still numbers: what training sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.types import ElementType

__all__ = ["with_fake_quant"]


def with_fake_quant(module: Module, elements: Mapping[str, ElementType]) -> Module:
    """Return ``module`` with a ``fake_quant`` between each named weight and every node that reads it.

    Its numbers are those of the module whose weights have these types by round to nearest; the names of the
    weights stay, so a training of one is a checkpoint of the other.
    """
    functions = {name: _rounded(function, elements) for name, function in module.functions.items()}
    return replace(module, functions=functions)


def _rounded(function: Function, elements: Mapping[str, ElementType]) -> Function:
    nodes: list[Node] = []
    counts: dict[str, int] = {}
    for node in function.nodes:
        operands = list(node.operands)
        for place, value in enumerate(node.operands):
            if value is None or not value.weight or value.name not in elements:
                continue
            count = counts[node.scope] = counts.get(node.scope, -1) + 1
            result = Value(f"{value.name}.rounded.{len(nodes)}", value.type)
            name = f"{node.scope}/fake_quant.{count}"
            to = {"to": elements[value.name]}
            nodes.append(Node("fake_quant", (value,), to, (result,), name, node.scope, node.loc))
            operands[place] = result
        nodes.append(replace(node, operands=tuple(operands)))
    return replace(function, nodes=tuple(nodes))
