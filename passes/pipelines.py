"""Stages and pipelines: which passes run when, and why in this order.

A compile goes through these stages; a module of each prints, parses, verifies and runs in the reference:

* ``front``: from the spec or an imported graph; no pass here changes a number beyond rounding, none asks a target.
* ``lossy``: weights and states in fewer bits; the cost is the bundle's *fidelity*.
* ``specialise``: clones of ``forward`` for a phase of the call.
* ``legalise``: what one target wants; a target's emitter does its own.

A pipeline is a list with a reason beside each place in it.  Its name may stand wherever a pass's may: in a
spec's ``passes:`` and after ``--pass``; it means its passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnic.errors import InputError

__all__ = ["PIPELINES", "Pipeline", "Step", "expand"]


@dataclass(frozen=True)
class Step:
    """One pass of a pipeline and the reason for its place."""

    name: str
    why: str


@dataclass(frozen=True)
class Pipeline:
    """A named list of passes."""

    name: str
    about: str
    steps: tuple[Step, ...]


_ALL: tuple[Pipeline, ...] = (
    Pipeline(
        "auto",
        "what a spec without a list gets: nothing, its front module is clean and each target fuses by itself",
        (),
    ),
)

PIPELINES: Mapping[str, Pipeline] = {p.name: p for p in _ALL}


def expand(name: str, options: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the passes that an entry of a list means, each with its options.

    Raises:
        InputError: options were given to a pipeline.
    """
    if name not in PIPELINES:
        return [(name, options)]
    if options:
        raise InputError(f"'{name}' is a pipeline and takes no options", "list its passes, each with its own options")
    return [(step.name, {}) for step in PIPELINES[name].steps]
