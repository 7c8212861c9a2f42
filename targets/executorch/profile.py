"""Seconds of each method of the saved program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.runtime.bundle import Bundle
from omnic.targets.base import Phase
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.session import ExecutorchSession

__all__ = ["profile"]


def profile(bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
    """Time a prefill of ``tokens`` [T] and ``steps`` single tokens after it, once each after a warm-up."""
    session = ExecutorchSession(Program(bundle.path, threads), bundle.module)
    prompt = lambda: session.forward(tokens[None], rows=np.array([[len(tokens) - 1]]))  # noqa: E731
    step = lambda: session.forward(tokens[None, -1:])  # noqa: E731
    for _ in range(2):
        session.reset(1)
        prompt()
        step()
    session.reset(1)
    found = [Phase("prefill", len(tokens), {"": _timed(prompt)})]
    return [*found, Phase("decode", steps, {"": sum(_timed(step) for _ in range(steps))})]


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
