"""A saved ML program, evaluated operation by operation in numpy."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError, nearest
from omnic.targets.coreml.evaluator.graph import Block, Op, read_block, reads_of, writes_of
from omnic.targets.coreml.evaluator.package import Package
from omnic.targets.coreml.evaluator.stored import Stored
from omnic.targets.coreml.evaluator.types import NUMPY, Type, is_float
from omnic.targets.coreml.evaluator.walk import ROUNDINGS, Walk, kept_as

__all__ = ["Function", "Program", "ValueInfo"]


@dataclass(frozen=True)
class ValueInfo:
    """One value of a function.

    Attributes:
        name: of the value.
        type: its declared type.
        op: the operation that makes it; ``input`` for an input of the function.
    """

    name: str
    type: Type
    op: str


class Program:
    """An ML package whose weights stay on disk.

    Attributes:
        path: the package.
        functions: names of its functions, the default one first.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self.path = package.path
        protos = package.model.mlProgram.functions
        default = str(package.model.description.defaultFunctionName) or "main"
        self.functions: tuple[str, ...] = tuple(sorted(map(str, protos), key=lambda name: (name != default, name)))
        self._read: dict[str, Function] = {}

    @classmethod
    def open(cls, package: Path) -> Program:
        """Open a package; of its weights nothing is read.

        Raises:
            BundleError: no such package, a damaged one, or one that holds no ML program.
        """
        return cls(Package(Path(package)))

    def function(self, name: str = "") -> Function:
        """Return a function; the default one without a name.

        Raises:
            InputError: there is none of this name.
        """
        name = name or self.functions[0]
        if name not in self.functions:
            raise InputError(f"{self.path} has no function '{name}'", f"it has: {', '.join(self.functions)}")
        if name not in self._read:
            self._read[name] = Function(self._package, name)
        return self._read[name]

    def close(self) -> None:
        """Close the weight files."""
        self._package.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Function:
    """One function of a program.

    Attributes:
        name: of the function.
        opset: such as ``CoreML8`` (iOS 18).
        inputs: its inputs without the states.
        states: its states.
        outputs: what it gives.
    """

    def __init__(self, package: Package, name: str) -> None:
        proto = package.model.mlProgram.functions[name]
        self.name, self.opset, self._path = name, str(proto.opset), package.path
        if self.opset not in proto.block_specializations:
            raise BundleError(f"{package.path}: function {name} has no operations for its op set '{self.opset}'")
        self._block: Block = read_block(package, proto.block_specializations[self.opset], proto.inputs, self.opset)
        types = self._block.types
        self.inputs: dict[str, Type] = {n: t for n, t in self._block.inputs if not t.state}
        self.states: dict[str, Type] = {n: t for n, t in self._block.inputs if t.state}
        self.outputs: dict[str, Type] = {n: types[n] for n in self._block.outputs if n in types}
        if len(self.outputs) != len(set(self._block.outputs)):
            raise BundleError(f"{package.path}: function {name} gives a value that nothing makes")

    @cached_property
    def _makers(self) -> dict[str, int]:
        return {name: i for i, op in enumerate(self._block.ops) for name, _ in op.outputs}

    @property
    def ops(self) -> tuple[Op, ...]:
        """Its operations in order."""
        return self._block.ops

    def values(self) -> tuple[ValueInfo, ...]:
        """Return the values of the function in order: its inputs and states, then what each operation makes."""
        given = [ValueInfo(name, type, "input") for name, type in self._block.inputs]
        return (*given, *(ValueInfo(name, type, op.kind) for op in self.ops for name, type in op.outputs))

    def stored(self, name: str) -> Stored:
        """Return a constant, to be read by rows: a ``const`` as it is stored, ``constexpr_*`` decoded.

        ``NAME.PARAMETER`` is what the constant NAME is made of: ``w.data`` the codes of a blockwise one, ``w.scale``.

        Raises:
            InputError: there is no constant of this name.
        """
        at = self._makers.get(name)
        found = Walk(self._block).constant(name) if at is not None and self.ops[at].constant else None
        maker, _, parameter = name.rpartition(".")
        if at is None and maker in self._makers:
            given = self.ops[self._makers[maker]].inputs.get(parameter, (None,))[0]
            if isinstance(given, str):
                return self.stored(given)
            found = None if given is None else given[0]
        if not isinstance(found, Stored):
            known = [n for op in self.ops if op.constant for n, _ in op.outputs]
            near = nearest(name, known)
            hint = f"did you mean '{near}'?" if near else "Function.values() lists what it has"
            raise InputError(f"function {self.name} has no constant '{name}'", hint)
        return found

    def weight(self, name: str) -> NDArray[Any]:
        """Return a constant as it is stored: codes of fewer than 8 bits in a byte each, floats as they lie.

        Raises:
            InputError: there is no constant of this name.
        """
        return self.stored(name).array()

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        states: MutableMapping[str, NDArray[Any]] | None = None,
        *,
        until: Sequence[str] | None = None,
        rounding: str = "as_typed",
    ) -> dict[str, NDArray[Any]]:
        """Evaluate what is wanted, operation by operation, and nothing else.

        Args:
            inputs: the function's inputs, or any values inside it: what makes those is not evaluated.
            states: by name; a state that is absent begins as zeros, and what is written is put in here.
            until: names of values or states wanted; the function's outputs and all of its states when None.
            rounding: ``as_typed`` rounds every value of type fp16 to fp16; ``none`` keeps it in f32; ``exact`` rounds
                it too, and computes everything else in f64, so that no sum depends on its order.

        Returns:
            name -> value, of the declared type (f32 for fp16 with ``rounding="none"``, f64 for fp32 with ``exact``).

        Raises:
            InputError: an unknown name, a missing input, one of another shape, or an operation that is not known.
            BundleError: the package is damaged.
        """
        if rounding not in ROUNDINGS:
            raise InputError(f"no rounding '{rounding}'", f"it is one of: {', '.join(ROUNDINGS)}")
        held = {} if states is None else states
        given = {name: self._given(name, value, rounding) for name, value in inputs.items()}
        for name, value in held.items():
            if name not in self.states:
                raise InputError(f"function {self.name} has no state '{name}'", self._near(name, self.states))
            held[name] = self._given(name, value, rounding)
        wanted = list(self._block.outputs if until is None else until)
        for name in wanted:
            if name not in self._block.types:
                raise InputError(f"function {self.name} has no value '{name}'", self._near(name, self._block.types))
        ends = {i for i, op in enumerate(self.ops) if until is None and writes_of(op)}
        plan = self._plan(given, [n for n in wanted if n not in self.states], ends, wanted)
        walk = Walk(self._block, rounding, given, held, set(wanted))
        walk.run(plan)
        for name in (n for n in wanted if n in self.states):
            walk.state(name)
        return {n: held[n] if n in self.states else walk.array(n) for n in wanted}

    @staticmethod
    def _near(name: str, known: Mapping[str, Any]) -> str:
        near = nearest(name, list(known))
        return f"did you mean '{near}'?" if near else "Function.values() lists what it has"

    def _given(self, name: str, value: Any, rounding: str) -> NDArray[Any]:
        if name not in self._block.types:
            raise InputError(f"function {self.name} has no value '{name}'", self._near(name, self._block.types))
        type, array = self._block.types[name], np.asarray(value)
        if not type.fits(array.shape):
            raise InputError(f"function {self.name}: '{name}' is {type}, and was given the shape {list(array.shape)}")
        kind = array.dtype.kind
        if (is_float(type.word) and kind not in "fiub") or (not is_float(type.word) and kind == "f"):
            raise InputError(f"function {self.name}: '{name}' is {type}, and was given {array.dtype}")
        dtype: Any = NUMPY[type.word]
        if kind in "iu" and np.dtype(dtype).kind in "iu" and array.size:
            limits = np.iinfo(dtype)
            if int(array.min()) < limits.min or int(array.max()) > limits.max:
                raise InputError(f"function {self.name}: '{name}' is {type}, and was given numbers beyond its range")
        with np.errstate(over="ignore"):
            return array.astype(kept_as(type.word, rounding))

    def _plan(
        self, given: Mapping[str, Any], names: Sequence[str], ends: set[int], wanted: Sequence[str]
    ) -> list[int]:
        """Return the operations to evaluate, in order: those that the wanted values need."""
        writers: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            for state in writes_of(op):
                writers.setdefault(state, []).append(i)
        stack: list[int] = [*ends, *(writers[n][-1] for n in wanted if n in writers)]
        needed: set[int] = set()

        def ask(name: str, by: str) -> None:
            if name in given or name in self.states:
                return
            if name in self.inputs:
                raise InputError(f"function {self.name}: input '{name}' is missing", f"{by} needs it")
            if name not in self._makers:
                raise BundleError(f"{self._path}: {by} reads '{name}', which nothing makes")
            stack.append(self._makers[name])

        for name in names:
            ask(name, "what is wanted")
        while stack:
            at = stack.pop()
            if at in needed:
                continue
            needed.add(at)
            op = self.ops[at]
            for name in op.names():
                ask(name, op.outputs[0][0] if op.outputs else op.name)
            for state in reads_of(op) | writes_of(op):
                stack += [i for i in writers.get(state, ()) if i < at][-1:]
        return sorted(i for i in needed if not self.ops[i].constant)
