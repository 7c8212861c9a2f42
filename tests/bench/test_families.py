"""docs/models.md is what the last recorded proof says, and the proof has every family."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from omnic.models.checkpoints.family import families

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """``bench/families.py``, which is a script and no module of a package."""
    spec = importlib.util.spec_from_file_location("families_bench", ROOT / "bench" / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_last_run(bench: ModuleType) -> None:
    entry = json.loads(bench.HISTORY.read_text(encoding="utf-8").splitlines()[-1])
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(entry), "run: python bench/families.py --page"


def test_every_family_is_proved_and_met(bench: ModuleType) -> None:
    rows = json.loads(bench.HISTORY.read_text(encoding="utf-8").splitlines()[-1])["rows"]
    assert {r["family"] for r in rows} == set(families())
    assert [r["what"] for r in rows if not r["met"]] == []
    assert all(r["agreed"] + r["ties"] == r["steps"] for r in rows)
    assert all(r["errors"]["reference f64"] <= 1e-9 for r in rows)


def test_a_missed_bar_shows(bench: ModuleType) -> None:
    entry = json.loads(bench.HISTORY.read_text(encoding="utf-8").splitlines()[-1])
    entry["rows"][0]["met"] = False
    assert "**missed**" in bench.page(entry)
