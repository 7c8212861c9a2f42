"""The SQLite history, and the page that shows it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from omnic.bench import history
from omnic.bench.memory import Estimate
from omnic.bench.page import render
from omnic.bench.thresholds import judge, raised
from omnic.errors import InputError
from omnic.targets.base import Ran
from tests.omnic.bench.test_thresholds import measurement


def test_runs_are_added_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "h.sqlite"
    assert history.append(path, measurement(0.1)) == 1 and history.append(path, measurement(0.05)) == 2
    history.append(path, replace(measurement(0.01), model="other"))
    history.append(path, replace(measurement(0.01), machine={"processor": "another"}))
    history.append(path, replace(measurement(0.01), conditions={"weights": "int4"}))
    speeds = [row[3] for row in history.earlier(path, measurement()) if row[1:3] == ("decode", 64)]
    assert speeds == [pytest.approx(10.0), pytest.approx(20.0)]
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("SELECT COUNT(*) FROM figures WHERE run = 1").fetchone() == (4,)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    path.write_text("this is a text and no database, long enough to be seen as one" * 20)
    with pytest.raises(InputError, match="file is not a database"):
        history.append(path, measurement())


def test_the_page_shows_everything(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    for seconds in (0.1, 0.05):
        history.append(path, measurement(seconds))
    measured = replace(measurement(), memory=Estimate(500, 200, 100, 64, 250), ran=(Ran("QMoE<>", "CPU", 12, 1e-3),),
                       absent={"engine <y>": "not installed"}, loads={"ours": 0.1, "peer": 0.2})
    page = render(measured, judge(raised(None, measurement(0.05)), measured), history.earlier(path, measured))
    for words in ("milliseconds a token", "1.30x", "GB/s", "engine &lt;y&gt;", "not installed", "missed", "Earlier",
                  "QMoE&lt;&gt;", "1000", "measured, 0.95 of it", "read by C"):
        assert words in page
    assert "<y>" not in page and page.count("<svg") == 4
