"""Programs of many cases: one function whose results are those of every case, emitted, saved and run by a target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Loc, Module, Recipe, State, Value
from omnic.ir.reference import Interpreter
from omnic.ir.text import print_module
from omnic.ir.types import DType, TensorType, parse_element
from omnic.ir.weights import WeightStore
from omnic.targets import get_target
from omnic.targets.base import EmitRequest, Emitted
from tests.parity.op_operands import CAPACITY, Case

__all__ = ["FUNCTION", "Packed", "emit_cases", "packed", "run_saved"]

#: name of the function that holds the cases
FUNCTION = "forward"
#: the line of a spec that every node says it comes from
PLACE = Loc("ops.yaml", 7, 3)
Array = NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Cases as one module.

    Attributes:
        module: with one function.
        weights: its numbers.
        inputs: of the function, by name.
        values: case -> names of the values that are its results.
    """

    module: Module
    weights: WeightStore
    inputs: dict[str, Array]
    values: dict[str, list[str]]

    def wanted(self) -> dict[str, Array]:
        """Return the reference's values by name, computed in f64."""
        found = Interpreter(self.module, self.weights).run(self.inputs, function=FUNCTION)
        return {name: np.asarray(found[name]) for names in self.values.values() for name in names}


class _Making:
    def __init__(self) -> None:
        # No dim of a case is symbolic; the functions of a model have these.
        one = {name: DimRange(1, 1) for name in ("B", "T", "R")}
        self.builder = ModuleBuilder("ops", one, {"capacity": CAPACITY})
        self.f: FunctionBuilder = self.builder.function(FUNCTION)
        # What every function of a model has: the program of training is cut to it.
        self.f.param("tokens", TensorType(DType.I64, (symbol("B"), symbol("T"))))
        self.inputs: dict[str, Array] = {"tokens": np.zeros((1, 1), np.int64)}
        self.weights: dict[str, Array] = {}
        self.values: dict[str, list[str]] = {}

    def add(self, case: Case) -> None:
        name = re.sub(r"[^a-z0-9]+", "_", case.name.lower()).strip("_")
        with self.f.scope(name, PLACE):
            operands = [self._operand(f"{name}_p{at}", case, at, array) for at, array in enumerate(case.arrays())]
            results = (
                self._state(case, name, operands)
                if case.state
                else self.f.emit(case.op, *operands, hint=f"v_{name}", **case.attrs)
            )
            # Programs of Core ML take and give no bools and no single numbers: they go through others here.  A fetch
            # that decomposes is its own operand, and has no value to show.
            results = tuple(self._shown(v) for v in results)
            if case.op == "host.fetch":
                results = (self.f.op("add", *results, self.f.constant(0, DType.I64), hint=f"v_{name}_kept"),)
        for value in results:
            self.f.result(value.name, value)
        self.values[case.name] = [v.name for v in results]

    def _shown(self, value: Value) -> Value:
        if value.type.element == DType.BOOL:
            value = self.f.op("cast", value, to=DType.F32, hint=f"{value.name}_number")
        return value if value.type.rank else self.f.op("reshape", value, shape=(1,), hint=f"{value.name}_one")

    def _operand(self, name: str, case: Case, at: int, array: Array | None) -> Value | None:
        operand = case.operands[at]
        if operand is None or array is None:
            return None
        if operand.weight:
            self.weights[name] = array
            type = TensorType(parse_element(operand.weight), array.shape)
            recipe = Recipe("load", {"name": name})
            if not isinstance(type.element, DType):
                recipe = Recipe("quantise", {"type": type.element}, (recipe,))
            return self.builder.weight(name, type, recipe)
        kinds = {"b": DType.I64, "i": DType.I64, "f": DType.F32}
        shape = array.shape or (1,)
        self.inputs[name] = array.reshape(shape).astype(np.int64 if array.dtype.kind == "b" else array.dtype)
        found = self.f.param(name, TensorType(kinds[array.dtype.kind], shape))
        if array.dtype.kind == "b":
            found = self.f.op("ne", found, self.f.constant(0, DType.I64))
        return found if array.ndim else self.f.op("reshape", found, shape=())

    def _state(self, case: Case, name: str, operands: Sequence[Value | None]) -> tuple[Value, ...]:
        x, *rest = operands
        assert x is not None
        *middle, _, width = x.type.shape[1:]
        ring = bool(case.attrs.get("ring", False))
        type = TensorType(parse_element(case.state), (1, *middle, CAPACITY, width))
        role = "k" if middle else "latent"
        self.builder.state(State(name, type, role, 0, ring=ring, window=4 if ring else None))
        before = self.f.param(name, type, state=name)
        flags = {"ring": True} if ring else {}
        if case.op == "cache_close":
            start, length = rest[1:]
            after = self.f.op(case.op, before, x, *rest)
        else:
            start, length = rest[:2]
            after = self.f.op("cache_write", before, x, start, length, **flags)
        if case.op == "cache_move":
            after = self.f.op("cache_move", after, *rest[2:], **flags)
        self.f.result(name, after, state=name)
        return self.f.emit("cache_read", after, start, length, hint=f"v_{name}", **flags)


def packed(cases: Sequence[Case]) -> Packed:
    """Return ``cases`` as one module."""
    making = _Making()
    for case in cases:
        making.add(case)
    module = making.builder.build()
    return Packed(module, WeightStore.of(module, making.weights), making.inputs, making.values)


def emit_cases(program: Packed, target: str, options: dict[str, Any], out: Path) -> Emitted:
    """Write the program of a target into a new folder; the module lies beside it, as a bundle has it.

    Raises:
        InputError: the target refuses a case.
    """
    out.mkdir(parents=True, exist_ok=True)
    backend = get_target(target)
    given = backend.options({**options, **EXTRA.get(target, {})})
    made = backend.emit(EmitRequest(program.module, program.weights, out, given, lambda what, share: None))
    (out / "module.ir").write_text(print_module(made.module), encoding="utf-8")
    return made


def run_saved(program: Packed, target: str, out: Path) -> dict[str, Array]:
    """Run what :func:`emit_cases` wrote and return every result by name."""
    if target in RUNNERS:
        return RUNNERS[target](program, out)
    names = [name for values in program.values.values() for name in values]
    return get_target(target).capture_part(out, program.inputs, names, FUNCTION)


def _run_executorch(program: Packed, out: Path) -> dict[str, Array]:
    """The saved program itself: what ``capture_part`` shows there is lowered anew."""
    import torch

    from omnic.targets.executorch.program import Program

    loaded = Program(out)
    ((name, about),) = ((n, a) for n, a in loaded.about["methods"].items() if a["function"] == FUNCTION)
    arguments = [torch.as_tensor(np.array(program.inputs[n])) for n in about["inputs"]]
    found = loaded.method(name).execute(arguments)
    return {r["name"]: t.float().numpy() for r, t in zip(about["results"], found, strict=False)}


#: what a program of ops has to be told beside the options of a row: there is no text to run
EXTRA: dict[str, dict[str, Any]] = {"executorch": {"runner": False}, "coreml": {"verify": "none"}}
RUNNERS = {"executorch": _run_executorch}
