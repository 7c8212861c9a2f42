"""The walk over the operations of a block: values that are alive, constants that are not read yet, states."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError
from omnic.targets.coreml.evaluator.call import Call
from omnic.targets.coreml.evaluator.graph import Block, Literal, Op, writes_of
from omnic.targets.coreml.evaluator.ops import HANDLERS
from omnic.targets.coreml.evaluator.ops.constexpr import CONSTEXPR
from omnic.targets.coreml.evaluator.stored import Stored
from omnic.targets.coreml.evaluator.types import NUMPY, Type, is_float

__all__ = ["ROUNDINGS", "Walk", "kept_as"]

#: ``as_typed``: values of type fp16 are rounded to it; ``none``: they are kept in f32; ``exact``: values of fp16 are
#: rounded, and nothing else is: everything is computed in f64
ROUNDINGS = ("as_typed", "none", "exact")
#: most passes of one loop: one that does not end is a defect of the program
MOST_PASSES = 1_000_000


def kept_as(word: str, rounding: str) -> Any:
    """Return the dtype in which values of a type are kept."""
    if word == "fp16" and rounding == "none":
        return np.float32
    return np.float64 if word == "fp32" and rounding == "exact" else NUMPY[word]


class Walk:
    """Evaluates a block.

    Args:
        block: the operations.
        rounding: one of :data:`ROUNDINGS`.
        given: values that are known.
        states: of the function; written ones are replaced in here.
        keep: names whose values stay to the end.
        outer: the walk of the block around this one.
    """

    def __init__(
        self,
        block: Block,
        rounding: str = "as_typed",
        given: Mapping[str, NDArray[Any]] | None = None,
        states: MutableMapping[str, NDArray[Any]] | None = None,
        keep: set[str] | None = None,
        outer: Walk | None = None,
    ) -> None:
        self.block, self.rounding, self.outer = block, rounding, outer
        self.exact = rounding == "exact"
        self._given = dict(given or {})
        self._env: dict[str, NDArray[Any]] = dict(self._given)
        self._states: MutableMapping[str, NDArray[Any]] = {} if states is None else states
        self._keep = keep or set()
        self._constants: dict[str, Literal] = {}
        self._makers = {name: op for op in block.ops if op.constant for name, _ in op.outputs}
        self.opset: str = outer.opset if outer is not None else block.opset

    # -- values ----------------------------------------------------------------------------------------
    def value(self, name: str) -> NDArray[Any] | Literal:
        """Return a value; a constant is not read."""
        if name in self._env:
            return self._env[name]
        if name in self._makers:
            found = self.constant(name)
            if found is not None:
                return found
        if self.outer is not None:
            return self.outer.value(name)
        raise BundleError(f"the program reads '{name}' before it is made")

    def array(self, name: str) -> NDArray[Any]:
        """Return a value as an array."""
        found = self.value(name)
        if isinstance(found, str):
            raise InputError(f"'{name}' is text, not a tensor")
        return found.array() if isinstance(found, Stored) else found

    def constant(self, name: str) -> Literal | None:
        """Return the constant called ``name``, its numbers where they are."""
        if name not in self._constants:
            op = self._makers.get(name)
            if op is None:
                return None
            for (output, _), made in zip(op.outputs, self._made(op), strict=True):
                self._constants[output] = made
        return self._constants[name]

    def _made(self, op: Op) -> Sequence[Literal]:
        if op.kind == "const":
            if op.value is None:
                raise BundleError(f"the constant '{op.outputs[0][0]}' has no value")
            return (op.value,)
        if op.kind not in CONSTEXPR:
            raise self._unknown(op)

        def literal(parameter: str) -> Literal | None:
            if parameter not in op.inputs:
                return None
            given = op.inputs[parameter][0]
            found = self.value(given) if isinstance(given, str) else given[0]
            if isinstance(found, np.ndarray):
                raise BundleError(f"{op.kind} '{op.outputs[0][0]}' reads '{parameter}', which is no constant")
            return found

        made = CONSTEXPR[op.kind](literal)
        for (name, type), one in zip(op.outputs, made, strict=True):
            if isinstance(one, Stored) and not type.fits(one.shape):
                raise BundleError(f"{op.kind} '{name}' is declared {type} and has the shape {list(one.shape)}")
        return made

    # -- states ----------------------------------------------------------------------------------------
    def state(self, name: str) -> NDArray[Any]:
        """Return what a state holds; zeros before it is written first."""
        root = self
        while root.outer is not None:
            root = root.outer
        if name not in root._states:
            type = root.block.types[name]
            root._states[name] = np.zeros([d or 0 for d in type.shape], kept_as(type.word, self.rounding))
        return root._states[name]

    def write(self, name: str, value: NDArray[Any], op: Op) -> NDArray[Any]:
        """Put ``value`` into a state, of its type, and return what it then holds."""
        root = self
        while root.outer is not None:
            root = root.outer
        type = root.block.types[name]
        root._states[name] = self.settled(value, type, op, name)
        return root._states[name]

    # -- operations ------------------------------------------------------------------------------------
    def run(self, plan: Sequence[int] | None = None) -> None:
        """Evaluate the operations with these numbers; all but the constants without a plan."""
        ops = self.block.ops
        plan = [i for i, op in enumerate(ops) if not op.constant] if plan is None else plan
        last = {name: i for i in plan for name in ops[i].names()}
        for i in plan:
            self._one(ops[i])
            for name in {*ops[i].names(), *(n for n, _ in ops[i].outputs)}:
                if last.get(name, -1) <= i and name not in self._keep and name in self._env:
                    del self._env[name]

    def _one(self, op: Op) -> None:
        if op.kind == "cond":
            results = self._cond(op)
        elif op.kind == "while_loop":
            results = self._loop(op)
        elif op.kind in HANDLERS:
            results = self._handled(op)
        else:
            raise self._unknown(op)
        if len(results) < len(op.outputs):
            raise InputError(f"{_place(op)}: gives {len(op.outputs)} values, and {len(results)} are known")
        for (name, type), result in zip(op.outputs, results, strict=False):
            if name not in self._given:
                self._env[name] = self.settled(result, type, op, name)

    def _handled(self, op: Op) -> Sequence[NDArray[Any]]:
        try:
            with np.errstate(all="ignore"):
                made = HANDLERS[op.kind](Call(self, op))
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            # What numpy refuses (shapes, indices, axes) is the program's mistake, not the evaluator's.
            raise InputError(f"{_place(op)}: {error}", "coremltools would refuse it, or leaves it undefined") from error
        return made if isinstance(made, tuple | list) else (made,)

    def settled(self, value: Any, type: Type, op: Op, name: str) -> NDArray[Any]:
        """Return a result in its declared type, its shape checked."""
        array = np.asarray(value)
        if not type.fits(array.shape):
            raise InputError(f"{_place(op)}: '{name}' is declared {type} and has the shape {list(array.shape)}")
        if is_float(type.word) != (array.dtype.kind == "f"):
            raise InputError(f"{_place(op)}: '{name}' is declared {type} and has {array.dtype} elements")
        dtype = kept_as(type.word, self.rounding)
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype, copy=False)

    # -- control ---------------------------------------------------------------------------------------
    def _cond(self, op: Op) -> Sequence[NDArray[Any]]:
        chosen = op.blocks[0] if bool(Call(self, op).raw("pred")) else op.blocks[1]
        return self._inside(chosen, ())

    def _loop(self, op: Op) -> Sequence[NDArray[Any]]:
        test, body = op.blocks
        values: Sequence[NDArray[Any]] = Call(self, op).values("loop_vars")
        for _ in range(MOST_PASSES):
            if not bool(self._inside(test, values)[0]):
                return values
            values = self._inside(body, values)
        raise InputError(f"{_place(op)}: more than {MOST_PASSES} passes")

    def _inside(self, block: Block, values: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        given = {name: value for (name, _), value in zip(block.inputs, values, strict=True)}
        walk = Walk(block, self.rounding, given, None, set(block.outputs), self)
        walk.run()
        return [walk.array(name) for name in block.outputs]

    @staticmethod
    def _unknown(op: Op) -> InputError:
        return InputError(
            f"{_place(op)}: the evaluator does not know this operation",
            f"it knows {len(HANDLERS) + len(CONSTEXPR) + 3}: docs/coreml_evaluator.md lists them",
        )


def _place(op: Op) -> str:
    written = sorted(writes_of(op))
    return f"{op.kind} '{op.outputs[0][0] if op.outputs else (written[0] if written else op.name)}'"
