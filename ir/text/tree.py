"""The syntax tree of the text form: what was written, and where.

Offsets are into the source text.  The tree follows the text; :mod:`omnic.ir.text.resolve` makes a module of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from omnic.ir.dims import DimRange
from omnic.ir.graph import AttrValue, Loc, Recipe, State
from omnic.ir.types import TensorType

__all__ = ["Attribute", "Declaration", "FunctionTree", "ModuleTree", "Name", "NodeTree", "Operand", "ParamTree",
           "ResultTree", "TypeTree", "Where"]

T = TypeVar("T")


@dataclass(slots=True)
class Where:
    """A stretch of the source."""

    start: int
    end: int


@dataclass(slots=True)
class Name(Where):
    """A name; for a value or a weight without its sigil."""

    text: str


@dataclass(slots=True)
class TypeTree(Where):
    """A type annotation; ``type`` is None when it could not be read."""

    type: TensorType | None


@dataclass(slots=True)
class Attribute:
    """``name = value``."""

    name: Name
    value: AttrValue
    where: Where


@dataclass(slots=True)
class Operand(Where):
    """One operand: ``%x``, ``@w``, or ``input = %x``; a list of them for a variadic input given by name."""

    name: str
    weight: bool
    input: Name | None = None


@dataclass(slots=True)
class NodeTree(Where):
    """One line of a function body; ``op`` is None when the line could not be read."""

    results: list[Name]
    op: Name | None = None
    operands: list[Operand] = field(default_factory=list[Operand])
    attrs: list[Attribute] = field(default_factory=list[Attribute])
    types: list[TypeTree] = field(default_factory=list[TypeTree])
    name: Name | None = None
    scope: str = ""
    loc: Loc | None = None


@dataclass(slots=True)
class ParamTree:
    """``%name: type`` with ``= @state`` for a state."""

    name: Name
    type: TypeTree
    state: Name | None = None


@dataclass(slots=True)
class ResultTree:
    """``%name: type`` with ``aliases @state`` in a signature."""

    name: Name
    type: TypeTree
    state: Name | None = None


@dataclass(slots=True)
class FunctionTree:
    """A function; ``returned`` pairs a result's name with the value, ``None`` without a return line."""

    name: Name
    params: list[ParamTree] = field(default_factory=list[ParamTree])
    results: list[ResultTree] = field(default_factory=list[ResultTree])
    nodes: list[NodeTree] = field(default_factory=list[NodeTree])
    returned: list[tuple[Name, Operand]] | None = None
    end: Where = field(default_factory=lambda: Where(0, 0))
    whole: bool = True


@dataclass(slots=True)
class Declaration(Generic[T]):
    """A ``meta``, ``dim``, ``weight`` or ``state`` line; ``what`` is the value, range, recipe or state."""

    name: Name
    what: T
    type: TypeTree | None = None


@dataclass(slots=True)
class ModuleTree:
    """A whole module."""

    name: Name = field(default_factory=lambda: Name(0, 0, ""))
    meta: list[Declaration[AttrValue]] = field(default_factory=list[Declaration[AttrValue]])
    dims: list[Declaration[DimRange]] = field(default_factory=list[Declaration[DimRange]])
    weights: list[Declaration[Recipe]] = field(default_factory=list[Declaration[Recipe]])
    states: list[Declaration[State]] = field(default_factory=list[Declaration[State]])
    functions: list[FunctionTree] = field(default_factory=list[FunctionTree])
