"""Running a package on this machine: its saved bytes evaluated in numpy, or by Core ML itself on macOS."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module, Value
from omnic.targets.coreml.evaluator import Function, Program
from omnic.targets.coreml.files import NAMES_FILE, PACKAGE
from omnic.targets.coreml.legalise import rounds

__all__ = ["Form", "Package", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One function of one package, as the table of names describes it.

    Attributes:
        package: its folder's name.
        name: of the function in there.
        inputs: input -> parameter of the IR's function.
        outputs: output -> result of the IR's function.
        takes: input -> value that an earlier stage gives.
        gives: output -> value that later stages take.
        names: value of the IR -> name in the program.
        columns: values that are [1, C, 1, T] in the program.
    """

    package: str
    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    takes: Mapping[str, str]
    gives: Mapping[str, str]
    names: Mapping[str, str]
    columns: frozenset[str]

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Stage:
        """Return what the table says."""
        return cls(**{**about, "columns": frozenset(about["columns"])})


@dataclass(frozen=True)
class Form:
    """A function that an app calls: one stage, or several in the order in which they run."""

    name: str
    function: str
    sizes: tuple[int, ...]
    length: str
    rows: int
    stages: tuple[Stage, ...]

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """Input -> parameter of the IR's function, of all stages."""
        return {name: value for s in self.stages for name, value in s.inputs.items()}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Value of the IR -> name in the stage that makes it."""
        return {value: s.names[value] for value, s in self.homes.items()}

    @cached_property
    def homes(self) -> Mapping[str, Stage]:
        """Value of the IR -> the first stage that has it, and not from another."""
        found: dict[str, Stage] = {}
        for stage in self.stages:
            given = set(stage.takes.values())
            for value in stage.names:
                if value not in given:
                    found.setdefault(value, stage)
        return found

    def takes(self, tokens: int) -> int | None:
        """Return the length at which it takes a call of ``tokens``, None when it does not."""
        if self.length == "ranged":
            return max(tokens, self.sizes[0]) if tokens <= self.sizes[1] else None
        return min((s for s in self.sizes if s >= tokens), default=None)


class Package:
    """The saved packages of a bundle and the table of their names.

    Args:
        folder: of the bundle.
        module: its IR.

    Raises:
        BundleError: a file is missing.
    """

    def __init__(self, folder: Path, module: Module) -> None:
        path = folder / NAMES_FILE
        if not path.is_file():
            raise BundleError(
                f"{folder}: the bundle has no {NAMES_FILE} or no {PACKAGE}",
                "copy the bundle again, or compile it again",
            )
        about = json.loads(path.read_text(encoding="utf-8"))
        for name in about["packages"]:
            if not (folder / name).is_dir():
                raise BundleError(f"{folder}: the bundle has no {name}", "copy the bundle again, or compile it again")
        self.folder, self.module, self.about = folder, module, about
        self.half, self.stateful = bool(about["half"]), bool(about["stateful"])
        #: where the program rounds to fp16, the last bit of a sum decides how: both sides sum exactly
        self.rounding = "exact" if self.half or rounds(module) else "as_typed"
        self.forms = tuple(
            Form(name, f["function"], tuple(f["sizes"]), f["length"], int(f["rows"]),
                 tuple(Stage.of(s) for s in f["stages"]))
            for name, f in about["functions"].items()
        )
        self._programs: dict[str, Program] = {}

    def program(self, stage: Stage) -> Function:
        """Return the saved function of a stage."""
        if stage.package not in self._programs:
            self._programs[stage.package] = Program.open(self.folder / stage.package)
        return self._programs[stage.package].function(stage.name)

    def of(self, function: str) -> tuple[Form, ...]:
        """Return the functions that compute a function of the IR, decode first.

        Raises:
            InputError: the package has none.
        """
        found = tuple(f for f in self.forms if f.function == function)
        if not found:
            raise InputError(f"this bundle has no program '{function}'", "the model has no such block")
        return found

    def empty_states(self, function: str | None = None) -> dict[str, NDArray[Any]]:
        """Return the states of one row before the first token, by name."""
        wanted = self.module.states if function is None else [
            p.state for p in self.module.function(function).params if p.state]
        found: dict[str, NDArray[Any]] = {}
        for name in wanted:
            state = self.module.states[name]
            shape = [evaluate(d, {"B": 1}) for d in state.type.shape]
            found[name] = np.zeros(shape, np.float16 if self.half or self.stateful else np.float32)
        return found

    def piece(self, function: str, tokens: int, rows: Sequence[int]) -> tuple[Form, int, int]:
        """Choose a function for the next of ``tokens`` tokens of which ``rows`` are wanted.

        Returns:
            The function, how many tokens it takes now, and at which length.
        """
        forms = self.of(function)
        best: tuple[Form, int, int] | None = None
        for form in forms:
            count = min(tokens, max(form.sizes))
            wanted = [r for r in rows if r < count]
            if form.rows == 1 and len(wanted) > 1:
                count = wanted[0] + 1
            length = form.takes(count)
            if length is not None and (best is None or count > best[1] or (count == best[1] and length < best[2])):
                best = form, count, length
        assert best is not None
        return best

    def call(
        self, form: Form, length: int, inputs: Mapping[str, NDArray[Any]], states: MutableMapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one function for one row and keep its new states.

        Args:
            form: which.
            length: of the call; shorter inputs are padded.
            inputs: parameters of the IR's function, [1, T] and so on, ``length`` the valid ones.
            states: by name; replaced or written in place.

        Returns:
            Results by name of the IR, padded where the inputs were.
        """
        padded = self._padded(form, length, inputs)
        results: dict[str, NDArray[np.float32]] = {}
        carried: dict[str, NDArray[Any]] = {}
        for stage in form.stages:
            given = {n: self._typed(form, stage, v, padded[v]) for n, v in stage.inputs.items()
                     if v not in self.module.states}
            given |= {n: carried[v] for n, v in stage.takes.items()}
            kept = {n: states[v] for n, v in stage.inputs.items() if v in self.module.states}
            if self.stateful:
                found = self.program(stage).run(given, kept, until=None, rounding=self.rounding)
                states.update({stage.inputs[n]: array for n, array in kept.items()})
            else:
                found = self.program(stage).run({**given, **kept}, {}, until=None, rounding=self.rounding)
            carried |= {v: found[n] for n, v in stage.gives.items()}
            for name, result in stage.outputs.items():
                if result in self.module.states:
                    states[result] = found[name]
                else:
                    results[result] = np.asarray(found[name], np.float32)
        return results

    def values(
        self,
        form: Form,
        length: int,
        inputs: Mapping[str, NDArray[Any]],
        states: MutableMapping[str, NDArray[Any]],
        names: Sequence[str],
        advance: bool = False,
    ) -> dict[str, NDArray[Any]]:
        """Run what is needed for values of the IR and return them; ``inputs`` may name any value.

        With ``advance`` states that the runtime keeps are written too.
        """
        missing = [n for n in names if n not in form.names]
        if missing:
            raise InputError(f"the program {form.name} shows no value {missing[0]}", "see Target.preserved")
        padded = self._padded(form, length, inputs)
        wanted = list(names)
        if advance and self.stateful:
            wanted += [r.value.name for r in self.module.function(form.function).results if r.state is not None]
        needed = self._needed(form, wanted, {*padded, *states})
        carried: dict[str, NDArray[Any]] = {}
        results: dict[str, NDArray[Any]] = {}
        for stage in form.stages:
            here = [n for n in names if form.homes[n] is stage]
            gives = {n: v for n, v in stage.gives.items() if v in needed and v not in padded}
            kept = {n: states[v] for n, v in stage.inputs.items() if v in states}
            fed = {stage.names[n]: self._typed(form, stage, n, a) for n, a in padded.items() if n in stage.names}
            fed |= {n: carried[v] for n, v in stage.takes.items() if v in carried}
            if not self.stateful:
                fed |= {n: a for n, a in kept.items() if n not in fed}
                kept = {}
            until = [*(stage.names[n] for n in here), *gives, *(kept if advance else ())]
            if not until:
                continue
            found = self.program(stage).run(fed, kept, until=until, rounding=self.rounding)
            carried |= {v: found[n] for n, v in gives.items()}
            results |= {n: self._shaped(stage, n, np.asarray(found[stage.names[n]])) for n in here}
            for name, state in stage.inputs.items():
                if state in states and name in kept:
                    states[state] = kept[name]
        return results

    def _needed(self, form: Form, names: Sequence[str], given: set[str]) -> set[str]:
        """Return the values that ``names`` need, back to those that are given."""
        makers = {v.name: n for n in self.module.function(form.function).nodes for v in n.results}
        stack, found = list(names), set[str]()
        while stack:
            name = stack.pop()
            if name in found or name in given:
                continue
            found.add(name)
            if name in makers:
                stack += [v.name for v in makers[name].inputs() if not v.weight]
        return found

    # -- arrays ------------------------------------------------------------------------------------------------
    def value(self, function: str, name: str) -> Value:
        """Return a value of the IR's function."""
        found = next((v for v in self.module.function(function).values() if v.name == name), None)
        if found is None:
            raise InputError(f"@{function} has no value {name}")
        return found

    def _padded(self, form: Form, length: int, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sizes = {"T": length, "R": form.rows}
        found: dict[str, NDArray[Any]] = {}
        for name, array in inputs.items():
            shape = self.value(form.function, name).type.shape
            widths = [(0, sizes[str(d)] - n) if str(d) in sizes else (0, 0)
                      for d, n in zip(shape, array.shape, strict=True)]
            if any(w < 0 for _, w in widths):
                raise InputError(
                    f"{name} is {list(array.shape)}, {form.name} takes {length} tokens and {form.rows} rows"
                )
            found[name] = np.pad(array, widths)
        return found

    def _typed(self, form: Form, stage: Stage, name: str, array: NDArray[Any]) -> NDArray[Any]:
        value = self.value(form.function, name)
        if not value.type.is_float:
            return array.astype(np.bool_ if array.dtype.kind == "b" else np.int32)
        numbers = array if self.rounding == "exact" else array.astype(np.float32, copy=False)
        return np.ascontiguousarray(numbers.transpose(0, 2, 1)[:, :, None]) if name in stage.columns else numbers

    def _shaped(self, stage: Stage, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in stage.columns:
            return np.ascontiguousarray(array[:, :, 0].transpose(0, 2, 1))
        return array


def cut(value: Value, array: NDArray[Any], tokens: int, rows: int) -> NDArray[Any]:
    """Return a value without the padding of its tokens and rows."""
    sizes = {"T": tokens, "R": rows}
    index = tuple(slice(0, sizes[str(d)]) if str(d) in sizes else slice(None) for d in value.type.shape)
    return array[index]


def token_axis(value: Value, symbol: str) -> int | None:
    """Return which dim of a value is ``T`` (or ``R``)."""
    return next((i for i, d in enumerate(value.type.shape) if str(d) == symbol), None)
