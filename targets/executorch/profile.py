"""Seconds of each node of the IR in the saved program, from ExecuTorch's own event tracer.

The tracer gives the seconds of every instruction of a method; ``nodes.json`` says which nodes of the IR an instruction
computes.  Inside a delegate it gives those of each operator of XNNPACK, whose names are XNNPACK's own: they are laid
beside the operators that the delegate was given, in order, by their kinds (:func:`shared_out`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module
from omnic.runtime.bundle import Bundle
from omnic.targets.base import Phase
from omnic.targets.executorch.files import NODES_FILE
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.quiet import quiet
from omnic.targets.executorch.session import ExecutorchSession

__all__ = ["Event", "profile", "seconds_of", "shared_out"]

#: what XNNPACK calls an operator -> the operators of torch it may be
_KINDS: Mapping[str, tuple[str, ...]] = {
    "Fully Connected": ("linear", "addmm", "mm"),
    "Batch Matrix Multiply": ("bmm", "matmul"),
    "Softmax": ("_softmax", "softmax"),
    "Multiply": ("mul",),
    "Square": ("mul", "pow"),
    "Add": ("add",),
    "Subtract": ("sub",),
    "Divide": ("div",),
    "Reciprocal Square Root": ("rsqrt",),
    "Sigmoid": ("sigmoid",),
    "Transpose": ("permute", "transpose"),
    "Static Reshape": ("view", "reshape", "unsqueeze", "squeeze"),
    "Slice": ("slice", "narrow"),
    "Copy": ("cat", "clone", "expand", "view", "unsqueeze", "squeeze"),
    "GELU": ("gelu",),
    "Tanh": ("tanh",),
    "Clamp": ("clamp", "hardtanh", "relu"),
}


@dataclass(frozen=True)
class Event:
    """One event of the tracer.

    Attributes:
        instruction: of the method.
        name: ``OPERATOR_CALL``, ``DELEGATE_CALL`` or another of ExecuTorch's.
        operator: inside a delegate, its name of the operator.
        seconds: it took.
    """

    instruction: int
    name: str
    operator: str
    seconds: float


def profile(bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
    """Run a prefill of ``tokens`` [T] and ``steps`` single tokens after it under the tracer, after a warm-up."""
    program = Program(bundle.path, threads, trace=True)
    session = ExecutorchSession(program, bundle.module)
    last = np.array([[len(tokens) - 1]])
    for _ in range(2):
        session.reset(1)
        session.forward(tokens[None], rows=last)
        session.forward(tokens[None, -1:])
    session.reset(1)
    session.forward(tokens[None], rows=last)
    for _ in range(steps):
        session.forward(tokens[None, -1:])
    runs = _runs(program)[-1 - steps :]
    of = json.loads((bundle.path / NODES_FILE).read_text(encoding="utf-8"))
    prefill = seconds_of(runs[0], of[program.choose("forward", len(tokens), 1)])
    decode: dict[str, float] = {}
    for run in runs[1:]:
        for node, spent in seconds_of(run, of[program.choose("forward", 1, 1)]).items():
            decode[node] = decode.get(node, 0.0) + spent
    return [_phase("prefill", len(tokens), prefill, bundle.module), _phase("decode", steps, decode, bundle.module)]


def _phase(name: str, tokens: int, seconds: Mapping[str, float], module: Module) -> Phase:
    """Add the nodes of each scope up; what belongs to no node is of the empty scope."""
    scopes: dict[str, float] = {}
    of = {n.name: n.scope for n in module.function().nodes}
    for node, spent in seconds.items():
        scope = of.get(node, "")
        scopes[scope] = scopes.get(scope, 0.0) + spent
    return Phase(name, tokens, scopes, {n: s for n, s in seconds.items() if n in of})


def _runs(program: Program) -> list[list[Event]]:
    """Return the events of every call so far."""
    with quiet():
        from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc

        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder) / "program.etdump"
            program.handle.write_etdump_result_to_file(str(dump), str(Path(folder) / "program.bin"))
            runs = deserialize_from_etdump_flatcc(dump.read_bytes()).run_data
    found: list[list[Event]] = []
    for run in runs:
        events = [e.profile_event for e in run.events or () if e.profile_event is not None]
        if any(e.name in ("OPERATOR_CALL", "DELEGATE_CALL") for e in events):
            found.append([
                Event(e.instruction_id, e.name or "", e.delegate_debug_id_str or "", (e.end_time - e.start_time) / 1e9)
                for e in events
            ])
    return found


def seconds_of(events: Sequence[Event], of: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, float]:
    """Return seconds by node of the IR of one call; the empty name is what no node is charged with.

    Args:
        events: of the call.
        of: instruction -> its operators as :func:`omnic.targets.executorch.traced.nodes_of` gives them.
    """
    found: dict[str, float] = {}
    inside: dict[int, list[Event]] = {}

    def add(node: str, spent: float) -> None:
        found[node] = found.get(node, 0.0) + spent

    for event in events:
        operators = of.get(str(event.instruction), ())
        if event.operator:
            inside.setdefault(event.instruction, []).append(event)
        elif event.name == "OPERATOR_CALL":
            add(operators[0][1] if operators else "", event.seconds)
        elif event.name == "DELEGATE_CALL":
            parts = inside.pop(event.instruction, [])
            for node, spent in shared_out(parts, operators):
                add(node, spent)
            add("", max(event.seconds - sum(p.seconds for p in parts), 0.0))
    return found


def shared_out(events: Sequence[Event], operators: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Return (node of the IR, seconds) of each operator of a delegate, in order.

    The delegate keeps the order of the operators of a kind, so the next one of its kind is meant; an operator that
    XNNPACK adds (such as the rounding of activations) belongs to the node of the product behind it.
    """
    left: dict[str, list[str]] = {}
    for kind, node in operators:
        left.setdefault(kind.removesuffix("_copy"), []).append(node)
    found: list[tuple[str, float]] = []
    waiting = 0.0
    for event in events:
        kinds = next((k for name, k in _KINDS.items() if event.operator.startswith(name)), ())
        kind = next((k for k in kinds if left.get(k)), None)
        if kind is None:
            waiting += event.seconds
            continue
        found.append((left[kind].pop(0), event.seconds + waiting))
        waiting = 0.0
    if waiting:
        found.append(("", waiting))
    return found
