"""What the cases of ops are made of: operands with their numbers, and a call of one op with its attributes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.op import all_ops
from omnic.ir.types import parse_element

__all__ = ["CAPACITY", "B", "Case", "F", "K", "N", "Operand", "P", "W", "X", "one"]

#: of every state, and what the tables of rotations hold
CAPACITY = 16
Array = NDArray[Any]


@dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        make: its numbers from a generator; floats are f32 numbers.
        weight: element type as which it is a weight; empty = an input of the program.
    """

    make: Callable[[np.random.Generator], Array]
    weight: str = ""


@dataclass(frozen=True)
class Case:
    """A call of one op.

    Attributes:
        op: its name.
        variant: what is special; unique for the op.
        operands: in order, None where absent.
        attrs: attributes.
        state: what the state of a ``cache_`` op is: its element type; ``ring`` is among the attributes.
    """

    op: str
    variant: str
    operands: tuple[Operand | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: str = ""

    @property
    def name(self) -> str:
        """``op.variant``."""
        return f"{self.op}.{self.variant}"

    def arrays(self) -> list[Array | None]:
        """Return the numbers of the operands; the same in every run."""
        random = np.random.default_rng(zlib.crc32(self.name.encode()))
        return [None if o is None else o.make(random) for o in self.operands]


# -- operands
def F(*shape: int, scale: float = 1.0) -> Operand:
    """Normally distributed floats."""
    return Operand(lambda r: (scale * r.standard_normal(shape)).astype(np.float32))


def P(*shape: int) -> Operand:
    """Floats in 0.5..3."""
    return Operand(lambda r: r.uniform(0.5, 3.0, shape).astype(np.float32))


def N(*shape: int, low: int = -9, high: int = 9) -> Operand:
    """Whole numbers in low..high-1."""
    return Operand(lambda r: np.asarray(r.integers(low, high, shape), np.int64))


def B(*shape: int) -> Operand:
    """Bools."""
    return Operand(lambda r: np.asarray(r.random(shape) < 0.5))


def X(*values: float) -> Operand:
    """These floats."""
    return Operand(lambda r: np.asarray(values, np.float32))


def K(values: Any) -> Operand:
    """These whole numbers."""
    return Operand(lambda r: np.asarray(values, np.int64))


def W(*shape: int, type: str = "f32", scale: float = 0.5) -> Operand:
    """A weight."""
    return Operand(lambda r: (scale * r.standard_normal(shape)).astype(np.float32), type)


def one(op: str, variant: str, *operands: Operand | None, **attrs: Any) -> Case:
    """A case whose element types are written as text."""
    known = {a.name: a.kind for a in all_ops()[op].attrs}
    read = {k: parse_element(v) if known.get(k) == "element" else v for k, v in attrs.items()}
    return Case(op, variant, operands, read)
