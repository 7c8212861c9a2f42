"""Where two programs of one model part: the first value, in order, that differs beyond its bound.

Either side is a bundle, or the reference on the other side's IR and weights.  Both read the same
tokens from empty states; the values that both can show are compared in the order of the IR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.compiler.sample import sample_tokens
from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node
from omnic.ir.numeric import NumericClass, find_class
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore, saved
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.targets import get_target

__all__ = ["Difference", "Divergence", "REFERENCE", "diff"]

REFERENCE = "reference"
TOKENS = 32
#: an intermediate value may be further off than the logits relative to its own rms: it has not been averaged yet
SLACK = 4.0


@dataclass(frozen=True)
class Difference:
    """How far one value is off.

    Attributes:
        value: its name in the IR.
        node: the node that makes it.
        op: that node's op.
        scope: the part of the model.
        place: line of the spec, empty if unknown.
        max_abs: largest absolute difference.
        rms: of side A's value.
        ratio: ``max_abs / rms``.
        ok: within the bound.
    """

    value: str
    node: str
    op: str
    scope: str
    place: str
    max_abs: float
    rms: float
    ratio: float
    ok: bool


@dataclass(frozen=True)
class Divergence:
    """The result of a comparison.

    Attributes:
        values: every value compared, in order.
        first: the first one beyond its bound, or None.
        span: nodes between the last value that agreed and ``first``: where the cause lies.
        bound: the bound on ``ratio`` of intermediate values.
        missing: values of the IR that one side cannot show.
    """

    values: tuple[Difference, ...]
    first: Difference | None
    span: tuple[str, ...]
    bound: float
    missing: int

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.first is None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "ok": self.ok}


class _Side:
    """One program that can show its values."""

    def __init__(self, name: str, bundle: Bundle | None, other: Bundle | None) -> None:
        source = bundle or other
        assert source is not None
        self.name, self.bundle, self.source = name, bundle, source

    @property
    def module(self) -> Module:
        return self.source.module

    @property
    def kind(self) -> NumericClass:
        return find_class("f64") if self.bundle is None else find_class(self.source.manifest.numeric_class)

    def values(self, inputs: Mapping[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
        """Return the values called ``names`` that this side has."""
        target = get_target(self.source.manifest.target)
        if self.bundle is not None:
            shown = set(target.preserved(self.bundle.path))
            return dict(target.capture(self.bundle.path, inputs, [n for n in names if n in shown]))
        wanted, found = set(names), dict[str, NDArray[Any]]()

        def keep(node: Node, results: tuple[Any, ...]) -> None:
            for value, result in zip(node.results, results, strict=True):
                if value.name in wanted and isinstance(result, np.ndarray):
                    found[value.name] = result

        store = WeightStore(saved(self.module), target.weights(self.source.path))
        Interpreter(self.module, store).run(inputs, trace=keep)
        return found


def diff(a: str, b: str) -> Divergence:
    """Compare two programs.

    Args:
        a: a bundle's folder, or ``reference``.
        b: likewise; one of the two must be a bundle.

    Raises:
        InputError: both are ``reference``, or the models differ.
        BundleError: a bundle is damaged.
    """
    if a == REFERENCE and b == REFERENCE:
        raise InputError("reference against reference has no model", "name a bundle on one side")
    bundles = [None if side == REFERENCE else open_bundle(Path(side)) for side in (a, b)]
    left, right = _Side(a, bundles[0], bundles[1]), _Side(b, bundles[1], bundles[0])
    _check_same_model(left, right)
    inputs = _inputs(left.source)
    function = left.module.function("forward")
    names = _common(function, right.module.function("forward"))
    first, second = left.values(inputs, names), right.values(inputs, names)
    bound = SLACK * max(s.error for s in (left.kind, right.kind))
    return _compare(function, names, first, second, bound)


def _check_same_model(left: _Side, right: _Side) -> None:
    for key in ("vocab",):
        if left.module.meta.get(key) != right.module.meta.get(key):
            raise InputError(
                f"{left.name} has {key} {left.module.meta.get(key)}, {right.name} has {right.module.meta.get(key)}",
                "compare two programs of one model",
            )
    have, want = ({p.value.name: str(p.value.type) for p in s.module.function("forward").params} for s in (left, right))
    if have != want:
        raise InputError(
            f"{left.name} and {right.name} are of different models: their inputs and states differ",
            "compare two programs of one model",
        )


def _inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    from omnic.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(bundle.file("tokenizer.json")) if bundle.manifest.tokenizer else None
    module = bundle.module
    ids, _ = sample_tokens(int(str(module.meta["vocab"])), min(TOKENS, module.dims["T"].high), tokenizer)
    steps = np.arange(len(ids))[None]
    return {
        "tokens": ids[None],
        "positions": steps,
        "start": np.zeros(1, np.int64),
        "length": np.full(1, len(ids)),
        "rows": steps,
    }


def _common(one: Function, other: Function) -> list[str]:
    """Names of float values of the same type in both functions, in the order of the first."""
    theirs = {v.name: str(v.type) for v in other.values()}
    states = {p.value for p in one.params}
    return [v.name for v in one.values() if v not in states and v.type.is_float and theirs.get(v.name) == str(v.type)]


def _compare(
    function: Function,
    names: list[str],
    first: Mapping[str, NDArray[Any]],
    second: Mapping[str, NDArray[Any]],
    bound: float,
) -> Divergence:
    makers = {v.name: n for n in function.nodes for v in n.results}
    values: list[Difference] = []
    for name in names:
        if name in first and name in second and name in makers:
            values.append(_difference(makers[name], name, first[name], second[name], bound))
    worst = next((v for v in values if not v.ok), None)
    return Divergence(tuple(values), worst, _span(function, values, worst), bound, len(names) - len(values))


def _difference(node: Node, name: str, a: NDArray[Any], b: NDArray[Any], bound: float) -> Difference:
    wide, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gap = float(np.abs(wide - other).max()) if wide.shape == other.shape else float("inf")
    rms = float(np.sqrt(np.mean(wide * wide))) if wide.size else 0.0
    ratio = gap / rms if rms > 0 else (0.0 if gap == 0 else float("inf"))
    place = str(node.loc).replace('"', "") if node.loc else ""
    return Difference(name, node.name, node.op, node.scope, place, gap, rms, ratio, bool(ratio <= bound))


def _span(function: Function, values: list[Difference], worst: Difference | None) -> tuple[str, ...]:
    """Nodes after the last value before ``worst`` up to its own."""
    if worst is None:
        return ()
    order = [n.name for n in function.nodes]
    index = values.index(worst)
    begin = order.index(values[index - 1].node) + 1 if index else 0
    return tuple(order[begin : order.index(worst.node) + 1])
