"""Backends, one folder each: capabilities, lowering table, emitter, checker and session.

``TARGETS`` names them; a backend is imported when it is asked for, never before.  A third party adds
one under the ``omnic.targets`` entry-point group: name -> ``module:attribute`` of a :class:`Target`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from omnic.errors import InputError, InternalError, MissingExtraError, nearest

if TYPE_CHECKING:
    from omnic.ir.caps import Caps
    from omnic.targets.base import Target

__all__ = ["TARGETS", "caps_of", "get_target", "target_names"]

ENTRY_POINTS = "omnic.targets"
#: name -> (``module:attribute`` of its Target, the extra that brings its packages)
TARGETS: dict[str, tuple[str, str]] = {
    "coreml": ("omnic.targets.coreml.target:TARGET", "coreml"),
    "executorch": ("omnic.targets.executorch.target:TARGET", "executorch"),
    "onnx": ("omnic.targets.onnx.target:TARGET", "onnx"),
    "torch": ("omnic.targets.torch.target:TARGET", "torch"),
    "tvm": ("omnic.targets.tvm.target:TARGET", "tvm"),
}


def _known() -> dict[str, tuple[str, str]]:
    return {point.name: (point.value, "") for point in entry_points(group=ENTRY_POINTS)} | TARGETS


def target_names() -> list[str]:
    """Return the names of all targets, those of installed plug-ins included; imports none of them."""
    return sorted(_known())


def caps_of(name: str) -> Caps:
    """Return what a target of omnic's own can do, whether or not its packages are installed."""
    module = TARGETS[name][0].partition(":")[0].rpartition(".")[0]
    return importlib.import_module(f"{module}.caps").CAPS


def get_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        InputError: there is none of that name.
        MissingExtraError: a package that it needs is not installed.
    """
    known = _known()
    if name not in known:
        near = nearest(name, list(known))
        raise InputError(
            f"unknown target '{name}'", f"did you mean '{near}'?" if near else f"known: {', '.join(sorted(known))}"
        )
    place, extra = known[name]
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        package = (error.name or module).split(".")[0]
        if package == "omnic":
            raise InternalError(f"target '{name}' names a module that does not exist: {error.name}") from error
        raise MissingExtraError(f"the target '{name}' (Python package '{package}')", extra or None) from error
    if found is None:
        raise InternalError(f"target '{name}': {place} does not exist")
    return found
