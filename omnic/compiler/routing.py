"""Watching routers: where the reference is undecided, and what a program chose there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module, Node
from omnic.ir.numeric import NumericClass, router_undecided
from omnic.ir.op import find_op
from omnic.targets.base import Target

__all__ = ["RouterWatch"]


class RouterWatch:
    """An observer of the reference that records at which positions any router was undecided."""

    def __init__(self, module: Module, kind: NumericClass) -> None:
        self.kind = kind
        self.routers = [n for n in module.function("forward").nodes if n.op == "router"]
        self._undecided: NDArray[np.bool_] = np.zeros((1, 1), bool)

    def begin(self, batch: int, count: int) -> None:
        """Start a run over [batch, count] tokens."""
        self._undecided = np.zeros((batch, count), bool)

    def __call__(self, node: Node, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        """Look at one evaluated node; what a group gate said follows from its operands."""
        if node.op != "router":
            return
        attrs: dict[str, Any] = dict(find_op("router").bind(node.attrs))
        x, _, group_gate, bias = operands[:4]
        self._undecided |= router_undecided(
            np.asarray(results[2], np.float64),
            self.kind,
            attrs["top_k"],
            attrs["groups"],
            attrs["top_groups"],
            attrs["score"],
            bias,
            None if group_gate is None else np.asarray(x, np.float64) @ np.asarray(group_gate, np.float64).T,
            attrs["group_score"],
        )

    def undecided(self) -> NDArray[np.bool_]:
        """Return [batch, count]: whether a router was undecided here or at an earlier token of the row."""
        return np.logical_or.accumulate(self._undecided, axis=1)

    def captured(
        self, target: Target, bundle: Path, ids: NDArray[np.int64], function: str = "forward"
    ) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Return the (indices, gates) that the program's routers choose for one row, by node name."""
        count = len(ids)
        steps = np.arange(count)[None]
        inputs = {
            "tokens": ids[None],
            "positions": steps,
            "start": np.zeros(1, np.int64),
            "length": np.full(1, count),
            "rows": steps,
        }
        names = [value.name for node in self.routers for value in node.results[:2]]
        found = target.capture(bundle, inputs, names, function)
        return {
            node.name: (
                np.rint(found[node.results[0].name]).astype(np.int64),
                np.asarray(found[node.results[1].name], np.float64),
            )
            for node in self.routers
        }
