"""Keeps `.typing/` complete: the import tree of omnic as links, and the type checker's list of its folders.

The rooms lie at the root of the repository and are imported under one name.  Python learns that
from the installed package; tools that only read files learn it from this tree.  Nothing at run time
uses it.

    python .typing/link.py           # write the links
    python .typing/link.py --check   # exit 1 and name what is missing or stale
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TREE = HERE / "omnic"
CONFIG = HERE / "pyrightconfig.json"


def wanted() -> dict[str, str]:
    """Return link name -> its relative target."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    links = {name.removeprefix("omnic."): f"../../{folder}" for name, folder in folders.items() if name != "omnic"}
    for path in sorted((ROOT / folders["omnic"]).iterdir()):
        is_package = path.is_dir() and (path / "__init__.py").exists()
        if is_package or path.suffix == ".py" or path.name == "py.typed":
            links[path.name] = f"../../{folders['omnic']}/{path.name}"
    return links


def checked_folders() -> list[str]:
    """Return the folders pyright must be given: it follows links to files, not links to folders."""
    with_code = [name for name in sorted(wanted()) if "." not in name and name != "specs"]
    return ["omnic", *(f"omnic/{name}" for name in with_code)]


def problems() -> list[str]:
    """Return one line for each link that is missing, stale or wrong, and for the list of folders."""
    want = wanted()
    have = {path.name: os.readlink(path) if path.is_symlink() else "a file" for path in TREE.iterdir()}
    folders = json.loads(CONFIG.read_text(encoding="utf-8"))["include"]
    listed = [] if folders == checked_folders() else [f"pyrightconfig.json: include should be {checked_folders()}"]
    return listed + [
        f".typing/omnic/{name}: is {have.get(name, 'missing')}, should be {want.get(name, 'removed')}"
        for name in sorted({*want, *have})
        if want.get(name) != have.get(name)
    ]


def write() -> None:
    """Make the tree what :func:`wanted` says, and the type checker's list with it."""
    TREE.mkdir(exist_ok=True)
    want = wanted()
    for path in TREE.iterdir():
        if path.is_symlink() and os.readlink(path) != want.get(path.name):
            path.unlink()
    for name, target in want.items():
        if not (TREE / name).is_symlink():
            (TREE / name).symlink_to(target)
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    config["include"] = checked_folders()
    CONFIG.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        found = problems()
        print("\n".join(found))
        sys.exit(1 if found else 0)
    write()
