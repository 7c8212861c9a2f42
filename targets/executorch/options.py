"""The options of the target, and what each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError, nearest

__all__ = ["OPTIONS", "parse_options"]

#: who computes: XNNPACK where it can, or ExecuTorch's own kernels alone
DELEGATES = ("xnnpack", "portable")
#: name -> values, the default first
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "delegate": DELEGATES,
    "state": ("buffers", "explicit"),
    "runner": (True, False),
}


def parse_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with defaults filled in.

    Raises:
        InputError: an unknown option or value, with what is known.
    """
    found = {name: values[0] for name, values in OPTIONS.items()}
    for name, value in given.items():
        if name not in OPTIONS:
            near = nearest(name, list(OPTIONS))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(OPTIONS)}"
            raise InputError(f"target executorch has no option '{name}'", hint)
        known = {str(v).lower(): v for v in OPTIONS[name]}
        if str(value).lower() not in known:
            raise InputError(f"target executorch: {name} must be one of {', '.join(known)}, not '{value}'")
        found[name] = known[str(value).lower()]
    return found
