"""Values of a saved program by their names in the IR: the whole of it in pieces, or a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.targets.coreml.program import Form, Package, cut, token_axis

__all__ = ["preserved", "run_part", "run_whole"]

#: what goes by token
_BY_TOKEN = ("tokens", "next_tokens", "positions", "parents", "hidden", "embeds", "embed_mask")


def preserved(package: Package, function: str) -> tuple[str, ...]:
    """Return the values that every function of the package shows, in order."""
    forms = package.of(function)
    return tuple(n for n in forms[0].names if all(n in f.names for f in forms))


def _many(package: Package, function: str) -> Form:
    """Return the function that gives the logits of the most tokens."""
    return max(package.of(function), key=lambda f: f.rows)


def run_whole(
    package: Package, function: str, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Run a call of any length from empty states, row by row and piece by piece, and put the values together."""
    batch = len(inputs["positions"])
    rows = [_row(package, function, {n: a[b : b + 1] for n, a in inputs.items()}, names) for b in range(batch)]
    return {n: np.concatenate([r[n] for r in rows]).astype(np.float32) for n in names}


def _row(
    package: Package, function: str, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    form, states = _many(package, function), package.empty_states(function)
    count, valid = inputs["positions"].shape[1], int(inputs["length"][0])
    pieces: list[dict[str, NDArray[Any]]] = []
    step = max(form.sizes)
    for at in range(0, count, step):
        end = min(at + step, count)
        given = {n: a[:, at:end] if n in _BY_TOKEN else a for n, a in inputs.items()}
        inside = min(max(valid - at, 0), end - at)
        given |= {"start": inputs["start"] + at, "length": np.array([inside]), "rows": np.arange(end - at)[None]}
        length = form.takes(end - at)
        assert length is not None
        wanted = [*names, *(_next(package, form) if not package.stateful else ())]
        found = package.values(form, length, given, states, list(dict.fromkeys(wanted)), advance=True)
        if not package.stateful:
            states |= {s: found[v] for s, v in zip(_states(package, form), _next(package, form), strict=True)}
        pieces.append({n: cut(package.value(function, n), found[n], end - at, end - at) for n in names})
    joined: dict[str, NDArray[Any]] = {}
    for name in names:
        value = package.value(function, name)
        axis, by_row = token_axis(value, "T"), token_axis(value, "R")
        parts = [p[name] for p in pieces]
        along = axis if axis is not None else by_row
        joined[name] = parts[-1] if along is None else np.concatenate(parts, axis=along)
        if by_row is not None:
            joined[name] = np.take(joined[name], inputs["rows"][0], axis=by_row)
    return joined


def _states(package: Package, form: Form) -> list[str]:
    return [v for v in form.inputs.values() if v in package.module.states]


def _next(package: Package, form: Form) -> list[str]:
    """Return the values that the states become."""
    results = {r.state: r.value.name for r in package.module.function(form.function).results if r.state is not None}
    return [results[s] for s in _states(package, form)]


def run_part(
    package: Package, function: str, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Run the part between ``inputs`` and ``names``; a call longer than the longest verification is one of prefill."""
    tokens = max((a.shape[axis] for n, a in inputs.items()
                  if (axis := token_axis(package.value(function, n), "T")) is not None), default=1)
    forms = [f for f in package.of(function) if f.takes(tokens) is not None]
    form = min(forms, key=lambda f: f.takes(tokens) or 0) if forms else package.of(function)[-1]
    length = form.takes(tokens)
    assert length is not None
    states = package.empty_states(function)
    for name in list(states):
        if name in inputs:
            states[name] = np.asarray(inputs[name]).astype(states[name].dtype)
    given = {n: np.asarray(a) for n, a in inputs.items() if n not in states}
    wanted = list(names)
    found = package.values(form, length, given, states, wanted)
    rows = min(form.rows, tokens)
    return {n: cut(package.value(function, n), found[n], tokens, rows).astype(np.float32) for n in names}
