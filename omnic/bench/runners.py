"""What is measured: programs that take a prompt and then one token after the other, each in a process of its own.

A runner is opened in a child process by :mod:`omnic.bench.worker`, so that its memory and its threads are its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contestant", "Ids", "Runner", "bundle_contestant", "find_opener", "import_backend", "open_bundle_runner"]

Ids = NDArray[np.int64]


class Runner(Protocol):
    """One engine with one model and the states of one row."""

    def prompt(self, ids: Ids) -> int:
        """Forget everything, take the prompt [T] and return the most likely next token."""
        ...

    def step(self, token: int) -> int:
        """Append a token and return the most likely next one."""
        ...


@dataclass(frozen=True)
class Contestant:
    """What is measured under one name.

    Attributes:
        name: in tables.
        opener: ``module:function`` that returns the runner; called in the child with ``arguments``.
        arguments: plain values.
        about: versions and settings, to be shown.
        provider: what computes, as thresholds name it: ``CPU``, ``DML``, ``CoreML``, ``NNAPI``.
        mapped: the file that its weights are read from through a mapping; empty where it keeps copies.
    """

    name: str
    opener: str
    arguments: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict[str, str])
    provider: str = "CPU"
    mapped: str = ""


class _Session:
    """A bundle through its session, as the engine calls it."""

    def __init__(self, bundle: str, threads: int) -> None:
        from omnic.runtime.bundle import open_bundle
        from omnic.runtime.session import SessionOptions, open_session

        self.session = open_session(open_bundle(bundle), SessionOptions(threads=threads))

    def prompt(self, ids: Ids) -> int:
        self.session.reset(1)
        chunk, token = self.session.info.chunk, 0
        for at in range(0, len(ids), chunk):
            part = ids[None, at : at + chunk]
            logits = self.session.forward(part, rows=np.array([[part.shape[1] - 1]])).logits
            token = int(np.asarray(logits)[0, 0].argmax())
        return token

    def step(self, token: int) -> int:
        logits = self.session.forward(np.array([[token]])).logits
        return int(np.asarray(logits)[0, 0].argmax())


def open_bundle_runner(bundle: str, threads: int) -> Runner:
    """Open a bundle of ours."""
    return _Session(bundle, threads)


def import_backend(contestant: Contestant) -> None:
    """Import what opens a bundle of ours, so that the time until it is open is not that of reading Python."""
    from omnic.runtime.bundle import open_bundle
    from omnic.runtime.session import session_loader

    if contestant.opener.endswith(":open_bundle_runner"):
        session_loader(open_bundle(contestant.arguments["bundle"]).manifest.executable.kind)


def find_opener(name: str) -> Any:
    """Return the function that ``module:function`` names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def bundle_contestant(path: Path, target: str, model: str, threads: int, *, named: bool = False) -> Contestant:
    """Return a bundle of ours as a contestant, called by its folder too where it is ``named``."""
    weights = path.absolute() / "weights.bin"
    return Contestant(
        f"omnic {target} {path.name}" if named else f"omnic {target}", "omnic.bench.runners:open_bundle_runner",
        {"bundle": str(path.absolute()), "threads": threads}, {"model": model, "bundle": path.name},
        mapped=str(weights) if target == "tvm" and weights.is_file() else "",
    )  # fmt: skip
