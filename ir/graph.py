"""The graph: modules, functions, nodes and values.

Everything here is immutable.  A value is equal only to itself; a function is a list of nodes in a
topological order; a pass makes a new function (see :mod:`omnic.ir.rewrite`).  The graph is pure: a
state goes in as a parameter and comes out as a result that *aliases* it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from omnic.errors import InputError, InternalError
from omnic.ir.dims import Dim, DimRange, Expr
from omnic.ir.types import DType, Storage, TensorType

__all__ = ["AttrValue", "Function", "Loc", "Module", "Node", "Param", "Recipe", "Result", "State", "Uses",
           "Value", "Weight", "attrs_of", "dims_of", "freeze"]

AttrValue = int | float | bool | str | DType | Storage | Expr | tuple["AttrValue", ...]


@dataclass(frozen=True)
class Loc:
    """The line of the spec a node comes from (1-based)."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f'"{self.file}":{self.line}:{self.column}'


@dataclass(frozen=True, eq=False)
class Value:
    """One SSA value.  ``name`` has no sigil; a weight's value is shared by every function of a module."""

    name: str
    type: TensorType
    weight: bool = False

    def __str__(self) -> str:
        return f"{'@' if self.weight else '%'}{self.name}"


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an op.

    Attributes:
        op: the op's name in the registry.
        operands: one entry per input of the op in order (None = absent optional input); the
            members of a variadic input come last.
        attrs: every attribute that is not at its default.
        results: what it produces.
        name: stable name ``scope/op.n`` that diff, parity and profiles use.
        scope: path of the part of the model, such as ``blocks.3.attn``.
        loc: where in the spec it comes from.
    """

    op: str
    operands: tuple[Value | None, ...]
    attrs: Mapping[str, AttrValue]
    results: tuple[Value, ...]
    name: str
    scope: str = ""
    loc: Loc | None = None

    @property
    def result(self) -> Value:
        """The only result.

        Raises:
            InternalError: the node has several.
        """
        if len(self.results) != 1:
            raise InternalError(f"{self.name} has {len(self.results)} results, one was asked for")
        return self.results[0]

    def inputs(self) -> Iterator[Value]:
        """Iterate over the operands that are present."""
        return (v for v in self.operands if v is not None)


@dataclass(frozen=True)
class Param:
    """A parameter of a function; ``state`` names the module state it receives."""

    value: Value
    state: str | None = None


@dataclass(frozen=True)
class Result:
    """A named result of a function; ``state`` names the module state it becomes."""

    name: str
    value: Value
    state: str | None = None


@dataclass(frozen=True)
class Function:
    """A pure function over values."""

    name: str
    params: tuple[Param, ...]
    nodes: tuple[Node, ...]
    results: tuple[Result, ...]

    def param(self, name: str) -> Value | None:
        """Return the parameter called ``name``, or None."""
        return next((p.value for p in self.params if p.value.name == name), None)

    def values(self) -> Iterator[Value]:
        """Iterate over parameters and node results in order of definition."""
        for param in self.params:
            yield param.value
        for node in self.nodes:
            yield from node.results

    def weights(self) -> tuple[str, ...]:
        """Return the names of the weights it reads, in order of first use."""
        seen: dict[str, None] = {}
        for node in self.nodes:
            for value in node.inputs():
                if value.weight:
                    seen.setdefault(value.name)
        return tuple(seen)


class Uses:
    """Who makes and who reads each value of one function."""

    def __init__(self, function: Function) -> None:
        self.producer: dict[Value, Node] = {}
        self.users: dict[Value, list[tuple[Node, int]]] = {}
        self.returned: dict[Value, list[Result]] = {}
        for node in function.nodes:
            for result in node.results:
                self.producer[result] = node
            for index, value in enumerate(node.operands):
                if value is not None:
                    self.users.setdefault(value, []).append((node, index))
        for result in function.results:
            self.returned.setdefault(result.value, []).append(result)

    def count(self, value: Value) -> int:
        """Return how often ``value`` is read, results of the function included."""
        return len(self.users.get(value, ())) + len(self.returned.get(value, ()))

    def only_user(self, value: Value) -> Node | None:
        """Return the one node that reads ``value``; None if there are several, none, or it is returned."""
        users = self.users.get(value, [])
        if len(users) == 1 and value not in self.returned:
            return users[0][0]
        return None


@dataclass(frozen=True)
class Recipe:
    """How the numbers of a weight come to be: a small expression over sources.

    Leaves: ``normal(std)``, ``zeros()``, ``ones()``, ``full(value)``, ``load(name)`` (a tensor of the weight
    file), ``stored(hash)``.  Inner nodes: ``concat(axis)``, ``slice(axis, start, stop)``, ``transpose(perm)``,
    ``reshape(shape)``, ``stack()``, ``scale(value)``, ``quantise(type)``.
    """

    kind: str
    args: Mapping[str, AttrValue] = field(default_factory=dict[str, AttrValue])
    inputs: tuple[Recipe, ...] = ()


@dataclass(frozen=True)
class Weight:
    """A named constant tensor of the module; its bytes are made lazily from ``recipe``."""

    value: Value
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name without the sigil."""
        return self.value.name

    @property
    def type(self) -> TensorType:
        """Its type."""
        return self.value.type


Role = Literal["k", "v", "latent", "rope_k", "recent", "recurrent", "conv", "landmark"]


@dataclass(frozen=True)
class State:
    """One tensor that lives across calls.

    Attributes:
        name: such as ``kv.0.k``.
        type: element type and capacity dims, ``[B, ..., S, D]``; never a live length.
        role: what it holds; ``recent`` is a ring of the newest tokens of a state that is quantised in blocks of tokens.
        group: the layer it belongs to.
        rollback: ``positional`` (drop the tail) or ``snapshot(n)``.
        snapshots: n of ``snapshot(n)``, else 0.
        ring: whether slots are reused modulo the capacity.
        window: W, the attended keys of a ring (0 = everything); of a ``recent`` ring the tokens of a block.
    """

    name: str
    type: TensorType
    role: Role
    group: int
    rollback: Literal["positional", "snapshot"] = "positional"
    snapshots: int = 0
    ring: bool = False
    window: int = 0


@dataclass(frozen=True)
class Module:
    """Functions, weights, states and symbolic dims: one model."""

    name: str
    dims: Mapping[str, DimRange]
    weights: Mapping[str, Weight]
    states: Mapping[str, State]
    functions: Mapping[str, Function]
    meta: Mapping[str, AttrValue] = field(default_factory=dict[str, AttrValue])

    def function(self, name: str = "forward") -> Function:
        """Return the function called ``name``.

        Raises:
            InputError: there is none.
        """
        if name not in self.functions:
            raise InputError(f"module @{self.name} has no function @{name}", f"it has: {', '.join(self.functions)}")
        return self.functions[name]

    @property
    def prefill_from(self) -> int | None:
        """Tokens from which on a call runs ``@prefill``; None where every call runs ``@forward``."""
        found = self.meta.get("prefill_from")
        return found if isinstance(found, int) else None

    def called(self, tokens: int) -> str:
        """Return the name of the function that a call of ``tokens`` tokens a row (T, padding included) runs."""
        return "forward" if self.prefill_from is None or tokens < self.prefill_from else "prefill"

    @property
    def decoded(self) -> DType | None:
        """What weights of storage types are decoded to, where that is 16 bits; None where their numbers are exact."""
        found = self.meta.get("decoded")
        return DType(found) if found in ("f16", "bf16") else None

    def with_function(self, function: Function) -> Module:
        """Return the module with ``function`` added or replaced by name."""
        return replace(self, functions={**self.functions, function.name: function})

    def without_function(self, name: str) -> Module:
        """Return the module without the function ``name``."""
        return replace(self, functions={k: f for k, f in self.functions.items() if k != name})

    def parameters(self) -> int:
        """Return the number of numbers in all weights."""
        total: Dim = 0
        for weight in self.weights.values():
            total = total + weight.type.size
        if not isinstance(total, int):
            raise InternalError(f"a weight of @{self.name} has a symbolic dim")
        return total


def attrs_of(**attrs: Any) -> dict[str, AttrValue]:
    """Return ``attrs`` with lists made tuples and absent (None) ones dropped."""
    return {k: freeze(v) for k, v in attrs.items() if v is not None}


def freeze(value: Any) -> AttrValue:
    """Return ``value`` as an immutable attribute value."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, np.generic):
        return cast(AttrValue, value.item())
    return cast(AttrValue, value)


def dims_of(value: AttrValue) -> list[Dim]:
    """Return the dim expressions that an attribute's value holds."""
    if isinstance(value, Expr):
        return [value]
    return [dim for item in value for dim in dims_of(item)] if isinstance(value, tuple) else []
