"""The options of the target, and what each stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnic.errors import InputError, nearest
from omnic.runtime.kernels.abi import Level
from omnic.runtime.kernels.toolchain import TRIPLES

__all__ = ["parse_options"]

_DEFAULTS: Mapping[str, Any] = {
    "activations": "auto",
    "batch": 4,
    "cpu": "host",
    "emit": "program",
    "level": "best",
    "triple": "host",
    "tuning": "auto",
}
_ACTIVATIONS = re.compile(r"auto|calibrated|f32|bf16|i8<(per_token|g[1-9]\d*)>")


def parse_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with defaults filled in.

    ``activations``: how products with weights of codes round their inputs: ``auto`` (8 bits in the groups of the
    weight), ``f32`` (not at all), ``bf16``, ``i8<gN>``, ``i8<per_token>``, or ``calibrated`` (each as its error on the
    calibration text allows: :mod:`omnic.passes.activations`).  ``batch``: the most rows of a call, 1 to 64.  ``cpu``:
    the processor, as ``omnic tune`` names it, whose records the program uses.  ``emit``: ``program`` (compiled here),
    or ``c`` (the sources alone).  ``level``: the instruction set that sessions force, ``best`` by default.  ``triple``:
    the platform of an executable that is made beside, ``host`` for none.  ``tuning``: ``auto`` (this user's records,
    then those that omnic brings), ``off``, or a file of records.

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
            f"target tvm: activations must be auto, calibrated, f32, bf16, i8<per_token> or i8<gN>, not '{value}'",
            "i8<g32> rounds groups of 32 numbers to 8 bits",
        )
    return text


def _name(value: Any) -> str:
    text = " ".join(str(value).split())
    if not text:
        raise InputError("target tvm: cpu is empty", "name a processor as omnic tune prints it, or leave it out")
    return text


def _tuning(value: Any) -> str:
    if value is False:  # YAML's off
        return "off"
    text = str(value)
    if text not in ("auto", "off") and not Path(text).is_file():
        raise InputError(f"target tvm: tuning must be auto, off or a file of records, and there is no file '{text}'",
                         "make one: omnic tune MODEL --records FILE")
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
    "cpu": _name,
    "emit": _one_of("emit", "program", "c"),
    "level": _one_of("level", "best", *(level.name.lower() for level in Level)),
    "triple": _one_of("triple", "host", *TRIPLES),
    "tuning": _tuning,
}
