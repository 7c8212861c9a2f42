"""The canary: right tokens on every engine, and what is said when it falls silent."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from omnic.bench import canary
from omnic.errors import CheckFailed
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.reference import ReferenceRuntime
from omnic.spec import parse_spec


def test_the_reference_says_the_same() -> None:
    module = build(parse_spec(canary.SPEC, "canary.yaml"))
    session = ReferenceRuntime(module, WeightStore(module, seed=canary.SEED))
    session.reset(1)
    logits = session.forward(np.array([canary.PROMPT])).logits[0, -1]
    found: list[int] = []
    for _ in canary.TOKENS:
        found.append(int(np.argmax(logits)))
        runner_up, best = np.sort(logits)[-2:]
        assert best - runner_up > 0.1, "too close for an engine of another rounding"
        logits = session.forward(np.array([[found[-1]]])).logits[0, -1]
    assert tuple(found) == canary.TOKENS


def test_it_sings_and_its_speed_is_remembered(tmp_path: Path) -> None:
    history = tmp_path / "new" / "h.sqlite"
    found = canary.sing("onnx", 1, "a processor", history, tmp_path)
    assert found.usual is None and found.seconds > 0 and found.peak > 10_000_000 and not found.slow
    assert str(found).startswith("right tokens, ")
    with closing(sqlite3.connect(history)) as base, base:
        base.executemany("INSERT INTO canaries VALUES ('', 'a processor', '', 'onnx', 1, ?)", [(1e-9,)] * 4)
    slow = canary.sing("onnx", 1, "a processor", history, tmp_path)
    assert slow.usual == pytest.approx(1e-9) and slow.slow and "of the usual time here" in str(slow)
    other = canary.sing("onnx", 1, "another processor", history, tmp_path)
    assert other.usual is None


def test_other_tokens_end_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "TOKENS", (1, 2, 3))
    with pytest.raises(CheckFailed, match="the canary decoded 26 26 38; right is 1 2 3"):
        canary.sing("onnx", 1, "a processor", None, tmp_path)
