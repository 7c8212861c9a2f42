"""A child process that holds one runner and does what it is told, so that runners can take turns.

Seconds are taken in the child, around the call alone.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from omnic.bench.runners import Contestant, Ids, Runner, find_opener, import_backend
from omnic.errors import InputError, OmnicError

__all__ = ["Worker", "peak_bytes"]


def peak_bytes() -> int:
    """Return the most memory this process has held, in bytes.

    ``ru_maxrss`` of Linux survives ``exec``, so in a child it would be the parent's where that is larger.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Worker:
    """The parent's side.

    Args:
        contestant: what to open.

    Attributes:
        load_seconds: until it was ready.
        empty_bytes: most memory its process had held before that.

    Raises:
        OmnicError: what opening it raised.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestant), daemon=True)
        with _without_main():
            self._process.start()
        theirs.close()
        try:
            self.load_seconds, self.empty_bytes = self._answer()
        except BaseException:
            self.close()
            raise

    def prompt(self, ids: Ids) -> float:
        """Run the prompt from an empty row and return seconds until its next token is known."""
        return float(self._ask("prompt", ids))

    def decode(self, count: int) -> list[float]:
        """Decode ``count`` tokens after what is there and return the seconds of each."""
        return list(self._ask("decode", count))

    def greedy(self, ids: Ids, count: int) -> list[int]:
        """Run the prompt and return the ``count`` tokens after it."""
        return list(self._ask("greedy", (ids, count)))

    def peak(self) -> int:
        """Return the most memory it has held, in bytes."""
        return int(self._ask("peak", None))

    def about(self) -> dict[str, Any]:
        """Return what the runner says of itself; nothing where it says nothing."""
        return dict(self._ask("about", None))

    def close(self) -> None:
        """End the child."""
        self._ours.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, what: str, value: Any) -> Any:
        self._ours.send((what, value))
        return self._answer()

    def _answer(self) -> Any:
        try:
            fine, value = self._ours.recv()
        except EOFError:
            self._process.join()
            raise InputError(
                f"{self.contestant.name} ended while it was measured (exit {self._process.exitcode})",
                "it may have run out of memory: measure it alone, or with a shorter context",
            ) from None
        if not fine:
            raise value
        return value


@runtime_checkable
class _Tells(Protocol):
    def about(self) -> dict[str, Any]: ...


@contextmanager
def _without_main() -> Iterator[None]:
    """Let a child that starts meanwhile not import the script that runs: what that imports would be in its memory."""
    main = sys.modules["__main__"]
    kept = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__.update(dict.fromkeys(kept))
    try:
        yield
    finally:
        main.__dict__.update(kept)


@contextmanager
def _muttering() -> Iterator[None]:
    """Keep what an engine says on the error stream while it opens to itself, unless opening it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _serve(pipe: Connection, contestant: Contestant) -> None:
    """The child's side: open the runner, then answer until the pipe closes."""
    opener = find_opener(contestant.opener)
    try:
        import_backend(contestant)
        empty = peak_bytes()
        began = time.perf_counter()
        with _muttering():
            runner: Runner = opener(**contestant.arguments)
    except OmnicError as error:
        pipe.send((False, error))
        return
    pipe.send((True, (time.perf_counter() - began, empty)))
    token = 0

    def prompt(ids: Ids) -> float:
        nonlocal token
        before = time.perf_counter()
        token = runner.prompt(np.asarray(ids, np.int64))
        return time.perf_counter() - before

    def decode(count: int) -> list[float]:
        nonlocal token
        spent: list[float] = []
        for _ in range(count):
            before = time.perf_counter()
            token = runner.step(token)
            spent.append(time.perf_counter() - before)
        return spent

    def greedy(value: tuple[Ids, int]) -> list[int]:
        prompt(value[0])
        found = [token]
        while len(found) < value[1]:
            decode(1)
            found.append(token)
        return found

    does: dict[str, Callable[[Any], Any]] = {"prompt": prompt, "decode": decode, "greedy": greedy,
                                               "peak": lambda _: peak_bytes(),
                                               "about": lambda _: runner.about() if isinstance(runner, _Tells) else {}}
    while True:
        try:
            what, value = pipe.recv()
        except EOFError:
            return
        try:
            answer = does[what](value)
        except OmnicError as error:
            pipe.send((False, error))
        else:
            pipe.send((True, answer))
