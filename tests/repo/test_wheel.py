"""A wheel holds one tree `omnic/...` with every file of every room, data included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_wheel_holds_every_tracked_file_of_the_rooms(repository: Path, tmp_path: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and not name.startswith((".typing/", "tests/"))]
    copy = tmp_path / "source"
    for name in names:
        if (repository / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run([*command, "."], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("omnic-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())

    with (repository / "pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    installed = {folder: name.replace(".", "/") for name, folder in folders.items()}
    want = {
        f"{installed[room]}/{rest}"
        for name in names
        if (repository / name).is_file()
        for room, _, rest in [name.partition("/")]
        if room in installed and not rest.endswith(".md")
    }
    assert want - held == set()
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == {"omnic"}
    assert not [name for name in held if name.endswith(".pyc")]
