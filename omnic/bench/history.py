"""What was measured before: an SQLite file with a row a run and a row a figure."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from omnic.bench.measure import Measurement
from omnic.errors import InputError

__all__ = ["append", "earlier"]

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, model TEXT NOT NULL, processor TEXT NOT NULL, omnic TEXT NOT NULL,
  threads INTEGER NOT NULL, read_bytes_per_second REAL, flops_per_second REAL, conditions TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS figures (
  run INTEGER NOT NULL REFERENCES runs(id), contestant TEXT NOT NULL, phase TEXT NOT NULL, tokens INTEGER NOT NULL,
  p50 REAL NOT NULL, p95 REAL NOT NULL, share REAL, speedup REAL, peak_bytes INTEGER, rounds TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS figures_by_run ON figures(run);
"""


def append(path: Path, measured: Measurement) -> int:
    """Add a run and return its number; one transaction, so a killed process leaves no half of it.

    Raises:
        InputError: the file is no database, or cannot be written.
    """
    from omnic import __version__

    if not path.absolute().parent.is_dir():
        path.absolute().parent.mkdir(parents=True)
    try:
        with closing(sqlite3.connect(path)) as base, base:
            base.executescript(_TABLES)
            cursor = base.execute(
                "INSERT INTO runs (at, model, processor, omnic, threads, read_bytes_per_second, flops_per_second,"
                " conditions) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (measured.at, measured.model, measured.machine["processor"], __version__, measured.plan.threads,
                 measured.limits.read, measured.limits.flops,
                 json.dumps({**measured.conditions, "plan": asdict(measured.plan)})),
            )  # fmt: skip
            run = cursor.lastrowid
            assert run is not None
            base.executemany(
                "INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(run, f.contestant, f.phase, f.tokens, f.p50, f.p95, f.share.median if f.share else None,
                  f.speedup.median if f.speedup else None, measured.peaks[f.contestant], json.dumps(f.rounds))
                 for f in measured.figures],
            )  # fmt: skip
            return run
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}", "name another file with --history, or none with --history ''") from error


def earlier(path: Path, measured: Measurement) -> list[tuple[str, str, int, float]]:
    """Return (at, phase, tokens, tokens a second) of this model's runs here in the same weights and threads, oldest
    first.
    """
    with closing(sqlite3.connect(path)) as base:
        rows = base.execute(
            "SELECT runs.at, phase, tokens, p50 FROM figures JOIN runs ON runs.id = figures.run WHERE model = ? AND"
            " processor = ? AND threads = ? AND contestant = ? AND json_extract(conditions, '$.weights') IS ?"
            " ORDER BY runs.id",
            (measured.model, measured.machine["processor"], measured.plan.threads, measured.contestants[0].name,
             measured.conditions.get("weights")),
        ).fetchall()
    return [(at, phase, tokens, (tokens if phase == "prefill" else 1) / p50) for at, phase, tokens, p50 in rows]
