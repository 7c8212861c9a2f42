"""House rules that a file can break: its length, its package, what it names, its link for tools."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAX_LINES = 450
ROOMS = ("omnic", "ir", "models", "passes", "targets", "runtime", "training", "specs")


def tracked(repository: Path) -> list[Path]:
    """Return the files that git tracks, or skip the test outside a checkout."""
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    paths = [repository / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_source_files_are_short(repository: Path) -> None:
    folders = (*ROOMS, "tests", "bench")
    sources = [p for name in folders for kind in ("*.py", "*.c", "*.h") for p in (repository / name).rglob(kind)]
    sources = [p for p in sources if not {"data", "golden"} & {*p.relative_to(repository).parts}]
    long = {
        str(path.relative_to(repository)): count
        for path in sources
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines, so each is two rooms: {long}"


def test_every_folder_with_code_is_a_package(repository: Path) -> None:
    missing = {
        str(folder.relative_to(repository))
        for room in ROOMS
        for path in (repository / room).rglob("*.py")
        if not ((folder := path.parent) / "__init__.py").exists() and "data" not in folder.relative_to(repository).parts
    }
    assert not missing, f"no __init__.py, so the wheel would lack {missing}"


def test_no_tracked_file_names_this_machine(repository: Path) -> None:
    # Joined here so that this file does not contain what it looks for.
    places = [b"/" + name + b"/" for name in (b"work", b"root", b"Users", b"farm")]
    hosts = [b"py" + b"pi.org", b"download.py" + b"torch.org", b"python" + b"hosted.org"]
    found = {
        f"{path.relative_to(repository)}: {needle.decode()}"
        for path in tracked(repository)
        if "heldout" not in path.parts
        for needle in (*places, *hosts)
        if needle in path.read_bytes()
    }
    assert not found


def test_the_link_tree_for_tools_is_complete(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, ".typing/link.py", "--check"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}run: make links"


def test_types_are_strict_where_promised(repository: Path) -> None:
    config = json.loads((repository / ".typing" / "pyrightconfig.json").read_text())
    assert config["strict"] == ["omnic/ir", "omnic/passes"]
