"""What is held against transformers, how, and what was found: for the tests and for ``bench/families.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.compiler.routing import RouterWatch
from omnic.ir.numeric import Case, compare, find_class, near_ties
from omnic.ir.reference import Interpreter, ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnic.runtime.session import Session, SessionOptions, open_session
from tests.models.checkpoints.making import Example, Original, write_checkpoint

__all__ = ["BACKENDS", "REFERENCES", "Finding", "Greedy", "Proof"]

REFERENCES = ("reference f64", "reference f32")
BACKENDS = ("torch", "onnx")
CHUNKS = (1, 7, 16, 3)
STEPS = 64
PROMPT = 12


@dataclass(frozen=True)
class Finding:
    """One comparison of logits with transformers' in f64."""

    backend: str
    case: Case


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens of one backend against transformers' choice after the same tokens.

    Attributes:
        backend: which.
        agreed: steps with the same token.
        ties: steps with another token where transformers itself is undecided within the f32 class.
        steps: of both.
    """

    backend: str
    agreed: int
    ties: int
    steps: int

    @property
    def ok(self) -> bool:
        """Whether rounding explains every difference."""
        return self.agreed + self.ties == self.steps


class Proof:
    """One checkpoint: what transformers says of it and how far omnic is off.

    Args:
        example: what to make.
        folder: an empty folder for the checkpoint and the bundles.
    """

    def __init__(self, example: Example, folder: Path) -> None:
        self.example, self.folder = example, folder
        self.original = Original(write_checkpoint(example, folder / "checkpoint"))
        self.sessions: dict[str, Session | ReferenceSession] = {}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The folder as omnic reads it."""
        return open_checkpoint(self.folder / "checkpoint", context=self.example.context, name="proof")

    @cached_property
    def weights(self) -> WeightStore:
        """The checkpoint's numbers by omnic's names."""
        return WeightStore.loaded(self.checkpoint.module, self.checkpoint.source)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """Prompts [3, T]."""
        drawn = np.random.default_rng(self.example.seed + 1)
        return drawn.integers(0, self.original.vocab, (3, self.example.tokens))

    @cached_property
    def wanted(self) -> list[NDArray[np.float64]]:
        """Logits [T, V] of transformers for each prompt, alone and whole."""
        return [self.original.logits(row) for row in self.tokens]

    @cached_property
    def undecided(self) -> NDArray[np.bool_]:
        """[3, T]: where a router is undecided, or was at an earlier token of the row."""
        kind, (rows, count) = find_class("f32"), self.tokens.shape
        watch = RouterWatch(self.weights.module, kind)
        watch.begin(rows, count)
        if watch.routers:
            steps = np.arange(count)[None].repeat(rows, 0)
            inputs = {"tokens": self.tokens, "positions": steps, "start": np.zeros(rows, np.int64),
                      "length": np.full(rows, count), "rows": steps}
            Interpreter(self.weights.module, self.weights).run(inputs, observe=watch)
        return watch.undecided()

    def session(self, backend: str) -> Session | ReferenceSession:
        """Return the session of a backend; its bundle is compiled once."""
        if backend not in self.sessions:
            if backend in REFERENCES:
                dtype = np.float64 if backend.endswith("f64") else np.float32
                self.sessions[backend] = ReferenceSession(self.weights.module, self.weights, dtype)
            else:
                bundle = compile_spec(
                    CompileRequest(self.checkpoint.spec, backend, self.folder / backend,
                                   weights=self.folder / "checkpoint", parity="off", threads=1)
                )
                self.sessions[backend] = open_session(bundle, SessionOptions(threads=1))
        return self.sessions[backend]

    # -- what is compared -----------------------------------------------------------------------------------
    def findings(self, backend: str) -> Iterator[Finding]:
        """Run a backend in every way a session is used; each is one comparison."""
        session, tokens = self.session(backend), self.tokens
        kind = find_class("f64" if backend == "reference f64" else "f32")
        count = tokens.shape[1]
        wanted, unsure = self.wanted, self.undecided
        ways = {
            f"prefill of {count}": [count],
            f"chunks of {', '.join(map(str, CHUNKS))}": _cycled(CHUNKS, count),
            "one by one": [count // 2, *[1] * (count - count // 2)],
        }
        for name, sizes in ways.items():
            found = _in_parts(session, tokens[0], sizes)
            yield Finding(backend, compare(name, found, wanted[0], kind, unsure[0]))
        lengths = np.array([count, count // 2, 1])
        session.reset(3)
        logits = np.asarray(session.forward(tokens, length=lengths).logits)
        valid = np.arange(count)[None] < lengths[:, None]
        found = np.concatenate([row[:n] for row, n in zip(logits, lengths, strict=True)])
        expected = np.concatenate([row[:n] for row, n in zip(wanted, lengths, strict=True)])
        yield Finding(backend, compare("ragged batch of 3", found, expected, kind, unsure[valid]))

    def greedy(self, backend: str, steps: int = STEPS) -> Greedy:
        """Generate greedily and ask transformers for its choice after the same tokens.

        Where each choice is the same, so is what transformers itself would have generated.
        """
        session, tokens = self.session(backend), list(self.tokens[0, :PROMPT])
        session.reset(1)
        logits = np.asarray(session.forward(np.array([tokens])).logits[0, -1])
        for _ in range(steps):
            tokens.append(int(logits.argmax()))
            logits = np.asarray(session.forward(np.array([tokens[-1:]])).logits[0, -1])
        wanted = self.original.logits(np.array(tokens))[PROMPT - 1 : -1]
        same = wanted.argmax(-1) == np.array(tokens[PROMPT:])
        ties = ~same & near_ties(wanted, find_class("f32"))
        return Greedy(backend, int(same.sum()), int(ties.sum()), steps)


def _cycled(sizes: tuple[int, ...], count: int) -> list[int]:
    """Return sizes in turn that sum to ``count``."""
    found: list[int] = []
    while sum(found) < count:
        found.append(min(sizes[len(found) % len(sizes)], count - sum(found)))
    return found


def _in_parts(session: Session | ReferenceSession, tokens: NDArray[np.int64], sizes: list[int]) -> NDArray[np.float64]:
    session.reset(1)
    parts: list[NDArray[np.float64]] = []
    at = 0
    for size in sizes:
        parts.append(np.array(session.forward(tokens[None, at : at + size]).logits[0], np.float64))
        at += size
    return np.concatenate(parts)
