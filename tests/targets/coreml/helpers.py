"""Small models as saved packages, and calls that hold them against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec, scale
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.coreml.program import Package
from omnic.targets.coreml.session import CoremlSession
from omnic.targets.coreml.target import TARGET

__all__ = ["emitted", "held_against_reference", "scaled", "session_of"]


def scaled(preset: str) -> Module:
    """Return the small copy of a preset."""
    return build(scale(load_spec(preset)))


def emitted(module: Module, weights: WeightStore, folder: Path, **options: Any) -> Emitted:
    """Write the package of ``module`` and what a bundle has beside it."""
    made = TARGET.emit(EmitRequest(module, weights, folder, TARGET.options(options), lambda what, share: None))
    (folder / "module.ir").write_text(print_module(made.module), encoding="utf-8")
    return made


def session_of(made: Emitted, folder: Path) -> CoremlSession:
    """Return a session of a written package."""
    return CoremlSession(Package(folder, made.module))


def held_against_reference(
    session: CoremlSession, made: Emitted, weights: WeightStore, ids: NDArray[np.int64], lengths: list[int]
) -> float:
    """Run ``ids`` [1, T] in calls of ``lengths`` and return the largest error of a logit over their rms."""
    count = ids.shape[1]
    steps = np.arange(count)[None]
    wanted = Interpreter(made.module, weights.with_module(made.module)).run(
        {"tokens": ids, "positions": steps, "start": np.zeros(1, np.int64), "length": np.array([count]), "rows": steps}
    )
    session.reset(1)
    at, found = 0, []
    for length in lengths:
        found.append(np.array(session.forward(ids[:, at : at + length]).logits[0]))
        at += length
    assert at == count
    logits = np.asarray(wanted["logits"][0])
    return float(np.abs(np.concatenate(found) - logits).max() / np.sqrt((logits**2).mean()))
