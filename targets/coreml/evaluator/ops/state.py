"""States of the runtime: read whole, written whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from omnic.targets.coreml.evaluator.call import Call

__all__ = ["TABLE"]


def _read(c: Call) -> Any:
    return np.array(c.walk.state(c.state("input")))


def _write(c: Call) -> Any:
    c.walk.write(c.state("input"), c.raw("data"), c.op)
    return ()


def _update(c: Call) -> Any:
    return np.array(c.walk.write(c.state("state"), c.raw("value"), c.op))


TABLE: Mapping[str, Callable[[Call], Any]] = {
    "read_state": _read, "write_state": _write, "coreml_update_state": _update,
}
