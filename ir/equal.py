"""Whether two modules are the same graph, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.op import all_ops
from omnic.ir.text.printer import print_attribute, print_attributes, print_recipe, print_state

__all__ = ["same_function", "same_module"]

T = TypeVar("T")


def same_module(a: Module, b: Module, *, meta: bool = True) -> list[str]:
    """Return the differences between two modules, one sentence each; none when they are the same graph.

    Names of the interface (functions, parameters, results, weights, states, nodes) and the order of
    parameters, nodes and results count.  Names of the values inside a function, attributes written at their
    default, places in the spec and the order of declarations do not.

    Args:
        a: a module.
        b: the other one.
        meta: whether the modules' names and metadata count.
    """
    out: list[str] = []
    if meta:
        if a.name != b.name:
            out.append(f"the modules are called @{a.name} and @{b.name}")
        out += _maps("meta", a.meta, b.meta, print_attribute)
    out += _maps("dim", a.dims, b.dims, str)
    out += _maps("weight", a.weights, b.weights, lambda w: f"{w.type} = {print_recipe(w.recipe)}")
    out += _maps("state", a.states, b.states, print_state)
    out += _maps("func", a.functions, b.functions, lambda _: "")
    for name, function in a.functions.items():
        if name in b.functions:
            out += same_function(function, b.functions[name])
    return out


def _maps(kind: str, a: Mapping[str, T], b: Mapping[str, T], show: Callable[[T], str]) -> list[str]:
    out = [f"{kind} {name} is only in the first" for name in a if name not in b]
    out += [f"{kind} {name} is only in the second" for name in b if name not in a]
    for name in a:
        if name in b and show(a[name]) != show(b[name]):
            out.append(f"{kind} {name}: {show(a[name])} and {show(b[name])}")
    return out


def same_function(a: Function, b: Function) -> list[str]:
    """Return the differences between two functions, as :func:`same_module`."""
    out: list[str] = []
    partner: dict[Value, Value] = {}
    where = f"func @{a.name}"
    if len(a.params) != len(b.params):
        out.append(f"{where}: {len(a.params)} and {len(b.params)} parameters")
    for p, q in zip(a.params, b.params, strict=False):
        partner[p.value] = q.value
        if (p.value.name, p.value.type, p.state) != (q.value.name, q.value.type, q.state):
            out.append(f"{where}: parameters %{p.value.name}: {p.value.type} and %{q.value.name}: {q.value.type}")
    if len(a.nodes) != len(b.nodes):
        out.append(f"{where}: {len(a.nodes)} and {len(b.nodes)} nodes")
    for m, n in zip(a.nodes, b.nodes, strict=False):
        out += [f"{where}: {text}" for text in _same_node(m, n, partner)]
        partner.update(zip(m.results, n.results, strict=False))
    if [(r.name, r.state) for r in a.results] != [(r.name, r.state) for r in b.results]:
        out.append(f"{where}: results {_names(a)} and {_names(b)}")
    for r, s in zip(a.results, b.results, strict=False):
        if not _same_value(r.value, s.value, partner):
            out.append(f"{where}: result {r.name} is {r.value} and {s.value}")
    return out


def _names(function: Function) -> str:
    return ", ".join(f"{r.name} aliases @{r.state}" if r.state is not None else r.name for r in function.results)


def _same_node(a: Node, b: Node, partner: Mapping[Value, Value]) -> list[str]:
    if a.op != b.op:
        return [f"{a.name} is {a.op} and {b.op} ({b.name})"]
    out: list[str] = []
    if (a.name, a.scope) != (b.name, b.scope):
        out.append(f"{a.name} in scope '{a.scope}' and {b.name} in scope '{b.scope}'")
    if len(a.operands) != len(b.operands):
        out.append(f"{a.name} has {len(a.operands)} and {len(b.operands)} operands")
    for index, (v, w) in enumerate(zip(a.operands, b.operands, strict=False)):
        if not _same_value(v, w, partner):
            out.append(f"{a.name}: operand {index} is {v or 'absent'} and {w or 'absent'}")
    op = all_ops().get(a.op)
    mine, theirs = dict(print_attributes(a, op)), dict(print_attributes(b, op))
    out += [f"{a.name}: {text}" for text in _maps("attribute", mine, theirs, print_attribute)]
    types = [str(v.type) for v in a.results], [str(v.type) for v in b.results]
    if types[0] != types[1]:
        out.append(f"{a.name} gives {', '.join(types[0])} and {', '.join(types[1])}")
    return out


def _same_value(a: Value | None, b: Value | None, partner: Mapping[Value, Value]) -> bool:
    if a is None or b is None:
        return a is b
    if a.weight or b.weight:
        return a.weight == b.weight and a.name == b.name
    return partner.get(a) is b
