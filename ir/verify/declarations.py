"""Rules about names, dims, weights and states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from omnic.ir.dims import Dim, bounds, symbols
from omnic.ir.graph import Module, Role, State
from omnic.ir.text.lexer import is_dim_name
from omnic.ir.types import Storage, TensorType
from omnic.ir.verify.problem import Place, Problem

__all__ = ["dims", "names", "states", "storage_problem", "undeclared", "weights"]

# States whose slots are tokens, so that the tail can be dropped; the others keep a running value.
_BY_TOKEN = ("k", "v", "latent", "rope_k", "recent", "landmark")


def names(module: Module) -> Iterator[Problem]:
    """Weights, states and functions are filed under their own names."""
    for key, weight in module.weights.items():
        if key != weight.name or not weight.value.weight:
            yield Problem(f"weight @{weight.name} is filed as @{key}", Place("weight", weight.name))
    for key, state in module.states.items():
        if key != state.name:
            yield Problem(f"state @{state.name} is filed as @{key}", Place("state", state.name))
    for key, function in module.functions.items():
        if key != function.name:
            yield Problem(f"func @{function.name} is filed as @{key}", Place("func", function.name))


def dims(module: Module) -> Iterator[Problem]:
    """A dim has a plain name and a range from 1 up."""
    for name, range in module.dims.items():
        if not is_dim_name(name):
            yield Problem(f"'{name}' cannot be a dim's name", Place("dim", name))
        if range.low < 1 or range.high < range.low:
            yield Problem(f"dim {name} has no values: {range.low}..{range.high}", Place("dim", name),
                          "a range is 1..N with N >= 1")


def undeclared(module: Module, shape: tuple[Dim, ...]) -> list[str]:
    """Return the symbols of ``shape`` that the module does not declare."""
    found: list[str] = []
    for dim in shape:
        found += [s for s in sorted(symbols(dim)) if s not in module.dims and s not in found]
    return found


def storage_problem(type: TensorType) -> str | None:
    """Return what is wrong with the storage type of a tensor, or None."""
    element = type.element
    if not isinstance(element, Storage):
        return None
    if not 1 <= -element.axis <= type.rank:
        return f"{type} groups along axis {element.axis}, it has {type.rank} dims"
    if element.group == -1 and type.rank < 2:
        return f"{type}: a scale per head needs at least two dims"
    if element.asym and element.kind in ("nf4", "fp4", "t2"):
        return f"{type}: {element.kind} has no zero point"
    if element.scale == "one" and element.asym:
        return f"{type}: a scale of one is not stored, so neither is a zero point"
    if element.scale == "s4" and (element.kind != "i4" or element.asym or element.group <= 0):
        return f"{type}: s4 is the scale of symmetric i4 groups"
    return None


def weights(module: Module) -> Iterator[Problem]:
    """A weight has fixed dims and a storage type that has a meaning."""
    for weight in module.weights.values():
        place = Place("weight", weight.name)
        wrong = next((d for d in weight.type.shape if not isinstance(d, int) or d < 1), None)
        if wrong is not None:
            hint = "the dims of a weight are positive numbers"
            yield Problem(f"weight @{weight.name} has the dim {wrong}", place, hint)
        problem = storage_problem(weight.type)
        if problem:
            yield Problem(problem, place)


def states(module: Module) -> Iterator[Problem]:
    """A state has a fixed capacity, a rollback that its role allows, and as a ring room for a whole call."""
    for state in module.states.values():
        place = Place("state", state.name)
        for message, hint in _state(module, state):
            yield Problem(f"state @{state.name}{message}", place, hint)


def _state(module: Module, state: State) -> Iterator[tuple[str, str | None]]:
    unknown = undeclared(module, state.type.shape)
    for name in unknown:
        yield f": dim {name} is not declared", f"declare it: dim {name} in 1..N"
    problem = storage_problem(state.type)
    if problem:
        yield f": {problem}", None
    if not state.type.is_float:
        yield f" is {state.type}", "a state holds floating point numbers or a storage type"
    if state.role not in get_args(Role):
        yield f" has the unknown role '{state.role}'", f"one of: {', '.join(get_args(Role))}"
    if state.group < 0 or state.window < 0:
        yield f" has group({state.group}) and window({state.window})", "both count from 0"
    for dim in () if unknown else state.type.shape[1:]:
        low, high = bounds(dim, module.dims)
        if low != high:
            yield f" has the dim {dim}", "dims of a state but the first are capacities: numbers, never a live length"
    if state.rollback == "snapshot" and state.snapshots < 1:
        yield f" keeps {state.snapshots} snapshots", "snapshot(n) needs n >= 1"
    if state.rollback == "positional" and state.snapshots:
        yield " keeps snapshots and rolls back by position", "write rollback(snapshot(n))"
    if state.rollback == "positional" and state.role not in _BY_TOKEN:
        hint = "its slots are not tokens: write rollback(snapshot(n))"
        yield f" of role {state.role} cannot roll back by position", hint
    if state.ring and not unknown:
        yield from _ring(module, state)


def _ring(module: Module, state: State) -> Iterator[tuple[str, str | None]]:
    if state.role not in _BY_TOKEN or state.type.rank < 3 or state.rollback != "positional":
        yield " cannot be a ring", "a ring is [B, ..., slots, D] of tokens that rolls back by position"
        return
    if state.window < 1:
        yield " is a ring without a window", "write ring window(W): W attended keys, the current one included"
        return
    if "T" not in module.dims:
        yield " is a ring and dim T is not declared", "its capacity is window + the most tokens of a call - 1"
        return
    # What a call writes is read beside a recent ring, not from it: it holds what came before the call.
    longest = 1 if state.role == "recent" else module.dims["T"].high
    slots = bounds(state.type.shape[-2], module.dims)[0]
    if slots < state.window + longest - 1:
        yield (f" has {slots} slots", f"a ring of window {state.window} that takes up to {longest} tokens a call holds "
               f"{state.window} + {longest} - 1 = {state.window + longest - 1}")
