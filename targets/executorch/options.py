"""The options of the target, and what each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError, nearest
from omnic.targets.executorch.delegates import DELEGATES

__all__ = ["OPTIONS", "VERIFY", "parse_options"]

#: length of the method that verifies drafts unless said, where the model takes calls of that many tokens
VERIFY = (16,)
#: name -> values, the default first
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "delegate": tuple(DELEGATES),
    "state": ("buffers", "explicit"),
    "runner": (True, False),
    "weights": ("inside", "ptd"),
}


def parse_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with defaults filled in; ``verify`` is None where it was not given.

    Raises:
        InputError: an unknown option or value, or two that exclude each other, with what is known.
    """
    found = {name: values[0] for name, values in OPTIONS.items()}
    found["verify"] = None
    for name, value in given.items():
        if name == "verify":
            found[name] = _lengths(value)
            continue
        if name not in OPTIONS:
            near = nearest(name, list(found))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(found)}"
            raise InputError(f"target executorch has no option '{name}'", hint)
        known = {str(v).lower(): v for v in OPTIONS[name]}
        if str(value).lower() not in known:
            raise InputError(f"target executorch: {name} must be one of {', '.join(known)}, not '{value}'")
        found[name] = known[str(value).lower()]
    delegate = DELEGATES[found["delegate"]]
    if found["weights"] == "ptd" and not delegate.outside:
        able = ", ".join(n for n, d in DELEGATES.items() if d.outside)
        raise InputError(
            f"target executorch: weights=ptd cannot be had with delegate={found['delegate']}, which keeps the weights "
            "in a form of its own inside the program",
            f"leave out weights, or choose one of these delegates: {able}",
        )
    return found


def _lengths(value: Any) -> tuple[int, ...]:
    """Return ``[16, 64]``, ``16``, ``"16,64"`` or ``"none"`` as whole numbers in order; a spec reads none as null."""
    listed = isinstance(value, list | tuple)
    text = "" if listed or value is None else str(value).strip("[]() ").rstrip(",")
    items: list[Any] = list(value) if listed else [] if text in ("", "none") else text.replace(" ", "").split(",")
    for item in items:
        if not str(item).strip().isdigit() or int(item) < 1:
            raise InputError(f"target executorch: verify are whole numbers above 0, not '{item}'", "write verify=16,64")
        if int(item) == 1:
            raise InputError("target executorch: verify=1 is what session_decode does", "leave it out")
    return tuple(sorted({int(item) for item in items}))
