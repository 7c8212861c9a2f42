"""What the machine can do at most: bytes read and floating point operations a second, in the same run.

Both are measured in a child with as many threads as the contestants have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnic.bench.reading import mapped, reader
from omnic.bench.runners import Contestant
from omnic.bench.worker import Worker

__all__ = ["Limits", "LimitsRunner", "Turns", "open_limits", "open_limits_worker"]

SIDE = 1024
MOST = 512 << 20
LEAST = 1 << 20
#: operations of the product
PRODUCT = 2.0 * SIDE**3
#: steps of one turn, and the bytes that one step reads at least: what calling it costs must not be seen
STEPS, STEP = 2, 64 << 20


@dataclass(frozen=True)
class Limits:
    """Medians over the run.

    Attributes:
        read: bytes a second that the threads read together, from memory of the size and the page kind of the working
            set.
        flops: f32 operations a second of a product of two 1024 x 1024 matrices.
        how: what was read, and by what.
    """

    read: float = 0.0
    flops: float = 0.0
    how: str = ""


class LimitsRunner:
    """A runner whose prompt is a product of matrices, and whose token is one pass over the working set.

    Args:
        bytes: of the working set.
        threads: that work together.
        file: the working set lies in this file, which is mapped; None: in memory of the process.
    """

    def __init__(self, bytes: int, threads: int, file: str | None = None) -> None:
        self.how, self.read = reader()
        whole = mapped(Path(file))[:bytes] if file else np.ones(max(LEAST, min(MOST, bytes)), np.uint8)
        size = len(whole) // threads
        self.passes = max(1, STEP // max(1, len(whole)))
        self.parts = [whole[i * size : (i + 1) * size] for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)
        rng = np.random.default_rng(0)
        self.left = rng.standard_normal((SIDE, SIDE), np.float32)
        self.columns = [rng.standard_normal((SIDE, SIDE // threads), np.float32) for _ in range(threads)]

    def about(self) -> dict[str, Any]:
        """Return the bytes of the working set, how often a step reads them, and how."""
        return {"bytes": sum(p.nbytes for p in self.parts), "passes": self.passes, "how": self.how}

    def prompt(self, ids: object) -> int:
        """Multiply; every thread has its columns."""
        self._each([lambda c=c: self.left @ c for c in self.columns])
        return 0

    def step(self, token: int) -> int:
        """Read everything ``passes`` times."""
        self._each([lambda p=p: [self.read(p) for _ in range(self.passes)] for p in self.parts])
        return token

    def _each(self, tasks: list[Callable[[], object]]) -> None:
        for done in [self.pool.submit(task) for task in tasks]:
            done.result()


def open_limits(bytes: int, threads: int, file: str | None) -> LimitsRunner:
    """Open the runner in a child whose BLAS has one thread: ours are the threads."""
    return LimitsRunner(bytes, threads, file)


def open_limits_worker(bytes: int, threads: int, file: str | None = None) -> Worker:
    """Start the child; its BLAS has one thread, since the runner's own threads are what is counted."""
    with _environment(OPENBLAS_NUM_THREADS="1", VECLIB_MAXIMUM_THREADS="1"):
        return Worker(Contestant("limits", "omnic.bench.limits:open_limits",
                                 {"bytes": bytes, "threads": threads, "file": file}))


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


class Turns:
    """The limits as one that takes turns with the contestants.

    Args:
        worker: of :func:`open_limits_worker`.
        file: whether it reads a mapped file.
    """

    def __init__(self, worker: Worker, file: bool) -> None:
        self.worker, self.file = worker, file
        about = worker.about()
        self.bytes, self.passes, self.how = int(about["bytes"]), int(about["passes"]), str(about["how"])
        self._reads: list[float] = []
        self._products: list[float] = []

    def read(self) -> float:
        """Return the seconds of a pass over the working set, the mean of a turn."""
        found = self.worker.decode(STEPS)
        self._reads.append(sum(found) / len(found) / self.passes)
        return self._reads[-1]

    def multiply(self) -> float:
        """Return the seconds of a product."""
        self._products.append(self.worker.prompt(np.zeros(1, np.int64)))
        return self._products[-1]

    def limits(self) -> Limits:
        """Return the medians of all turns."""
        kind = "of the mapped weights" if self.file else "of the process's own memory"
        return Limits(self.bytes / float(np.median(self._reads)), PRODUCT / float(np.median(self._products)),
                      f"{self.bytes / 1e6:,.0f} MB {kind}, read by {self.how}")
