"""Rewriting functions: patterns as small named tables, rules, dead code, replaced and retyped values.

A rule is ``requires -> call -> ensures``: the pattern finds nodes, each requirement may refuse them with a
reason, ``build`` makes the replacement, ``ensures`` may refuse that.  A refusal is a remark with the rule, the
reason and the node, so that a user can ask why nothing was fused.  Everything returns new functions; nodes
that no rule touched keep their names.

    NORM_LINEAR = Rule(
        name="norm-into-linear",
        pattern=Pattern("product", {"product": ("linear", "normed", "w"), "normed": ("rms_norm", "x", "weight")}),
        build=fold_norm,
        requires=(weight_is_shared_by_nobody,),
    )
    function, remarks = rewrite(function, [NORM_LINEAR])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from omnic.errors import InternalError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Param, Recipe, Result, Uses, Value, Weight
from omnic.ir.op import find_op
from omnic.ir.types import TensorType

__all__ = ["Match", "Pattern", "Remark", "Rule", "eliminate_dead_code", "rename_values", "replace_values", "retype",
           "retype_weights", "rewrite"]

# A rewrite whose rules keep feeding each other is stopped here and reported as a defect.
_MAX_SWEEPS = 100


@dataclass(frozen=True)
class Remark:
    """Something a rule did or declined: the rule, what happened, and the node it happened at.

    ``missed``: the rule nearly applied, and the message is why it did not.
    """

    rule: str
    message: str
    node: str = ""
    missed: bool = False

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}" + (f" ({self.node})" if self.node else "")


@dataclass(frozen=True)
class Pattern:
    """A connected set of nodes: a name for each, its op, and a name for each operand.

    An operand name that is a key of ``nodes`` must be the first result of that node; any other name binds a
    value, and a name used twice must bind the same value.  ``_`` binds nothing; operands beyond those named are
    not looked at.  The order of the operands of a node in ``swaps`` (of two operands) does not matter.

    Attributes:
        root: the node whose results the rule replaces; every other node must lead to it.
        nodes: name -> (op, operand names).
        swaps: names of nodes with two operands in any order.
        shared: names of nodes that others may read as well (the rule then leaves them in place).
    """

    root: str
    nodes: Mapping[str, tuple[str, ...]]
    swaps: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """What a pattern found: nodes and values by name, and the function they are in."""

    nodes: Mapping[str, Node]
    values: Mapping[str, Value]
    function: Function
    uses: Uses

    def __getitem__(self, name: str) -> Value:
        """Return the value bound to ``name``, or the first result of the node of that name."""
        return self.values[name] if name in self.values else self.nodes[name].results[0]


Requirement = Callable[[Match], str | None]
Replacement = Value | tuple[Value, ...]


@dataclass(frozen=True)
class Rule:
    """A named rewrite.

    Attributes:
        name: what remarks and ``--why`` call it.
        pattern: what it looks for.
        build: makes the values that replace the results of the pattern's root.
        requires: each returns a reason to leave the match alone, or None.
        ensures: looks at the replacement and returns a reason to drop it, or None.
    """

    name: str
    pattern: Pattern
    build: Callable[[FunctionBuilder, Match], Replacement]
    requires: tuple[Requirement, ...] = ()
    ensures: tuple[Callable[[Match, tuple[Value, ...]], str | None], ...] = ()


@dataclass
class _Attempt:
    """The bindings of one attempt, and where it failed."""

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    reason: str = ""
    at: str = ""


def _bind(pattern: Pattern, name: str, node: Node | None, uses: Uses, state: _Attempt) -> bool:
    """Match the node ``name`` of ``pattern`` against ``node``, extending ``state``."""
    op, *operands = pattern.nodes[name]
    if node is None or node.op != op:
        state.reason = f"'{name}' must be {op}, found {node.op if node else 'a parameter or a weight'}"
        state.at = node.name if node else ""
        return False
    if name in state.nodes:
        return state.nodes[name] is node
    orders = [list(node.operands)]
    if name in pattern.swaps and len(node.operands) == 2:
        orders.append([node.operands[1], node.operands[0]])
    first: _Attempt | None = None
    for order in orders:
        trial = _Attempt({**state.nodes, name: node}, dict(state.values))
        if _bind_operands(pattern, name, operands, order, uses, trial):
            state.nodes, state.values = trial.nodes, trial.values
            return True
        if first is None or len(trial.nodes) > len(first.nodes):
            first = trial
    assert first is not None
    state.nodes, state.reason, state.at = first.nodes, first.reason, first.at
    return False


def _bind_operands(
    pattern: Pattern, name: str, wanted: Sequence[str], have: Sequence[Value | None], uses: Uses, state: _Attempt
) -> bool:
    for index, operand in enumerate(wanted):
        if operand == "_":
            continue
        value = have[index] if index < len(have) else None
        if value is None:
            state.reason, state.at = f"'{name}' has no operand '{operand}'", state.nodes[name].name
            return False
        if operand in pattern.nodes:
            if not _bind(pattern, operand, uses.producer.get(value), uses, state):
                return False
            if state.nodes[operand].results[0] is not value:
                state.reason, state.at = f"'{operand}' is read at another result than its first", state.nodes[name].name
                return False
        elif state.values.setdefault(operand, value) is not value:
            state.reason, state.at = f"'{operand}' is two different values", state.nodes[name].name
            return False
    return True


def _leaks(pattern: Pattern, match: Match) -> tuple[str, str] | None:
    """Return why an inner node cannot go (somebody else reads it) and its name."""
    inside = set(match.nodes.values())
    for name, node in match.nodes.items():
        if name == pattern.root or name in pattern.shared:
            continue
        for value in node.results:
            if value in match.uses.returned:
                return f"{value} is also a result of the function", node.name
            for user, _ in match.uses.users.get(value, []):
                if user not in inside:
                    return f"{value} is also read by {user.name}", node.name
    return None


def rewrite(function: Function, rules: Sequence[Rule]) -> tuple[Function, tuple[Remark, ...]]:
    """Apply ``rules``, in order, until none applies; then drop what is no longer used.

    Returns:
        The new function (the same object when nothing matched), and the remarks: one for each
        replacement, and one for each near-match: a place where the pattern's root, another node of it, and at
        least half of them were there and something else failed.

    Raises:
        InternalError: the rules never come to rest, or a replacement has another type.
    """
    done: list[Remark] = []
    declined: dict[tuple[str, str], Remark] = {}
    for _ in range(_MAX_SWEEPS):
        declined.clear()
        before = function
        for rule in rules:
            function, remarks = _sweep(function, rule, declined)
            done.extend(remarks)
        if function is before:
            return function, (*done, *declined.values())
    names = ", ".join(sorted({r.rule for r in done}))
    raise InternalError(f"the rules {names} still rewrite @{function.name} after {_MAX_SWEEPS} sweeps")


def _sweep(function: Function, rule: Rule, declined: dict[tuple[str, str], Remark]) -> tuple[Function, list[Remark]]:
    """Apply ``rule`` at every place where it matches, not twice to one node."""
    uses = Uses(function)
    root_op = rule.pattern.nodes[rule.pattern.root][0]
    claimed: set[Node] = set()
    plans: dict[Node, Match] = {}
    for node in reversed(function.nodes):
        if node.op != root_op:
            continue
        attempt = _Attempt()
        if not _bind(rule.pattern, rule.pattern.root, node, uses, attempt):
            if len(attempt.nodes) >= max(2, len(rule.pattern.nodes) / 2):
                declined[rule.name, node.name] = Remark(rule.name, attempt.reason, attempt.at or node.name, True)
            continue
        match = Match(attempt.nodes, attempt.values, function, uses)
        refusal = _leaks(rule.pattern, match) or _first_refusal(rule, match)
        if refusal:
            declined[rule.name, node.name] = Remark(rule.name, *refusal, missed=True)
        elif not claimed.intersection(match.nodes.values()):
            claimed.update(match.nodes.values())
            plans[node] = match
    return _apply(function, rule, plans, declined) if plans else (function, [])


def _first_refusal(rule: Rule, match: Match) -> tuple[str, str] | None:
    for requirement in rule.requires:
        reason = requirement(match)
        if reason:
            return reason, match.nodes[rule.pattern.root].name
    return None


def _apply(
    function: Function, rule: Rule, plans: Mapping[Node, Match], declined: dict[tuple[str, str], Remark]
) -> tuple[Function, list[Remark]]:
    """Build every planned replacement where its root was."""
    going = {n for m in plans.values() for name, n in m.nodes.items() if name not in rule.pattern.shared}
    b = FunctionBuilder(
        function.name,
        taken={v.name for v in function.values()},
        node_names={n.name for n in function.nodes if n not in going},
    )
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    old = set(function.values())
    remarks: list[Remark] = []
    for node in function.nodes:
        mapped = rebuild_with(node, tuple(found.get(v, v) if v is not None else None for v in node.operands))
        if node not in plans:
            b.nodes.append(mapped)
            continue
        match = _follow(plans[node], found)
        start = len(b.nodes)
        with b.at(node):
            made = rule.build(b, match)
        results = made if isinstance(made, tuple) else (made,)
        _check_types(rule, node, results)
        reason = next((r for ensure in rule.ensures if (r := ensure(match, results))), None)
        if reason:
            del b.nodes[start:]
            b.nodes.append(mapped)
            declined[rule.name, node.name] = Remark(rule.name, reason, node.name, True)
            continue
        for before, after in zip(node.results, results, strict=True):
            found[before] = after
            if after not in old and not after.weight:
                names[after] = before.name
        remarks.append(Remark(rule.name, "applied", node.name))
    if not remarks:
        return function, []
    results = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    rewritten = eliminate_dead_code(Function(function.name, function.params, tuple(b.nodes), results))
    return rename_values(rewritten, names), remarks


def _follow(match: Match, found: Mapping[Value, Value]) -> Match:
    """Return ``match`` with the values that earlier replacements of this sweep made."""
    return replace(match, values={name: found.get(v, v) for name, v in match.values.items()})


def _check_types(rule: Rule, node: Node, results: tuple[Value, ...]) -> None:
    wanted, got = [r.type for r in node.results], [r.type for r in results]
    if wanted != got:
        raise InternalError(
            f"rule {rule.name} replaces {', '.join(map(str, wanted))} by {', '.join(map(str, got))} at {node.name}"
        )


def rebuild_with(node: Node, operands: tuple[Value | None, ...]) -> Node:
    """Return ``node`` with other operands (itself when they are the same)."""
    return node if operands == node.operands else replace(node, operands=operands)


def eliminate_dead_code(function: Function) -> Function:
    """Return ``function`` without the nodes that no result depends on."""
    live = {r.value for r in function.results}
    kept: list[Node] = []
    for node in reversed(function.nodes):
        if live.isdisjoint(node.results):
            continue
        live.update(node.inputs())
        kept.append(node)
    if len(kept) == len(function.nodes):
        return function
    return replace(function, nodes=tuple(reversed(kept)))


def replace_values(function: Function, values: Mapping[Value, Value]) -> Function:
    """Return ``function`` with every read of a key replaced by its value (chains are followed).

    Definitions stay where they are; see :func:`eliminate_dead_code`.
    """
    def find(value: Value) -> Value:
        while value in values:
            value = values[value]
        return value

    nodes = tuple(
        rebuild_with(n, tuple(find(v) if v is not None else None for v in n.operands)) for n in function.nodes
    )
    results = tuple(Result(r.name, find(r.value), r.state) for r in function.results)
    return replace(function, nodes=nodes, results=results)


def rename_values(function: Function, names: Mapping[Value, str]) -> Function:
    """Return ``function`` with the node results in ``names`` called so, where no other value has the name."""
    taken = {v.name for v in function.values() if v not in names}
    fresh: dict[Value, Value] = {}
    for node in function.nodes:
        for value in node.results:
            if value in names and names[value] not in taken:
                taken.add(names[value])
                fresh[value] = replace(value, name=names[value])
    if not fresh:
        return function
    renamed = replace_values(function, fresh)
    nodes = tuple(
        replace(n, results=tuple(fresh.get(v, v) for v in n.results)) if any(v in fresh for v in n.results) else n
        for n in renamed.nodes
    )
    return replace(renamed, nodes=nodes)


def retype(function: Function, values: Mapping[Value, Value], params: Iterable[Param] | None = None) -> Function:
    """Return ``function`` with reads of the keys of ``values`` replaced, and every type downstream found anew.

    Values keep their names; a node none of whose operands changed is kept as it is.

    Args:
        function: what to change.
        values: replacements, which may have other types (a weight in another storage type, a shorter cache).
        params: the new parameters; default the old ones, replaced where ``values`` says so.

    Raises:
        ShapeError: a node cannot take the new types.
    """
    found = dict(values)
    nodes: list[Node] = []
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        if operands == node.operands:
            nodes.append(node)
            continue
        types = find_op(node.op).infer_results(tuple(v.type if v else None for v in operands), node.attrs)
        results = tuple(v if v.type == t else replace(v, type=t) for v, t in zip(node.results, types, strict=True))
        found.update({a: b for a, b in zip(node.results, results, strict=True) if a is not b})
        nodes.append(replace(node, operands=operands, results=results))
    if params is None:
        params = tuple(Param(found.get(p.value, p.value), p.state) for p in function.params)
    returned = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, tuple(params), tuple(nodes), returned)


def retype_weights(module: Module, changes: Mapping[str, tuple[TensorType, Recipe]]) -> Module:
    """Return ``module`` with the named weights in another type, made by another recipe, in every function.

    Raises:
        InternalError: the module has no weight of that name.
        ShapeError: a node cannot take the new type.
    """
    weights = dict(module.weights)
    values: dict[Value, Value] = {}
    for name, (type, recipe) in changes.items():
        if name not in weights:
            raise InternalError(f"module @{module.name} has no weight @{name} to retype")
        value = Value(name, type, weight=True)
        values[weights[name].value] = value
        weights[name] = Weight(value, recipe)
    functions = {name: retype(f, values) for name, f in module.functions.items()}
    return replace(module, weights=weights, functions=functions)
