"""Which instruction of a program computes which node of the IR.

Every torch operator that a node of the IR becomes carries the node's name; what ExecuTorch makes of the operators
keeps it.  An instruction is one operator, or one delegate with the operators inside it in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch.fx.traceback as traceback

from omnic.ir.graph import Node

__all__ = ["node_of", "nodes_of", "traced"]

_MARK = "omnic"
#: instruction -> operators of it: [kind, name of the node of the IR] in order
Instructions = Mapping[str, list[list[str]]]


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Let what is exported inside keep the names that :func:`node_of` gives."""
    with traceback.preserve_node_meta():
        yield


@contextlib.contextmanager
def node_of(node: Node) -> Iterator[None]:
    """Name the operators that are recorded inside after ``node``."""
    with traceback.annotate({_MARK: node.name}):
        yield


def nodes_of(made: Any, methods: list[str]) -> dict[str, Instructions]:
    """Return method -> what its instructions compute, of the program that ``to_executorch`` gave."""
    return {name: _instructions(made.exported_program(name).graph_module) for name in methods}


def _instructions(graph: Any) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for node in graph.graph.nodes:
        number = node.meta.get("debug_handle")
        if node.op != "call_function" or number is None or "getitem" in node.name:
            continue
        inner = [getattr(graph, a.target, None) for a in node.args if getattr(a, "op", "") == "get_attr"]
        lowered = next((m for m in inner if hasattr(m, "original_module")), None)
        if lowered is None:
            found[str(number)] = [[_kind(node), _name(node)]]
        else:
            operators = [n for n in lowered.original_module.graph.nodes if n.op == "call_function"]
            found[str(number)] = [[_kind(n), _name(n)] for n in operators]
    return found


def _kind(node: Any) -> str:
    """Return ``linear`` of ``aten.linear.default``."""
    name = str(getattr(node.target, "__name__", node.target))
    return name.split(".")[-2] if "." in name else name


def _name(node: Any) -> str:
    return str((node.meta.get("custom") or {}).get(_MARK, ""))
