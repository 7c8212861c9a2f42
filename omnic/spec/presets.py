"""The specs that ship with omnic, by name."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from omnic.errors import InputError, nearest
from omnic.spec.tree import Text

__all__ = ["preset_names", "preset_summary", "preset_text"]

SUFFIX = ".yaml"


@cache
def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    found = (entry.name for entry in files("omnic.specs").iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)))


def preset_text(name: str) -> Text:
    """Return the text of a preset; messages show it as ``specs/NAME.yaml``.

    Raises:
        InputError: there is no preset of that name.
    """
    if name not in preset_names():
        guess = nearest(name, preset_names())
        hint = f"did you mean '{guess}'?" if guess else f"presets: {', '.join(preset_names())}"
        raise InputError(f"there is no preset '{name}'", hint)
    with as_file(files("omnic.specs") / f"{name}{SUFFIX}") as path:
        return Text(f"specs/{name}{SUFFIX}", path.read_text(encoding="utf-8"), preset=name, folder=Path(path).parent)


def preset_summary(name: str) -> str:
    """Return what the preset's first comment says it is.

    Raises:
        InputError: there is no preset of that name.
    """
    comments = [line[1:].strip() for line in preset_text(name).lines if line.startswith("#")]
    return next((text for text in comments if not text.startswith("yaml-language-server")), "")
