"""The rule for the names of nodes: which of them the text form leaves out."""

from __future__ import annotations

import re

__all__ = ["NodeNames"]

_NUMBERED = re.compile(r"(.*)\.(0|[1-9]\d{0,8})", re.DOTALL | re.ASCII)


class NodeNames:
    """Counts the nodes of one function, in order.

    A node is called ``scope/op.n``: n counts the nodes of that op in that scope.  A name that follows the
    count is not written.  Any other is, and when it is ``scope/op.m`` the count goes on after m, so that
    one node taken out of a function costs one written name and not one for each node after it.
    """

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def expected(self, scope: str, op: str) -> str:
        """Return the name that the next node of ``op`` in ``scope`` has unless one is written."""
        key = f"{scope}/{op}"
        return f"{key}.{self._next.get(key, 0)}"

    def note(self, scope: str, op: str, name: str) -> None:
        """Count a node that is called ``name``."""
        match = _NUMBERED.fullmatch(name)
        if match and match.group(1) == f"{scope}/{op}":
            self._next[match.group(1)] = int(match.group(2)) + 1
