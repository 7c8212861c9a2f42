"""Joining products that read the same vector into one product: what qkv-merge and gate-up-merge share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Recipe, Result, Value, Weight
from omnic.ir.rewrite import Remark, rebuild_with, rename_values
from omnic.ir.types import Storage
from omnic.ir.weights import pinned
from omnic.passes.base import PassResult
from omnic.passes.dead_code import without_unread_weights

__all__ = ["Group", "merge_groups"]


@dataclass(frozen=True)
class Group:
    """Products to join.

    Attributes:
        function: the function they are in.
        linears: the ``linear`` nodes, in the order their rows are joined.
        name: last word of the joined weight's name, such as ``qkv``.
        reader: the node that asked for them, for remarks.
    """

    function: str
    linears: tuple[Node, ...]
    name: str
    reader: Node

    def columns(self) -> Iterator[tuple[Value | None, ...]]:
        """Iterate over the weights of all products, then over their biases."""
        yield tuple(n.operands[1] for n in self.linears)
        yield tuple(n.operands[2] for n in self.linears)


def _refusal(group: Group) -> str | None:
    """Return why the products cannot be joined (see the rules of the passes)."""
    first = group.linears[0]
    if len(set(group.linears)) != len(group.linears):
        return "one product is read twice"
    for node in group.linears[1:]:
        if node.operands[0] is not first.operands[0]:
            return f"{node.name} reads {node.operands[0]}, {first.name} reads {first.operands[0]}"
        if node.attrs != first.attrs:
            return f"{node.name} quantises its activations otherwise than {first.name}"
    for column in group.columns():
        if any((v is None) != (column[0] is None) for v in column):
            return "some have a bias and some have none"
        for value in column:
            if value is not None and not value.weight:
                return f"{value} is computed, not a weight"
            if value is not None and column[0] is not None and value.type.element != column[0].type.element:
                return f"{value} is {value.type.element}, {column[0]} is {column[0].type.element}"
    weight = group.linears[0].operands[1]
    element = weight.type.element if weight is not None else None
    if isinstance(element, Storage) and element.group != -1 and element.axis != -1:
        return f"the groups of {element} run along the rows that would be joined"
    return None


def _names(group: Group) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(v.name if v is not None else "" for v in column) for column in group.columns())


def _readers(module: Module) -> dict[str, set[str]]:
    """Return the nodes that read each weight, as ``function node``."""
    found: dict[str, set[str]] = {}
    for function in module.functions.values():
        for node in function.nodes:
            for value in node.inputs():
                if value.weight:
                    found.setdefault(value.name, set()).add(f"{function.name} {node.name}")
    return found


def merge_groups(module: Module, rule: str, groups: Sequence[Group]) -> PassResult:
    """Join the products of each group whose weights nobody else reads, in every function alike."""
    remarks: list[Remark] = []
    fitting: list[Group] = []
    for group in groups:
        reason = _refusal(group)
        if reason:
            remarks.append(Remark(rule, reason, group.reader.name, True))
        else:
            fitting.append(group)
    readers = _readers(module)
    alike: dict[tuple[tuple[str, ...], ...], list[Group]] = {}
    for group in fitting:
        alike.setdefault(_names(group), []).append(group)
    chosen: dict[tuple[tuple[str, ...], ...], list[Group]] = {}
    for names, same in alike.items():
        inside = {f"{g.function} {n.name}" for g in same for n in g.linears}
        others = sorted({r for column in names for name in column if name for r in readers[name] - inside})
        if others:
            function, _, node = others[0].partition(" ")
            reason = f"{node} of @{function} reads the weights too, joined they would lie in the bundle twice"
            remarks += [Remark(rule, reason, g.reader.name, True) for g in same]
        else:
            chosen[names] = same
    if not chosen:
        return PassResult(module, False, tuple(remarks))
    weights = dict(module.weights)
    joined: dict[tuple[tuple[str, ...], ...], tuple[Value, Value | None]] = {}
    for names, same in chosen.items():
        made = [_join(weights, column, same[0].name) for column in names]
        assert made[0] is not None
        joined[names] = (made[0], made[1])
    functions = dict(module.functions)
    for name, function in module.functions.items():
        mine = [(g, joined[names]) for names, same in chosen.items() for g in same if g.function == name]
        if mine:
            functions[name] = _rebuilt(function, mine)
            remarks += [Remark(rule, "applied", g.reader.name) for g, _ in mine]
    after = without_unread_weights(replace(module, weights=weights, functions=functions))
    return PassResult(after, True, tuple(remarks))


def _join(weights: dict[str, Weight], names: tuple[str, ...], word: str) -> Value | None:
    """Declare the weight whose rows are those of ``names``, one below the other."""
    if not names[0]:
        return None
    parts = [weights[name] for name in names]
    rows = sum(size for p in parts if isinstance(size := p.type.shape[0], int))
    suffix = names[0].rpartition("_")[2] if parts[0].type.rank == 1 and "_" in names[0] else ""
    prefix = names[0].rpartition(".")[0]
    base = ".".join(filter(None, (prefix, word))) + (f"_{suffix}" if suffix else "")
    name, count = base, 0
    while name in weights:
        count += 1
        name = f"{base}.{count}"
    type = parts[0].type.with_shape(rows, *parts[0].type.shape[1:])
    value = Value(name, type, weight=True)
    # Plain numbers and codes alike are joined row by row, so nothing is rounded a second time.
    weights[name] = Weight(value, Recipe("concat", {"axis": 0}, tuple(pinned(p) for p in parts)))
    return value


def _rebuilt(function: Function, groups: Sequence[tuple[Group, tuple[Value, Value | None]]]) -> Function:
    """Return the function with one product and one split where the first product of each group was."""
    at = {_earliest(function, g): (g, made) for g, made in groups}
    gone = {n for g, _ in groups for n in g.linears}
    b = FunctionBuilder(
        function.name,
        taken={v.name for v in function.values()},
        node_names={n.name for n in function.nodes if n not in gone},
    )
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    for node in function.nodes:
        if node in at:
            group, (weight, bias) = at[node]
            first = group.linears[0]
            with b.at(node):
                x = first.operands[0]
                x = found.get(x, x) if x is not None else None
                y = b.op("linear", x, weight, bias, hint=group.name, **dict(first.attrs))
                sizes = tuple(n.result.type.shape[-1] for n in group.linears)
                parts = b.emit("split", y, axis=-1, sizes=sizes)
            for old, part in zip(group.linears, parts, strict=True):
                found[old.result], names[part] = part, old.result.name
        if node not in gone:
            b.nodes.append(rebuild_with(node, tuple(found.get(v, v) if v is not None else None for v in node.operands)))
    results = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return rename_values(Function(function.name, function.params, tuple(b.nodes), results), names)


def _earliest(function: Function, group: Group) -> Node:
    wanted = set(group.linears)
    return next(n for n in function.nodes if n in wanted)
