"""Seconds of each scope of a program, counted by the program itself."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from omnic.runtime.bundle import Bundle
from omnic.targets.base import Phase, Ran
from omnic.targets.tvm.program import SOURCE_FILE, Bound, Program
from omnic.targets.tvm.session import NativeSession

__all__ = ["profile", "ran"]

#: a statement that calls a kernel, or a function of the program's own
_CALL = re.compile(r"^  (?:K->(\w+)|(\w+))\(", re.MULTILINE)
_NO_WORK = ("MARK",)


class _Timed(Program):
    """A program that adds up the seconds of every scope."""

    def run(self, bound: Bound, states: int, times: NDArray[np.float64] | None = None) -> None:
        """Run a bound call and count."""
        super().run(bound, states, self.times)

    times: NDArray[np.float64]


def profile(bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
    """Time a prefill of ``tokens`` [T] and ``steps`` single tokens after it, once each after a warm-up."""
    program = _Timed(bundle.path, threads)
    marks = list(program.about["marks"])
    program.times = np.zeros(len(marks))
    session = NativeSession(program)
    last = np.array([[len(tokens) - 1]])
    for _ in range(2):
        session.reset(1)
        session.forward(tokens[None], rows=last)
        session.forward(tokens[None, -1:])
    session.reset(1)
    program.times[...] = 0
    session.forward(tokens[None], rows=last)
    prefill = _phase("prefill", len(tokens), marks, program.times)
    program.times[...] = 0
    for _ in range(steps):
        session.forward(tokens[None, -1:])
    return [prefill, _phase("decode", steps, marks, program.times)]


def _phase(name: str, tokens: int, marks: list[str], times: NDArray[np.float64]) -> Phase:
    return Phase(name, tokens, {m: float(s) for m, s in zip(marks, times, strict=True) if s > 0})


def ran(bundle: Bundle, threads: int) -> list[Ran]:
    """Return the kernels of a decoded token, as its program calls them, and the level that runs them.

    What is no kernel is C of the program's own: ``loops`` are those that TVM compiled.
    """
    level = Program(bundle.path, threads).level.name.lower()
    text = bundle.text(SOURCE_FILE)
    begin = text.index(f"static void {bundle.module.called(1)}_step(const omnic_run *r)")
    found: Counter[tuple[str, str]] = Counter()
    for kernel, own in _CALL.findall(text[begin : text.index("\n}\n", begin)]):
        if kernel:
            found[kernel, level] += 1
        elif own not in _NO_WORK:
            found["loops" if own.startswith("loop") else own, "program"] += 1
    return [Ran(op, provider, count) for (op, provider), count in found.most_common()]
