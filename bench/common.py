"""What the benchmarks share: interleaved rounds, ratios with their uncertainty, and a recorded history.

A ratio bar is met when the median of at least 21 interleaved per-round ratios reaches it and its 95 %
bootstrap interval reaches no further than 3 % below (above, for a bar that must not be exceeded).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from omnic.runtime.machine import processor

HISTORY = Path(__file__).parent / "history"
ROUNDS = 21
SLACK = 0.03


@dataclass(frozen=True)
class Ratio:
    """The median of per-round ratios and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    rounds: int

    def reaches(self, bar: float) -> bool:
        """Whether a bar of "at least" is met."""
        return self.rounds >= ROUNDS and self.median >= bar and self.low >= bar * (1 - SLACK)

    def stays_under(self, bar: float) -> bool:
        """Whether a bar of "at most" is met."""
        return self.rounds >= ROUNDS and self.median <= bar and self.high <= bar * (1 + SLACK)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}], {self.rounds} rounds"


def interleaved(contestants: Mapping[str, Callable[[], float | None]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Run every contestant once a round, in turning order; return seconds by name.

    A contestant may return its own figure (CPU seconds, say) instead of being timed by the wall.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            own = contestants[name]()
            found[name].append(time.perf_counter() - began if own is None else own)
    return found


def ratio(upper: list[float], lower: list[float]) -> Ratio:
    """Return the ratio ``upper / lower`` of two interleaved series (seed 0 for the bootstrap)."""
    each = np.asarray(upper) / np.asarray(lower)
    draws = np.random.default_rng(0).integers(0, len(each), (2000, len(each)))
    medians = np.median(each[draws], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return Ratio(float(np.median(each)), float(low), float(high), len(each))


def record(name: str, conditions: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Append one run to ``bench/history/<name>.jsonl`` and return the entry.

    Args:
        name: of the benchmark.
        conditions: threads, dims, context, versions: what someone needs to repeat it.
        rows: each with ``what``, ``figure``, ``bar`` (text, may be empty) and ``met`` (bool or None).
    """
    entry = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "conditions": dict(conditions),
        "rows": rows,
    }
    HISTORY.mkdir(exist_ok=True)
    with open(HISTORY / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False, default=lambda number: number.item()) + "\n")
    return entry


def row(what: str, figure: str, bar: str = "", met: bool | None = None, **numbers: Any) -> dict[str, Any]:
    """Return one row of a result; ``numbers`` are kept beside the text for programs."""
    kept = {k: asdict(v) if isinstance(v, Ratio) else v for k, v in numbers.items()}
    return {"what": what, "figure": figure, "bar": bar, "met": met, **kept}


def show(entry: Mapping[str, Any]) -> None:
    """Print a result for a person."""
    for item in entry["rows"]:
        verdict = {True: "met", False: "MISSED", None: ""}[item["met"]]
        print(f"  {item['what']}: {item['figure']}" + (f"   bar {item['bar']}: {verdict}" if item["bar"] else ""))
