"""What a target cannot take, said before anything is built: the op, the line of the spec, the source of the limit, and
which targets take it.
"""

from __future__ import annotations

from omnic.errors import InputError
from omnic.ir.caps import Caps
from omnic.ir.graph import Module, Node
from omnic.targets import TARGETS, caps_of

__all__ = ["check_ops", "refused", "takers"]


def refused(target: str, node: Node, why: str, hint: str | None = None) -> InputError:
    """Return the error that ``target`` cannot take ``node``; without a hint it names the targets that can."""
    place = f" ({node.loc!s})".replace('"', "") if node.loc else ""
    message = f"{target} cannot take {node.op} of {node.scope or node.name}{place}: {why}"
    return InputError(message, hint or takers(node))


def takers(node: Node) -> str:
    """Return a sentence on the targets whose capabilities take ``node``."""
    found = [name for name in sorted(TARGETS) if caps_of(name).reason(node.op, node.attrs) is None]
    if found:
        return f"targets that take it: {', '.join(found)}"
    return "no target takes it: codes are of weights and states; quantise those instead"


def check_ops(target: str, caps: Caps, module: Module) -> None:
    """Check every op of a module and its attributes against what a target can do.

    Raises:
        InputError: the first that it cannot take.
    """
    for function in module.functions.values():
        for node in function.nodes:
            why = caps.reason(node.op, node.attrs)
            if why is not None:
                raise refused(target, node, why)
