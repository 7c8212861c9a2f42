"""Scores that were measured before, by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.compression.candidates import Candidate
from bench.compression.scoring import FOLDER, Score, Subject
from omnic.ir.text import print_module

_IR = Path(__file__).resolve().parents[2] / "ir"


def key_of(subject: Subject, candidate: Candidate, evaluator: str) -> str:
    """Return the hash of the checkpoint, the text, the module's graph, and every number its weights decode to.

    The reference's own code is hashed where it evaluates, because the graph may hold any op.
    """
    digest = hashlib.sha256(json.dumps([subject.sha256, subject.cut, evaluator]).encode())
    digest.update(hashlib.sha256(subject.text.encode()).digest())
    digest.update(print_module(candidate.module).encode())
    for name in candidate.module.function("forward").weights():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(candidate.array(name), np.float32).tobytes())
    if evaluator == "reference":
        for file in sorted((_IR / "ops").glob("*.py")):
            digest.update(file.read_bytes())
        digest.update((_IR / "packing.py").read_bytes())
    return digest.hexdigest()


def remember(subject: Subject, row: str, key: str, **figures: float) -> None:
    """Note under which key the last score of a row is, with its other figures."""
    file = FOLDER / f"rows-{subject.sha256[:16]}-{row_file(row)}.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": key, **figures}), encoding="utf-8")


def recall(subject: Subject, row: str) -> tuple[Score, dict[str, float]] | None:
    """Return the last score of a row and its other figures, or None when it was never measured."""
    file = FOLDER / f"rows-{subject.sha256[:16]}-{row_file(row)}.json"
    if not file.is_file():
        return None
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    score = FOLDER / f"{figures.pop('key')}.json"
    return (Score.of_dict(json.loads(score.read_text(encoding="utf-8"))), figures) if score.is_file() else None


def row_file(row: str) -> str:
    """Return the name of a row as part of a file name."""
    return "".join(c if c.isalnum() else "-" for c in row)


def kept_score(key: str, make: Callable[[], Score]) -> tuple[Score, bool]:
    """Return the score of ``key`` and whether it was measured before; ``make`` measures it otherwise."""
    file = FOLDER / f"{key}.json"
    if file.is_file():
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Score.of_dict(fields), True
    score = make()
    FOLDER.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(score.to_dict()), encoding="utf-8")
    partial.replace(file)
    return score, False
