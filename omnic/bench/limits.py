"""What the machine can do at most: bytes read and floating point operations a second, in the same run.

Both are measured in a child with as many threads as the contestants have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from omnic.bench.runners import Contestant
from omnic.bench.worker import Worker

__all__ = ["Limits", "LimitsRunner", "measure_limits", "open_limits", "open_limits_worker"]

SIDE = 1024
MOST = 512 << 20
LEAST = 1 << 20


@dataclass
class Limits:
    """The best figures seen.

    Attributes:
        read: bytes a second that the threads read together, from memory of the size of the working set.
        flops: f32 operations a second of a product of two 1024 x 1024 matrices.
    """

    read: float = 0.0
    flops: float = 0.0


class LimitsRunner:
    """A runner whose prompt is a product of matrices, and whose token is one pass over the working set."""

    def __init__(self, bytes: int, threads: int) -> None:
        size = max(LEAST, min(MOST, bytes)) // threads // 4
        self.parts = [np.ones(size, np.float32) for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads)
        rng = np.random.default_rng(0)
        self.left = rng.standard_normal((SIDE, SIDE), np.float32)
        self.columns = [rng.standard_normal((SIDE, SIDE // threads), np.float32) for _ in range(threads)]

    def prompt(self, ids: object) -> int:
        """Multiply; every thread has its columns."""
        self._each([lambda c=c: self.left @ c for c in self.columns])
        return 0

    def step(self, token: int) -> int:
        """Read everything once."""
        self._each([lambda p=p: p.max() for p in self.parts])
        return token

    def _each(self, tasks: list[Callable[[], object]]) -> None:
        for done in [self.pool.submit(task) for task in tasks]:
            done.result()


def open_limits(bytes: int, threads: int) -> LimitsRunner:
    """Open the runner in a child whose BLAS has one thread: ours are the threads."""
    return LimitsRunner(bytes, threads)


def open_limits_worker(bytes: int, threads: int) -> Worker:
    """Start the child; its BLAS has one thread, since the runner's own threads are what is counted."""
    with _environment(OPENBLAS_NUM_THREADS="1", VECLIB_MAXIMUM_THREADS="1"):
        return Worker(Contestant("limits", "omnic.bench.limits:open_limits", {"bytes": bytes, "threads": threads}))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for the children that are started within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_limits(worker: Worker, bytes: int, seen: Limits) -> None:
    """Measure once more, for half a second, and keep the best."""
    began = time.perf_counter()
    size = max(LEAST, min(MOST, bytes))
    while time.perf_counter() - began < 0.5:
        seen.flops = max(seen.flops, 2.0 * SIDE**3 / worker.prompt(np.zeros(1, np.int64)))
        seen.read = max(seen.read, size / min(worker.decode(4)))
