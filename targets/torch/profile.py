"""Seconds of each scope of the emitted inference function, taken line by line while it runs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.base import Phase
from omnic.targets.torch.session import TorchSession

__all__ = ["profile"]

_SCOPE = re.compile(r"\s*# ([\w.]+)(?: \(.*\))?$")


def profile(session: TorchSession, tokens: NDArray[np.int64], steps: int) -> list[Phase]:
    """Time a prefill of ``tokens`` [T] and ``steps`` single tokens after it, once each after a warm-up."""
    names = {session.program.module.called(n) for n in (len(tokens), 1)}
    clock = _Clock([session.program.function(n) for n in sorted(names)], session.program.source)
    _prefill(session, tokens)
    _prefill(session, tokens)
    phases: list[Phase] = []
    session.reset(1)
    clock.run(lambda: session.forward(tokens[None], rows=np.array([[len(tokens) - 1]])))
    phases.append(Phase("prefill", len(tokens), clock.take()))
    for _ in range(steps):
        clock.run(lambda: session.forward(tokens[None, -1:]))
    phases.append(Phase("decode", steps, clock.take()))
    return phases


def _prefill(session: TorchSession, tokens: NDArray[np.int64]) -> None:
    session.reset(1)
    session.forward(tokens[None], rows=np.array([[len(tokens) - 1]]))
    session.forward(tokens[None, -1:])


class _Clock:
    """Adds the time between two lines of the same function to the scope of the first."""

    def __init__(self, functions: Sequence[Callable[..., Any]], source: str) -> None:
        self.codes = {f.__code__ for f in functions}
        self.scopes: list[str] = [""]
        scope = ""
        for line in source.splitlines():
            found = _SCOPE.match(line)
            scope = found.group(1) if found else "" if line.startswith("def ") else scope
            self.scopes.append(scope)
        self.seconds: dict[str, float] = {}
        self._line, self._began = 0, 0.0

    def run(self, call: Callable[[], Any]) -> None:
        """Run ``call`` with the clock on."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)

    def take(self) -> dict[str, float]:
        """Return seconds by scope since the last call of this."""
        found, self.seconds = self.seconds, {}
        return found

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        if frame.f_code not in self.codes:
            return None
        self._line, self._began = frame.f_lineno, time.perf_counter()
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        now = time.perf_counter()
        scope = self.scopes[self._line]
        self.seconds[scope] = self.seconds.get(scope, 0.0) + now - self._began
        self._line, self._began = frame.f_lineno, time.perf_counter()
        return self._step
