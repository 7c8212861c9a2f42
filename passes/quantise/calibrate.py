"""What the inputs of each matrix look like on real text: Gram matrices and mean magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.executor import Executor
from omnic.ir.graph import Module, Node
from omnic.ir.op import Array
from omnic.ir.ops.composite import activate, gate_of, gated

__all__ = ["Inputs", "collect", "readers", "stages"]

Ints = npt.NDArray[np.int64]

#: windows of one call of the executor, so that what is observed stays small
_WINDOWS = 8

# Of moe: operand -> what it is.
_X, _INDICES, _GATES, _UP, _DOWN, _GATE, _UP_BIAS, _GATE_BIAS = 0, 1, 2, 3, 4, 5, 6, 8


@dataclass(frozen=True)
class Inputs:
    """The inputs of one matrix [N, K] (of one expert).

    Attributes:
        gram: weighted mean of x x^T, f32 [K, K]; an expert's inputs count by the square of their gate, because
            so much of an error reaches the output.
        size: mean of |x|, f32 [K].
        rows: how many inputs were seen.
    """

    gram: npt.NDArray[np.float32]
    size: npt.NDArray[np.float32]
    rows: int


class _Sum:
    def __init__(self, width: int) -> None:
        self.gram = np.zeros((width, width), np.float64)
        self.size = np.zeros(width, np.float64)
        self.weight, self.rows = 0.0, 0

    def add(self, x: Array, share: Array | None = None) -> None:
        """Add inputs x [n, K], with weights [n]."""
        x = np.asarray(x, np.float32).reshape(-1, self.size.size)
        if not len(x):
            return
        self.size += np.abs(x).sum(0, dtype=np.float64)
        self.rows += len(x)
        self.weight += len(x) if share is None else float(share.sum())
        weighted = x if share is None else x * share[:, None].astype(np.float32)
        self.gram += weighted.T @ x

    def inputs(self) -> Inputs:
        weight = self.weight or 1.0
        return Inputs((self.gram / weight).astype(np.float32), (self.size / max(self.rows, 1)).astype(np.float32),
                      self.rows)


def readers(module: Module, names: Collection[str]) -> dict[str, tuple[Node, int]]:
    """Return for each named weight the first node of ``forward`` that multiplies with it, and its place there."""
    found: dict[str, tuple[Node, int]] = {}
    for node in module.function().nodes:
        if node.op not in ("linear", "lm_head", "moe"):
            continue
        for place, value in enumerate(node.operands):
            if value is not None and value.weight and value.name in names:
                found.setdefault(value.name, (node, place))
    return found


def collect(module: Module, names: Collection[str], executor: Executor, tokens: Ints,
            progress: Callable[[float], None] | None = None) -> dict[str, list[Inputs]]:
    """Run the calibration windows once and return the inputs of each named matrix: one entry, or one per expert.

    Args:
        module: the module that ``executor`` runs.
        names: of weights; those that ``forward`` does not multiply with are left out.
        executor: runs the module.
        tokens: i64[N, T] windows.
        progress: called with the share done.

    Raises:
        InputError: an input holds NaN or infinite numbers.
    """
    read = readers(module, names)
    # Several matrices often read one value (q, k and v of a norm): it is looked at once.
    owner: dict[str, str] = {}
    visited: dict[str, Node] = {}
    for name, (node, _) in read.items():
        value = node.operands[0]
        assert value is not None
        key = node.name if node.op == "moe" else value.name
        owner[name] = key
        if key not in visited:
            visited[key] = node
    keys = {node.name: key for key, node in visited.items()}
    sums: dict[str, _Sum] = {}
    experts: dict[str, tuple[list[_Sum], list[_Sum]]] = {}

    def visit(node: str, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        key = keys[node]
        x = np.asarray(operands[0], np.float32)
        if not np.isfinite(x).all():
            raise InputError(f"the input of {node} holds NaN or infinite numbers on the calibration text",
                             "the weights are damaged, or the training that made them diverged")
        if visited[key].op == "moe":
            _add_experts(experts, key, visited[key], operands)
            return
        if key not in sums:
            sums[key] = _Sum(x.shape[-1])
        sums[key].add(x)

    for first in range(0, len(tokens), _WINDOWS):
        executor.observe(tokens[first : first + _WINDOWS], list(keys), visit)
        if progress is not None:
            progress(min(first + _WINDOWS, len(tokens)) / len(tokens))
    found: dict[str, list[Inputs]] = {}
    done: dict[tuple[str, int], list[Inputs]] = {}
    for name, (node, place) in read.items():
        side = 1 if node.op == "moe" and place == _DOWN else 0
        at = (owner[name], side)
        if at not in done:
            many = experts[owner[name]][side] if node.op == "moe" else [sums[owner[name]]]
            done[at] = [s.inputs() for s in many]
        found[name] = done[at]
    return found


def _add_experts(experts: dict[str, tuple[list[_Sum], list[_Sum]]], key: str, node: Node,
                 operands: tuple[Any, ...]) -> None:
    """Add what each expert of a ``moe`` node read: for its up and gate products, and for its down product."""
    up, down = np.asarray(operands[_UP]), np.asarray(operands[_DOWN])
    if key not in experts:
        experts[key] = ([_Sum(up.shape[2]) for _ in up], [_Sum(down.shape[2]) for _ in up])
    x = np.asarray(operands[_X], np.float32).reshape(-1, up.shape[2])
    chosen = np.asarray(operands[_INDICES]).reshape(len(x), -1)
    gates = np.asarray(operands[_GATES], np.float32).reshape(len(x), -1)
    for expert in range(len(up)):
        hit = chosen == expert
        rows = hit.any(-1)
        share = np.square((gates * hit).sum(-1)[rows])
        seen = x[rows]
        inner = seen @ up[expert].T + _bias(operands, _UP_BIAS, expert)
        if operands[_GATE] is None:
            hidden = activate(inner, str(node.attrs["kind"]))
        else:
            opening = seen @ np.asarray(operands[_GATE])[expert].T + _bias(operands, _GATE_BIAS, expert)
            hidden = gated(opening, inner, str(node.attrs["kind"]), **gate_of(node.attrs))
        experts[key][0][expert].add(seen, share)
        experts[key][1][expert].add(hidden, share)


def _bias(operands: tuple[Any, ...], place: int, expert: int) -> Array | np.float32:
    if place >= len(operands) or operands[place] is None:
        return np.float32(0)
    return np.asarray(operands[place], np.float32)[expert]


def stages(module: Module, names: Collection[str]) -> list[list[str]]:
    """Return the named weights of ``forward`` in stages, those of one block of layers together, in order."""
    found: dict[str, list[str]] = {}
    for name, (node, _) in readers(module, names).items():
        found.setdefault(".".join(node.scope.split(".")[:2]), []).append(name)
    return list(found.values())

