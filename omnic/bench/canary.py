"""A canary: a tiny model whose tokens are known is run before anything is measured, on the same target.

Other tokens than the reference's mean that the engine is broken, and no figure of it is worth anything.  A slower token
than in the last runs here means that the machine is busy, throttled or not the same any more.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from omnic import __version__
from omnic.bench.runners import bundle_contestant
from omnic.bench.worker import Worker
from omnic.errors import CheckFailed, InputError

__all__ = ["PROMPT", "SLOWER", "SPEC", "TOKENS", "Canary", "sing"]

SPEC = """omnic: 1
model: canary
vocab: {size: 64}
context: 128
init: {std: 0.2}
blocks:
  - repeat: 2
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}
    ffn: {kind: dense, hidden: 128, activation: swiglu}
"""
SEED = 7
PROMPT = (3, 14, 15, 9, 26, 53, 58)
#: what the reference says after the prompt
TOKENS = (26, 26, 38, 31, 6, 41, 61, 1, 47, 46, 3, 13, 20, 39, 55, 61, 45, 23, 54, 24)
#: tokens that are timed, runs that are looked back at, and how much slower than their median is told
TIMED, LOOK_BACK, SLOWER = 96, 20, 1.5
_TABLE = """
CREATE TABLE IF NOT EXISTS canaries (
  at TEXT NOT NULL, processor TEXT NOT NULL, omnic TEXT NOT NULL, target TEXT NOT NULL, threads INTEGER NOT NULL,
  seconds REAL NOT NULL);
"""


@dataclass(frozen=True)
class Canary:
    """What it said.

    Attributes:
        seconds: of a decoded token, the median.
        usual: the median of earlier runs on this processor; None before there are three.
        peak: bytes that its process held: the engine itself.
    """

    seconds: float
    usual: float | None
    peak: int

    @property
    def slow(self) -> bool:
        """Whether it is told to be slower than usual."""
        return self.usual is not None and self.seconds > SLOWER * self.usual

    def __str__(self) -> str:
        text = f"right tokens, {1e6 * self.seconds:.0f} us each"
        return text if self.usual is None else f"{text}, {self.seconds / self.usual:.2f} of the usual time here"


def sing(target: str, threads: int, processor: str, history: Path | None, folder: Path) -> Canary:
    """Compile the canary, run it and look at what it says.

    Args:
        target: that is measured.
        threads: of the session.
        processor: of this machine.
        history: SQLite file that its speed is kept in; None keeps and compares nothing.
        folder: where its bundle is written.

    Raises:
        CheckFailed: it decoded other tokens than the reference.
        InputError: the target cannot compile it, or the history is no database.
    """
    from omnic.api import compile as compile_model
    from omnic.spec import parse_spec

    # Anew each time: an old program would say nothing of what compiles today.
    spec = parse_spec(SPEC, "canary.yaml")
    bundle = compile_model(spec, target, folder / target, seed=SEED, parity="off", force=True)
    worker = Worker(replace(bundle_contestant(bundle.path, target, "canary", threads), name=f"the canary of {target}"))
    try:
        found = worker.greedy(np.array(PROMPT), len(TOKENS))
        worker.decode(TIMED - len(TOKENS))
        worker.prompt(np.array(PROMPT))
        seconds, peak = float(np.median(worker.decode(TIMED))), worker.peak()
    finally:
        worker.close()
    if tuple(found) != TOKENS:
        raise CheckFailed(
            f"the canary decoded {' '.join(map(str, found))}; right is {' '.join(map(str, TOKENS))}: target {target}"
            " computes something else than the reference here, and nothing was measured",
            "look for the cause with: omnic compile tiny --parity full; --no-canary measures all the same",
        )
    return Canary(seconds, _usual(history, processor, target, threads, seconds) if history else None, peak)


def _usual(path: Path, processor: str, target: str, threads: int, seconds: float) -> float | None:
    """Return the median of earlier runs, and add this one."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path)) as base, base:
            base.executescript(_TABLE)
            rows = base.execute(
                "SELECT seconds FROM canaries WHERE processor = ? AND target = ? AND threads = ? ORDER BY rowid DESC"
                " LIMIT ?", (processor, target, threads, LOOK_BACK)).fetchall()  # fmt: skip
            base.execute("INSERT INTO canaries VALUES (?, ?, ?, ?, ?, ?)",
                         (datetime.now(UTC).isoformat(timespec="seconds"), processor, __version__, target, threads,
                          seconds))
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}", "name another file with --history, or none with --no-history") from error
    return float(np.median([s for (s,) in rows])) if len(rows) >= 3 else None
