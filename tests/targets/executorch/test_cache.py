"""The cache of lowered programs: whole or not there, whoever writes, whatever happened to its files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from omnic.targets.executorch import cache

PROGRAM, NODES = b"program" * 100, b"{}"


def test_a_program_comes_back_with_its_files(tmp_path: Path) -> None:
    assert cache.kept("a", tmp_path) is None
    cache.keep("a", PROGRAM, tmp_path, {"json": NODES})
    found, nodes = cache.kept("a", tmp_path), cache.kept("a", tmp_path, "json")
    assert found is not None and found.read_bytes() == PROGRAM
    assert nodes is not None and nodes.read_bytes() == NODES
    assert cache.kept("a", tmp_path, "ptd") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("file", ["program.pte", "program.json", "sums.json"])
@pytest.mark.parametrize("what", ["cut", "changed", "gone"])
def test_a_damaged_program_is_not_there_and_can_be_kept_again(tmp_path: Path, file: str, what: str) -> None:
    cache.keep("a", PROGRAM, tmp_path, {"json": NODES})
    path = tmp_path / "a" / file
    data = path.read_bytes()
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if what == "cut" else bytes([data[0] ^ 1]) + data[1:])
    assert cache.kept("a", tmp_path) is None
    cache.keep("a", PROGRAM, tmp_path, {"json": NODES})
    found = cache.kept("a", tmp_path)
    assert found is not None and found.read_bytes() == PROGRAM


def test_a_damaged_program_is_replaced_by_a_writer_that_did_not_look(tmp_path: Path) -> None:
    cache.keep("a", PROGRAM, tmp_path)
    (tmp_path / "a" / "program.pte").write_bytes(b"")
    cache.keep("a", PROGRAM, tmp_path)
    found = cache.kept("a", tmp_path)
    assert found is not None and found.read_bytes() == PROGRAM


def test_writers_of_one_program_at_the_same_time_leave_one(tmp_path: Path) -> None:
    gate = threading.Barrier(8)
    seen: list[bytes] = []

    def write() -> None:
        gate.wait()
        for _ in range(20):
            cache.keep("a", PROGRAM, tmp_path, {"json": NODES})
            found = cache.kept("a", tmp_path)
            if found is not None:
                seen.append(found.read_bytes())

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(seen) == 160 and set(seen) == {PROGRAM}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at, key in enumerate("abc"):
        cache.keep(key, PROGRAM, tmp_path)
        os.utime(tmp_path / key, (1000 + at, 1000 + at))
    one = sum(f.stat().st_size for f in (tmp_path / "a").iterdir())
    monkeypatch.setattr(cache, "CACHE_BYTES", 3 * one)
    assert cache.kept("a", tmp_path) is not None  # which is a use of it
    cache.keep("d", PROGRAM, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_program_larger_than_the_cache_is_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_BYTES", 10)
    cache.keep("a", PROGRAM, tmp_path)
    cache.keep("b", PROGRAM, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    for name, age in (("old", 10**6), ("new", 0)):
        left = tmp_path / f".{name}"
        left.mkdir()
        (left / "program.pte").write_bytes(b"half")
        if age:
            os.utime(left, (age, age))
    cache.keep("a", PROGRAM, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new", "a"]


def test_it_lies_where_the_user_s_caches_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "omnic" / "executorch"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == Path.home() / ".cache" / "omnic" / "executorch"
