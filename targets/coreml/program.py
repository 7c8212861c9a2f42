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
from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.files import NAMES_FILE, PACKAGE
from omnic.targets.coreml.legalise import rounds

__all__ = ["Call", "Form", "Package"]



@dataclass(frozen=True)
class Form:
    """One function of a package, as the table of names describes it."""

    name: str
    function: str
    sizes: tuple[int, ...]
    length: str
    rows: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    names: Mapping[str, str]
    columns: frozenset[str]

    def takes(self, tokens: int) -> int | None:
        """Return the length at which it takes a call of ``tokens``, None when it does not."""
        if self.length == "ranged":
            return max(tokens, self.sizes[0]) if tokens <= self.sizes[1] else None
        return min((s for s in self.sizes if s >= tokens), default=None)


@dataclass(frozen=True)
class Call:
    """What one call of a function gives: results of the IR's function by name, states included."""

    values: Mapping[str, NDArray[Any]]


class Package:
    """A saved package and the table of its names.

    Args:
        folder: of the bundle.
        module: its IR.

    Raises:
        BundleError: a file is missing.
    """

    def __init__(self, folder: Path, module: Module) -> None:
        path = folder / NAMES_FILE
        if not path.is_file() or not (folder / PACKAGE).is_dir():
            raise BundleError(
                f"{folder}: the bundle has no {NAMES_FILE} or no {PACKAGE}",
                "copy the bundle again, or compile it again",
            )
        about = json.loads(path.read_text(encoding="utf-8"))
        self.folder, self.module, self.about = folder, module, about
        self.half, self.stateful = bool(about["half"]), bool(about["stateful"])
        #: where the program rounds to fp16, the last bit of a sum decides how: both sides sum exactly
        self.rounding = "exact" if self.half or rounds(module) else "as_typed"
        self.forms = tuple(
            Form(name, f["function"], tuple(f["sizes"]), f["length"], int(f["rows"]), f["inputs"], f["outputs"],
                 f["names"], frozenset(f["columns"]))
            for name, f in about["functions"].items()
        )

    @cached_property
    def program(self) -> Program:
        """The saved program."""
        return Program.open(self.folder / PACKAGE)

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
        given = self._fed(form, length, inputs)
        kept = {n: states[v] for n, v in form.inputs.items() if v in self.module.states}
        if self.stateful:
            found = self.program.function(form.name).run(given, kept, until=None, rounding=self.rounding)
            states.update({form.inputs[n]: array for n, array in kept.items()})
        else:
            found = self.program.function(form.name).run({**given, **kept}, {}, until=None, rounding=self.rounding)
        results: dict[str, NDArray[np.float32]] = {}
        for name, result in form.outputs.items():
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
        fed = {form.names.get(n, n): self._typed(form, n, a) for n, a in self._padded(form, length, inputs).items()
               if n in form.names}
        kept = {n: states[v] for n, v in form.inputs.items() if v in states}
        if not self.stateful:
            fed |= {n: a for n, a in kept.items() if n not in fed}
            kept = {}
        until = [form.names[n] for n in names] + (list(kept) if advance else [])
        found = self.program.function(form.name).run(fed, kept, until=until, rounding=self.rounding)
        for name, state in form.inputs.items():
            if state in states and name in kept:
                states[state] = kept[name]
        return {n: self._shaped(form, n, np.asarray(found[form.names[n]])) for n in names}

    # -- arrays ------------------------------------------------------------------------------------------------
    def value(self, function: str, name: str) -> Value:
        """Return a value of the IR's function."""
        found = next((v for v in self.module.function(function).values() if v.name == name), None)
        if found is None:
            raise InputError(f"@{function} has no value {name}")
        return found

    def _fed(self, form: Form, length: int, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        padded = self._padded(form, length, inputs)
        return {n: self._typed(form, v, padded[v]) for n, v in form.inputs.items() if v not in self.module.states}

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

    def _typed(self, form: Form, name: str, array: NDArray[Any]) -> NDArray[Any]:
        value = self.value(form.function, name)
        if not value.type.is_float:
            return array.astype(np.bool_ if array.dtype.kind == "b" else np.int32)
        numbers = array if self.rounding == "exact" else array.astype(np.float32, copy=False)
        return np.ascontiguousarray(numbers.transpose(0, 2, 1)[:, :, None]) if name in form.columns else numbers

    def _shaped(self, form: Form, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in form.columns:
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
