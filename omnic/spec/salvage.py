"""What is left of a spec without its wrong values, so that one reading reports all that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from omnic.spec.tree import Path
from omnic.spec.values import MAX_TOKENS

__all__ = ["patched"]


def patched(data: Any, wrong: Sequence[Path]) -> dict[str, Any] | None:
    """Return a copy of a spec's plain values with harmless ones at the paths in ``wrong``.

    A key that may be left out is left out; a required one takes a value that no rule objects to.
    None when nothing can be kept.
    """
    if not isinstance(data, dict) or () in wrong:
        return None
    result = copy.deepcopy(data)
    width = _width(data)
    for path in sorted({_whole(path) for path in wrong}, key=len, reverse=True):
        _patch(result, path, width)
    return result


def _whole(path: Path) -> Path:
    """Return the path of the value to replace: a whole list instead of one entry, but single blocks."""
    for depth, step in enumerate(path):
        if isinstance(step, int) and path[:depth] != ("blocks",):
            return path[:depth]
    return path


def _width(data: dict[str, Any]) -> int:
    blocks = data.get("blocks")
    widths = [block.get("width") for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    return next((width for width in widths if isinstance(width, int) and 0 < width < 1 << 24), 64)


def _patch(data: dict[str, Any], path: Path, width: int) -> None:
    attention = {"kind": "mha", "heads": 1, "head_dim": 2, "rope": None, "qk_norm": False}
    ffn = {"kind": "dense", "hidden": 1}
    block = {"width": width, "attention": attention, "ffn": ffn}
    here: Any = data
    for step in path[:-1]:
        if not _has(here, step):
            return
        here = here[step]
    match path:
        case ("model",):
            data["model"] = "model"
        case ("context",):
            data["context"] = MAX_TOKENS
        case ("vocab",) | ("vocab", "size"):
            data["vocab"] = {"size": MAX_TOKENS}
        case ("blocks",):
            data["blocks"] = [block]
        case ("blocks", int(number)):
            here[number] = block
        case ("blocks", int(), "width"):
            here["width"] = width
        case ("blocks", int(), "attention"):
            here["attention"] = attention
        case ("blocks", int(), "ffn"):
            here["ffn"] = ffn
        case _ if isinstance(here, dict):
            here.pop(path[-1], None)


def _has(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)
