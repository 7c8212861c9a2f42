"""What a generated loop nest computes: one value, from views, by an expression of ops.

Elementwise ops wait until somebody needs their value in memory, and are then part of the loop of who does: a chain is
one loop.  An op that looks at other elements than its own (a sum, a product, a gather) is the root of a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnic.ir.dims import Dim
from omnic.ir.types import DType
from omnic.targets.tvm.views import View

__all__ = ["ELEMENTWISE", "Apply", "Expression", "Leaf", "Loop", "leaves_of"]

ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "pow", "minimum", "maximum", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge",
    "and", "or", "not", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "round",
    "relu", "clamp", "where", "cast",
))


@dataclass(frozen=True)
class Leaf:
    """Numbers that lie in memory."""

    view: View

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape of the value."""
        return self.view.shape

    @property
    def dtype(self) -> DType:
        """Element type of the value."""
        return self.view.dtype


@dataclass(frozen=True)
class Apply:
    """An op applied to values; its attributes with defaults filled in."""

    op: str
    args: tuple[Expression, ...]
    shape: tuple[Dim, ...]
    dtype: DType
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])


Expression = Leaf | Apply


@dataclass(frozen=True)
class Loop:
    """One generated function.

    Attributes:
        name: in C.
        root: what each element of the result is.
        inputs: views that it reads, in the order of the function's arguments.
        output: where the result lies.
        traces: platform -> the trace of a faster order with the same bits, in JSON (:mod:`.schedules`).
    """

    name: str
    root: Apply
    inputs: tuple[View, ...]
    output: View
    traces: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        return f"loop {self.root.op} -> {self.output.dtype.value}[{', '.join(map(str, self.output.shape))}]"


def leaves_of(root: Expression) -> Iterator[View]:
    """Iterate over the views that an expression reads."""
    if isinstance(root, Leaf):
        yield root.view
        return
    for arg in root.args:
        yield from leaves_of(arg)
