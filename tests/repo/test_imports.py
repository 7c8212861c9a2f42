"""Imports go the way docs/architecture.md says: its table of rooms is read here and checked file by file."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Room:
    """One row of the table: what its files may import; None = anything."""

    ours: frozenset[str] | None
    others: frozenset[str] | None


def names(cell: str, everything: str) -> frozenset[str] | None:
    return None if cell == everything else frozenset(re.findall(r"`([^`]+)`", cell))


def rooms() -> dict[str, Room]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table: dict[str, Room] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and (folder := re.fullmatch(r"`([a-z/]+)/`", cells[0])):
            table[folder[1]] = Room(names(cells[2], "all"), names(cells[3], "any"))
    return table


ROOMS = rooms()


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "omnic/spec" if parts[:2] == ("omnic", "spec") else parts[0]


def package_of(room: str) -> str:
    return {"omnic": "omnic", "omnic/spec": "omnic.spec"}.get(room, f"omnic.{room}")


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted module) of every import, wherever it stands in the file."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from omnic import spec` imports omnic.spec; `from omnic.ir import X` imports omnic.ir.
            found += [(node.lineno, f"omnic.{a.name}") for a in node.names] if module == "omnic" else [
                (node.lineno, module)
            ]  # fmt: skip
    return found


def within(module: str, packages: frozenset[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def complaint(room: str, module: str) -> str | None:
    """Return why a file of ``room`` may not import ``module``, or None."""
    rule = ROOMS[room]
    top = module.partition(".")[0]
    if module.startswith("."):
        return "is a relative import"
    if top == "omnic":
        allowed = (rule.ours or frozenset()) | {package_of(room), "omnic.errors", "omnic.__version__"}
        return None if rule.ours is None or within(module, allowed) else f"is not for {room}/"
    if top in sys.stdlib_module_names or rule.others is None:
        return None
    return None if top in rule.others else f"is a package {room}/ does without"


def sources() -> list[Path]:
    folders = sorted({room.partition("/")[0] for room in ROOMS})
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")) if "data" not in p.parts]


def test_the_table_names_every_room() -> None:
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        folders = set(tomllib.load(file)["tool"]["setuptools"]["package-dir"].values())
    assert set(ROOMS) == folders | {"omnic/spec"}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_follow_the_table(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} {why}"
        for path in sources()
        if room_of(path) == room
        for line, module in imports(path)
        if (why := complaint(room, module))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "module", "why"),
    [
        ("ir", "omnic.passes.fuse", "is not for ir/"),
        ("ir", "torch.nn", "is a package ir/ does without"),
        ("ir", "omnic", "is not for ir/"),
        ("runtime", "omnic.targets", "is not for runtime/"),
        ("targets", "omnic.training.trainer", "is not for targets/"),
        ("passes", ".graph", "is a relative import"),
        ("omnic/spec", "omnic.specs", "is not for omnic/spec/"),
        ("targets", "omnic.runtime.bundle", None),
        ("passes", "omnic.ir.graph", None),
        ("omnic", "omnic.targets.onnx", None),
        ("ir", "omnic.errors", None),
    ],
)
def test_the_rule_itself(room: str, module: str, why: str | None) -> None:
    assert complaint(room, module) == why
