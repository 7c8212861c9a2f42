"""Proof that what a shortlist claims of a head is true of the numbers that are written."""

from __future__ import annotations

import numpy as np

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.graph import Module
from omnic.ir.shortlist import holds
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore

__all__ = ["check_shortlists"]


def check_shortlists(module: Module, weights: WeightStore) -> None:
    """Check that ``reach`` of every ``lm_argmax`` bounds the head that it searches.

    Raises:
        InputError: it does not: the head's numbers were changed after the bounds were computed.
    """
    for function in module.functions.values():
        for node in function.nodes:
            if node.op != "lm_argmax" or node.operands[3] is None:
                continue
            head, basis, screen, reach = (v.name for at in (1, 3, 4, 5) if (v := node.operands[at]) is not None)
            directions, bounds = weights.array(basis), weights.array(reach)
            coded = isinstance(module.weights[screen].type.element, Storage)
            for start, stop, rows in weights.slices(head):
                part = packing.decode(weights.quantised(screen, (start, stop))) if coded else \
                    weights.array(screen, (start, stop))
                if not holds(rows.astype(np.float64), directions, part, bounds[:, start:stop]):
                    raise InputError(
                        f"@{function.name}: the bounds @{reach} are not those of the head @{head}",
                        "run fast-head after the passes that change the head's numbers",
                    )
