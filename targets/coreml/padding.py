"""Caches whose last two dims are multiples of 32, which the neural engine wants of states.

A program with a state of another width has failed there: https://github.com/apple/coremltools/issues/2631 (270 failed,
256 ran).  More slots change nothing: a slot that holds no token has the index -1.  Wider rows are written with zeros
behind the numbers, and read without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from omnic.ir.graph import Function, Module, Node, Param, Result, State, Uses, Value
from omnic.ir.types import TensorType
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.matrix import matrix
from omnic.targets.coreml.options import Options

__all__ = ["Padded", "pad_states"]

#: what reads a cache by its index, whatever its slots are
_READERS = ("attention", "mla")


@dataclass(frozen=True)
class Padded:
    """A module with wider states, and what a user should know of them."""

    module: Module
    remarks: tuple[str, ...] = ()


def pad_states(module: Module, options: Options) -> Padded:
    """Return ``module`` with its states' slots and widths up to multiples of 32, for the recipe ``ane``."""
    if options.compute != "ane":
        return Padded(module)
    wanted = {name: made for name, state in module.states.items() if (made := _wider(state)) != state.type.shape[-2:]}
    if not wanted:
        return Padded(module)
    free = [n for n in wanted if all(_only_attended(f, n) for f in module.functions.values())]
    wanted = {n: wanted[n] for n in free}
    states = {n: _state(s, wanted[n]) if n in wanted else s for n, s in module.states.items()}
    functions = {n: _function(f, states, wanted) for n, f in module.functions.items()}
    said = [f"{n} {module.states[n].type} to {states[n].type}" for n in wanted]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    remark = (f"caches are padded to multiples of {CAPS.limit('state_multiple')}: {', '.join(said[:3])}{more}"
              f" ({matrix()['sources']['multiple_of_32']})")
    return Padded(replace(module, states=states, functions=functions), (remark,) if said else ())


def _wider(state: State) -> tuple[int, ...]:
    multiple = CAPS.limit("state_multiple")
    return tuple(-(-int(str(d)) // multiple) * multiple for d in state.type.shape[-2:])


def _only_attended(function: Function, name: str) -> bool:
    """Whether a state is only written, moved, and read by attention, so that more slots are seen by nobody."""
    held = {p.value for p in function.params if p.state == name}
    read: set[Value] = set()
    uses = Uses(function)
    for node in function.nodes:
        if node.op in ("cache_write", "cache_move") and node.operands[0] in held:
            held.add(node.result)
        elif node.op == "cache_read" and node.operands[0] in held:
            read.update(node.results)
    returned = {r.value for r in function.results}
    return not read & returned and all(n.op in _READERS for v in read for n, _ in uses.users.get(v, ()))


def _typed(type: TensorType, last: tuple[int, ...]) -> TensorType:
    return TensorType(type.element, (*type.shape[:-2], *last))


def _state(state: State, last: tuple[int, ...]) -> State:
    return replace(state, type=_typed(state.type, last))


def _function(function: Function, states: Mapping[str, State], wanted: Mapping[str, tuple[int, ...]]) -> Function:
    found: dict[Value, Value] = {}
    held: dict[Value, str] = {}
    params: list[Param] = []
    for param in function.params:
        made = param
        if param.state is not None and param.state in wanted:
            made = Param(replace(param.value, type=states[param.state].type), param.state)
            found[param.value] = made.value
            held[made.value] = param.state
        params.append(made)
    nodes: list[Node] = []
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        state = held.get(operands[0]) if operands and operands[0] is not None else None
        if state is None:
            nodes.append(replace(node, operands=operands))
            continue
        width = int(str(states[state].type.shape[-1]))
        if node.op == "cache_read":
            nodes += _read(node, operands, found, width)
            continue
        if node.op == "cache_write":
            operands = (operands[0], _filled(node, operands[1], width, nodes), *operands[2:])
        made_value = replace(node.result, type=states[state].type)
        found[node.result], held[made_value] = made_value, state
        nodes.append(replace(node, operands=operands, results=(made_value,)))
    results = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, tuple(params), tuple(nodes), results)


def _filled(node: Node, value: Value | None, width: int, nodes: list[Node]) -> Value:
    """Return a token's numbers with zeros behind them."""
    assert value is not None
    before = int(str(value.type.shape[-1]))
    if before == width:
        return value
    attrs = {"axis": value.type.rank - 1, "before": 0, "after": width - before}
    made = Value(f"{node.result.name}.wide", TensorType(value.type.element, (*value.type.shape[:-1], width)))
    nodes.append(replace(node, op="pad", operands=(value,), attrs=attrs, results=(made,), name=f"{node.name}.pad"))
    return made


def _read(node: Node, operands: tuple[Value | None, ...], found: dict[Value, Value], width: int) -> list[Node]:
    """Return the nodes that read a wider cache and leave its zeros out."""
    assert operands[0] is not None
    y, index = node.results
    slots = operands[0].type.shape[-2]
    narrow = TensorType(y.type.element, (*y.type.shape[:-2], slots, y.type.shape[-1]))
    counted = replace(index, type=TensorType(index.type.element, (*index.type.shape[:-1], slots)))
    found[index] = counted
    if y.type.shape[-1] == width:
        found[y] = replace(y, type=narrow)
        return [replace(node, operands=operands, results=(found[y], counted))]
    whole = Value(f"{y.name}.wide", TensorType(y.type.element, (*narrow.shape[:-1], width)))
    found[y] = replace(y, type=narrow)
    cut = replace(node, op="slice", operands=(whole,), results=(found[y],), name=f"{node.name}.slice",
                  attrs={"axis": y.type.rank - 1, "start": (0,), "stop": (y.type.shape[-1],)})
    return [replace(node, operands=operands, results=(whole, counted)), cut]
