"""The part of a function between given and wanted values, as targets check programs larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from omnic.errors import BundleError, InputError, nearest
from omnic.ir.graph import Function, Module, Node, Param, Result, Value
from omnic.ir.text import parse_module

__all__ = ["float_values", "module_of", "part_of", "state_values"]

_MODULE_FILE = "module.ir"


def module_of(bundle: Path) -> Module:
    """Return the module of a bundle.

    Raises:
        BundleError: it has none.
    """
    path = bundle / _MODULE_FILE
    if not path.is_file():
        raise BundleError(
            f"{bundle}: the bundle has no file '{_MODULE_FILE}'", "copy the bundle again, or compile it again"
        )
    return parse_module(path.read_text(encoding="utf-8"), str(path))


def state_values(function: Function) -> dict[Value, str]:
    """Return the values that are a state before or after a write -> its name."""
    found = {p.value: p.state for p in function.params if p.state is not None}
    for node in function.nodes:
        before = node.operands[0] if node.op in ("cache_write", "cache_move", "cache_close") else None
        if before is not None and before in found:
            found[node.result] = found[before]
    return found


def float_values(function: Function) -> tuple[str, ...]:
    """Return the names of the float values that are no states, in order."""
    hidden = state_values(function)
    return tuple(v.name for n in function.nodes for v in n.results if v.type.is_float and v not in hidden)


def part_of(function: Function, inputs: Iterable[str], names: Sequence[str]) -> tuple[Function, dict[str, str]]:
    """Return the function from ``inputs`` to ``names``, and the state of each input that is one.

    States that are needed and not given stay parameters.

    Raises:
        InputError: a name is not a value of the function, a wanted one is a state, or the inputs do not determine it.
    """
    given = tuple(inputs)
    values = {v.name: v for v in function.values()}
    for name in (*names, *given):
        if name not in values:
            near = nearest(name, list(values))
            raise InputError(f"@{function.name} has no value %{name}", f"did you mean '%{near}'?" if near else None)
    states = state_values(function)
    for name in names:
        if values[name] in states:
            raise InputError(
                f"%{name} is a state, which is a buffer here", "ask for the value that reads it (cache_read)"
            )
    stop = {values[n] for n in given}
    empty = {p.value: p.state for p in function.params if p.state is not None and p.value not in stop}
    producers = {v: node for node in function.nodes for v in node.results}
    wanted: set[Node] = set()
    used: set[Value] = set()
    queue = [values[n] for n in names]
    while queue:
        value = queue.pop()
        if value in used or value.weight:
            continue
        used.add(value)
        if value in stop or value in empty:
            continue
        if value not in producers:
            raise InputError(f"%{value.name} is needed and is not among the inputs")
        if producers[value] not in wanted:
            wanted.add(producers[value])
            queue += list(producers[value].inputs())
    params = [Param(values[n], states.get(values[n])) for n in given if values[n] in used]
    params += [Param(v, s) for v, s in empty.items() if v in used]
    nodes = tuple(n for n in function.nodes if n in wanted)
    part = Function(function.name, tuple(params), nodes, tuple(Result(n, values[n]) for n in names))
    return part, {n: states[values[n]] for n in given if values[n] in states}
