"""The options of the target, and what each stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError, nearest
from omnic.runtime.kernels.abi import Level
from omnic.runtime.kernels.toolchain import TRIPLES

__all__ = ["parse_options"]

_DEFAULTS: Mapping[str, Any] = {
    "activations": "auto",
    "batch": 4,
    "emit": "program",
    "level": "best",
    "triple": "host",
}
_ACTIVATIONS = re.compile(r"auto|f32|i8<(per_token|g[1-9]\d*)>")


def parse_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with defaults filled in.

    ``activations``: how products with weights of codes round their inputs: ``auto`` (8 bits in the groups of the
    weight), ``f32`` (not at all), ``i8<gN>`` or ``i8<per_token>``.  ``batch``: the most rows of a call, 1 to 64.
    ``emit``: ``program`` (compiled here), or ``c`` (the sources alone).  ``level``: the instruction set that sessions
    force, ``best`` by default.  ``triple``: the platform of an executable that is made beside, ``host`` for none.

    Raises:
        InputError: an unknown option or value, with what is known.
    """
    found = dict(_DEFAULTS)
    for name, value in given.items():
        if name not in _DEFAULTS:
            near = nearest(name, list(_DEFAULTS))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(_DEFAULTS)}"
            raise InputError(f"target tvm has no option '{name}'", hint)
        found[name] = _CHECKS[name](value)
    if found["emit"] == "c" and found["triple"] != "host":
        raise InputError("target tvm: emit=c writes sources and compiles nothing", "leave out triple, or emit")
    return found


def _activations(value: Any) -> str:
    text = str(value).replace(" ", "")
    if not _ACTIVATIONS.fullmatch(text):
        raise InputError(
            f"target tvm: activations must be auto, f32, i8<per_token> or i8<gN>, not '{value}'",
            "i8<g32> rounds groups of 32 numbers to 8 bits",
        )
    return text


def _batch(value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdigit() or not 1 <= int(text) <= 64:
        raise InputError(f"target tvm: batch must be 1 to 64, not '{value}'")
    return int(text)


def _one_of(name: str, *known: str) -> Any:
    def check(value: Any) -> str:
        if str(value) not in known:
            near = nearest(str(value), list(known))
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise InputError(f"target tvm: there is no {name} '{value}'", hint)
        return str(value)

    return check


_CHECKS: Mapping[str, Any] = {
    "activations": _activations,
    "batch": _batch,
    "emit": _one_of("emit", "program", "c"),
    "level": _one_of("level", "best", *(level.name.lower() for level in Level)),
    "triple": _one_of("triple", "host", *TRIPLES),
}
