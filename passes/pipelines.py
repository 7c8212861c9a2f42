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
        "what a spec without a list gets: nothing. The builder's modules hold nothing that `clean-up` would change (a"
        " test says so of every preset), and each target finds its own fusions while it emits",
        (),
    ),
    Pipeline(
        "clean-up",
        "for graphs that others wrote: imported ones, and what a pass of another package leaves",
        (
            Step("constant-folding", "first: shapes and masks become numbers, and nodes that differed become equal"),
            Step("layout-cleaning", "before `cse`: a transpose that cancels need not be found twice"),
            Step("cse", "after both: it compares nodes as they are, so it wants them in their shortest form"),
            Step("dead-code", "last: the passes before it leave weights and nodes that nobody reads"),
        ),
    ),
    Pipeline(
        "merge",
        "fewer and wider products, for targets whose kernels have a cost per call",
        (
            Step("gate-up-merge", "in any order with the next: they look at different products"),
            Step("qkv-merge", "after every pass that gives weights a storage type: codes join, but a calibration wants"
                              " the projections one by one"),
            Step("norm-residual", "last: a joined product has moved up to the first of its parts, so sums and norms are"
                                  " brought together in the final order"),
        ),
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
