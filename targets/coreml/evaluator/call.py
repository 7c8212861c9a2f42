"""What a handler sees of one operation: its operands by parameter name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.evaluator.graph import Op
from omnic.targets.coreml.evaluator.stored import Stored
from omnic.targets.coreml.evaluator.types import Type

if TYPE_CHECKING:
    from omnic.targets.coreml.evaluator.walk import Walk

__all__ = ["Call"]

_MODERN = 7


class Call:
    """One operation about to be evaluated.

    Args:
        walk: holds the values.
        op: the operation.
    """

    def __init__(self, walk: Walk, op: Op) -> None:
        self.walk, self.op = walk, op

    def has(self, parameter: str) -> bool:
        """Whether an operand is given."""
        return bool(self.op.inputs.get(parameter))

    def _one(self, parameter: str) -> Any:
        if not self.has(parameter):
            raise ValueError(f"it has no operand '{parameter}'")
        given = self.op.inputs[parameter][0]
        return self.walk.value(given) if isinstance(given, str) else given[0]

    def raw(self, parameter: str) -> NDArray[Any]:
        """Return an operand in the type that it has."""
        found = self._one(parameter)
        if isinstance(found, str):
            raise ValueError(f"operand '{parameter}' is text")
        return found.array() if isinstance(found, Stored) else found

    def __call__(self, parameter: str) -> NDArray[Any]:
        """Return an operand as it is computed with (:meth:`working`)."""
        return self.working(self.raw(parameter))

    def stored(self, parameter: str) -> Stored | None:
        """Return an operand that is a constant, not read; None when it is computed."""
        found = self._one(parameter)
        return found if isinstance(found, Stored) else None

    def values(self, parameter: str, work: bool = False) -> list[NDArray[Any]]:
        """Return the operands of a parameter that takes several."""
        found: list[NDArray[Any]] = []
        for given in self.op.inputs[parameter]:
            value: Any = self.walk.value(given) if isinstance(given, str) else given[0]
            array = value.array() if isinstance(value, Stored) else value
            found.append(self.working(array) if work else array)
        return found

    def ints(self, parameter: str) -> list[int]:
        """Return an operand as whole numbers."""
        return [int(i) for i in np.atleast_1d(self.raw(parameter))]

    def flags(self, parameter: str, count: int) -> list[bool]:
        """Return an operand as truth values; all false when it is absent."""
        return [bool(i) for i in self.raw(parameter)] if self.has(parameter) else [False] * count

    def number(self, parameter: str, default: float) -> np.float32:
        """Return a scalar operand."""
        return np.float32(self.raw(parameter).reshape(())) if self.has(parameter) else np.float32(default)

    def whole(self, parameter: str, default: int) -> int:
        """Return a scalar operand as a whole number."""
        return int(self.raw(parameter).reshape(())) if self.has(parameter) else default

    def flag(self, parameter: str, default: bool = False) -> bool:
        """Return a scalar operand as a truth value."""
        return bool(self.raw(parameter).reshape(())) if self.has(parameter) else default

    def text(self, parameter: str, default: str = "") -> str:
        """Return an operand that is text."""
        return str(self._one(parameter)) if self.has(parameter) else default

    def working(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return floats as they are computed with: fp16 in f32, everything in f64 where sums are exact."""
        if array.dtype.kind == "f" and self.walk.exact:
            return array.astype(np.float64, copy=False)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def state(self, parameter: str) -> str:
        """Return the name of the state that an operand is."""
        return str(self.op.inputs[parameter][0])

    @property
    def type(self) -> Type:
        """The declared type of the first result."""
        return self.op.outputs[0][1]

    @property
    def name(self) -> str:
        """The name of the first result."""
        return self.op.outputs[0][0]

    @property
    def modern(self) -> bool:
        """Whether the op set is iOS 17's or later, where a negative index is out of range."""
        digits = self.walk.opset.removeprefix("CoreML")
        return not digits.isdigit() or int(digits) >= _MODERN
