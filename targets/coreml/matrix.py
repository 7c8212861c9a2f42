"""The device matrix as it lies in ``devices.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from omnic.errors import InputError, nearest
from omnic.targets.coreml.options import DEVICES_ALL

__all__ = ["check_device", "matrix"]

_FILE = Path(__file__).with_name("devices.yaml")


@cache
def matrix() -> Mapping[str, Any]:
    """Return the matrix: ``sources``, ``systems``, ``chips`` and ``reports``."""
    return cast("Mapping[str, Any]", yaml.safe_load(_FILE.read_text(encoding="utf-8")))


def check_device(device: str) -> None:
    """Refuse a chip that the matrix does not have.

    Raises:
        InputError: naming those it has.
    """
    chips = list(matrix()["chips"])
    if device != DEVICES_ALL and device not in chips:
        near = nearest(device, chips)
        hint = f"did you mean '{near}'?" if near else f"known: {DEVICES_ALL}, {', '.join(chips)}"
        raise InputError(f"target coreml: no device '{device}' in its matrix", hint)
