"""Rules about states going through functions, and about the signature of ``forward``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from omnic.ir.dims import Dim, symbol
from omnic.ir.graph import Function, Module, Value
from omnic.ir.op import all_ops
from omnic.ir.types import DType, TensorType
from omnic.ir.verify.problem import Place, Problem

__all__ = ["aliases", "forward", "prefill", "rings", "versions"]

_B, _T, _R = symbol("B"), symbol("T"), symbol("R")
_INDEX: dict[str, tuple[Dim, ...]] = {
    "tokens": (_B, _T), "positions": (_B, _T), "start": (_B,), "length": (_B,), "rows": (_B, _R), "parents": (_B, _T),
    "next_tokens": (_B, _T),
}


def aliases(module: Module, function: Function) -> Iterator[Problem]:
    """A state that comes in goes out exactly once, with its type."""
    inside: dict[str, int] = {}
    for index, param in enumerate(function.params):
        if param.state is None:
            continue
        place = Place("param", function.name, index)
        state = module.states.get(param.state)
        if state is None:
            yield Problem(f"state @{param.state} is not declared", place)
        elif param.value.type != state.type:
            yield Problem(f"%{param.value.name} is {param.value.type}, state @{state.name} is {state.type}", place)
        if param.state in inside:
            yield Problem(f"state @{param.state} comes in twice", place)
        inside[param.state] = index
    returned: set[str] = set()
    for index, result in enumerate(function.results):
        if result.state is None:
            continue
        place = Place("result", function.name, index)
        if result.state not in inside:
            yield Problem(f"result %{result.name} aliases @{result.state}, which does not come in", place)
        elif result.value.type != function.params[inside[result.state]].value.type:
            yield Problem(f"result %{result.name} is {result.value.type}, state @{result.state} is "
                          f"{function.params[inside[result.state]].value.type}", place)
        if result.state in returned:
            yield Problem(f"state @{result.state} is returned twice", place)
        returned.add(result.state)
    for name, index in inside.items():
        if name not in returned:
            yield Problem(f"state @{name} comes in and is not returned", Place("param", function.name, index),
                          f"return it: ... aliases @{name}")


def versions(module: Module, function: Function) -> Iterator[Problem]:
    """The versions of a state are one chain: once an op has made the next one, the old one is not read.

    So a target may write every state in place.
    """
    state_of: dict[Value, str] = {p.value: p.state for p in function.params if p.state is not None}
    replaced: dict[Value, str] = {}
    ops = all_ops()
    for index, node in enumerate(function.nodes):
        for value in dict.fromkeys(node.inputs()):
            if value in replaced:
                yield Problem.of_node(f"%{value.name} is read after {replaced[value]} has overwritten it", function,
                                      index, node, "operand", value, f"state @{state_of[value]} is updated in place")
        op = ops.get(node.op)
        if op is None or not op.updates or len(node.operands) < len(op.inputs):
            continue
        for number, spec in enumerate(op.inputs):
            old = node.operands[number]
            if spec.name not in op.updates or old is None or old not in state_of:
                continue
            output = op.outputs.index(op.updates[spec.name])
            if output < len(node.results):
                state_of[node.results[output]] = state_of[old]
            replaced.setdefault(old, node.name)
    for index, result in enumerate(function.results):
        place = Place("returned", function.name, index)
        owner = state_of.get(result.value)
        if result.value in replaced:
            yield Problem(f"result %{result.name} is %{result.value.name}, which {replaced[result.value]} has "
                          "overwritten", place, "return the last version of the state")
        if result.state is not None and owner is not None and owner != result.state:
            yield Problem(f"result %{result.name} aliases @{result.state} and is a version of @{owner}", place)


def rings(module: Module, function: Function) -> Iterator[Problem]:
    """An op on a state wraps around exactly when the state is a ring."""
    state_of = {p.value: p.state for p in function.params if p.state is not None and p.state in module.states}
    ops = all_ops()
    for index, node in enumerate(function.nodes):
        op = ops.get(node.op)
        if op is None or not any(a.name == "ring" for a in op.attrs):
            continue
        for number, spec in enumerate(op.inputs):
            value = node.operands[number] if number < len(node.operands) else None
            if not spec.state or value is None or value not in state_of:
                continue
            state = module.states[state_of[value]]
            ring = node.attrs.get("ring", False)
            if ring is not state.ring:
                yield Problem.of_node(f"{node.op} has ring = {str(ring).lower()}, state @{state.name} is "
                                      f"{'a ring' if state.ring else 'linear'}", function, index, node)
            if spec.name in op.updates:
                state_of.update((r, state.name) for r in node.results[:1])


def forward(module: Module, function: Function) -> Iterator[Problem]:
    """The inputs and outputs of ``forward`` and ``mtp`` that have a meaning of their own have their types.

    A ``forward`` with states takes at least tokens (or embeds), start and length, and returns logits.
    """
    if function.name != "forward" and function.name.split(".")[0] != "mtp":
        return
    stateful = any(p.state is not None for p in function.params)
    params = {p.value.name: p.value.type for p in function.params if p.state is None}
    for index, param in enumerate(function.params):
        wanted = _wanted(param.value)
        if param.state is None and wanted is not None and param.value.type != wanted:
            yield Problem(f"parameter %{param.value.name} is {param.value.type}, in @{function.name} it is {wanted}",
                          Place("param", function.name, index))
    if stateful and function.name == "forward":
        missing = [n for n in ("start", "length") if n not in params]
        if "tokens" not in params and "embeds" not in params:
            missing.insert(0, "tokens")
        for name in missing:
            yield Problem(f"@forward has states and no parameter %{name}", Place("func", function.name))
        if not any(r.name == "logits" for r in function.results):
            yield Problem("@forward has states and no result %logits", Place("func", function.name))
    for index, result in enumerate(function.results):
        type = result.value.type
        rank = {"logits": 3, "hidden": 3, "verifier": 3, "mtp": 4}.get(result.name) if result.state is None else None
        if rank is not None and (type.rank != rank or not type.is_float):
            yield Problem(f"result %{result.name} is {type}, it must be floats of {rank} dims",
                          Place("result", function.name, index))


def prefill(module: Module) -> Iterator[Problem]:
    """Where ``meta prefill_from`` says from how many tokens, 2 up, calls run ``@prefill``, it stands for ``@forward``.

    Its parameters, states and results have the names and types of those of ``@forward``.
    """
    least = module.meta.get("prefill_from")
    if least is None:
        return
    there = [name for name in ("forward", "prefill") if name in module.functions]
    place = Place("func", there[-1] if there else "prefill")
    if isinstance(least, bool) or not isinstance(least, int) or least < 2:
        yield Problem(f"meta prefill_from is {least}, it is a number of tokens from 2 up", place)
    if len(there) < 2:
        yield Problem("meta prefill_from is for a module with @forward and @prefill", place)
        return
    one, other = (_signature(module.functions[name]) for name in there)
    if one != other:
        differ = next((a, b) for a, b in zip_longest(one, other, fillvalue="nothing") if a != b)
        yield Problem(f"@prefill stands for @forward and has {differ[1]} where that has {differ[0]}", place)


def decoded(module: Module) -> Iterator[Problem]:
    """``meta decoded``, the type that weights of storage types are decoded to, is ``f16`` or ``bf16``."""
    found = module.meta.get("decoded")
    if found is not None and module.decoded is None:
        place = Place("func", next(iter(module.functions), "forward"))
        yield Problem(f"meta decoded is {found}, it is f16 or bf16", place)


def _signature(function: Function) -> list[str]:
    taken = [f"parameter %{p.value.name}: {p.value.type} of {p.state or 'no state'}" for p in function.params]
    return taken + [f"result {r.name}: {r.value.type} of {r.state or 'no state'}" for r in function.results]


def _wanted(value: Value) -> TensorType | None:
    """Return the type that a parameter of this name has (the batch and token dims may be bounded by a clone)."""
    shape = _INDEX.get(value.name)
    if shape is None or value.type.rank != len(shape):
        return TensorType(DType.I64, shape) if shape else None
    return TensorType(DType.I64, value.type.shape)
