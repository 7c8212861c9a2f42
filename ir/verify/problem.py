"""What a rule of the verifier reports, and where it lies in a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from omnic.errors import Diagnostic, Span
from omnic.ir.graph import Function, Loc, Module, Node, Value
from omnic.ir.text.lexer import Source
from omnic.ir.text.tree import FunctionTree, ModuleTree, Name, NodeTree, Where

__all__ = ["FunctionRule", "ModuleRule", "Place", "Problem", "locate"]

Kind = Literal["dim", "weight", "state", "func", "param", "result", "returned", "node", "operand", "defined", "type",
               "attr"]


@dataclass(frozen=True)
class Place:
    """A part of a module.

    Attributes:
        kind: what it is.
        owner: name of the dim, weight, state or function.
        index: which parameter, result or node of the function.
        part: of a node: the operand's value, the number of the result, or the name of the attribute.
    """

    kind: Kind
    owner: str
    index: int = 0
    part: Value | int | str | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a module."""

    message: str
    place: Place
    hint: str | None = None
    loc: Loc | None = None

    @staticmethod
    def of_node(message: str, function: Function, index: int, node: Node, kind: Kind = "node",
                part: Value | int | str | None = None, hint: str | None = None) -> Problem:
        """Return a problem of ``node``, the ``index``-th of ``function``."""
        return Problem(message, Place(kind, function.name, index, part), hint, node.loc)

    def diagnostic(self, span: Span | None) -> Diagnostic:
        """Return the diagnostic; the line of the spec it comes from ends the hint."""
        hints = [self.hint] if self.hint else []
        if self.loc:
            hints.append(f"from {self.loc.file}:{self.loc.line}:{self.loc.column}")
        return Diagnostic(self.message, span, "\n  ".join(hints) or None)


ModuleRule = Callable[[Module], Iterator[Problem]]
FunctionRule = Callable[[Module, Function], Iterator[Problem]]


def locate(place: Place, tree: ModuleTree, source: Source) -> Span | None:
    """Return where ``place`` stands in the text that ``tree`` was read from."""
    where = _find(place, tree)
    return source.span(where.start, where.end) if where else None


def _find(place: Place, tree: ModuleTree) -> Where | None:
    if place.kind in ("dim", "weight", "state"):
        items = {"dim": tree.dims, "weight": tree.weights, "state": tree.states}[place.kind]
        return next((i.name for i in items if i.name.text == place.owner), None)
    function = next((f for f in tree.functions if f.name.text == place.owner), None)
    if function is None or place.kind == "func":
        return function.name if function else None
    if place.kind in ("param", "result", "returned"):
        return _signature(place, function)
    if place.index >= len(function.nodes):
        return function.name
    return _in_node(place, function.nodes[place.index])


def _signature(place: Place, function: FunctionTree) -> Where:
    names: list[Name] = [p.name for p in function.params]
    if place.kind == "result":
        names = [r.name for r in function.results]
    if place.index >= len(names):
        return function.name
    if place.kind == "returned" and place.index < len(function.results):
        wanted = function.results[place.index].name.text
        return next((o for n, o in function.returned or [] if n.text == wanted), function.name)
    return names[place.index]


def _in_node(place: Place, node: NodeTree) -> Where:
    whole: Where = node.op or node
    part = place.part
    if isinstance(part, Value):
        return next((o for o in node.operands if (o.name, o.weight) == (part.name, part.weight)), whole)
    if isinstance(part, str):
        return next((a.where for a in node.attrs if a.name.text == part), whole)
    if place.kind == "type" and part is not None:
        return node.types[part] if part < len(node.types) else whole
    if place.kind == "defined" and part is not None:
        return node.results[part] if part < len(node.results) else whole
    return whole
