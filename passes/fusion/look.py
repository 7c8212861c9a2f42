"""What every fusion needs to know of a function: who makes a value, whether two values are equal, numbers.

A fusion is a matcher of its own, because exporters write one idea in many ways: it walks from a root node towards the
inputs and either finds the idea (a :class:`Plan`), finds something else (None), or finds nearly the idea and says
what was in the way (:class:`Declined`, which becomes a remark).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Recipe, Result, Uses, Value, Weight
from omnic.ir.op import Array
from omnic.ir.rewrite import Remark, eliminate_dead_code, rebuild_with, rename_values, replace_values
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights.recipes import INITIALISERS

__all__ = ["Declined", "Fusion", "Look", "NumbersOf", "Plan", "Site", "fuse", "merge_equal"]

# A fusion that keeps finding places is stopped here; each place is replaced once, so depth is the bound.
_MAX_SWEEPS = 64


class Declined(Exception):
    """Why something that looks like the idea is not fused, and the node at which the rule failed."""

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


class NumbersOf(Protocol):
    """Where the numbers of a weight come from (:class:`omnic.ir.weights.WeightStore`)."""

    def array(self, name: str) -> Array:
        """Return the decoded numbers of a whole weight."""
        ...


@dataclass
class Site:
    """The place where a replacement is built.

    Attributes:
        b: the builder; nodes made with it stand where the root was.
        current: what a value of the function has become by earlier replacements of the same sweep.
        weights: the weights of the module, to which a replacement may add derived ones.
    """

    b: FunctionBuilder
    current: Callable[[Value], Value]
    weights: dict[str, Weight]

    def recipe(self, weight: Value) -> Recipe:
        """Return the recipe of a weight for use inside another one: its leaves say whose numbers they are."""
        return _named(self.weights[weight.name].recipe, weight)

    def derived(self, name: str, type: TensorType, recipe: Recipe) -> Value:
        """Return the weight ``name`` made by ``recipe``; an equal one of that name is used again."""
        count, base = 0, name
        while name in self.weights:
            known = self.weights[name]
            if known.type == type and known.recipe == recipe:
                return known.value
            count += 1
            name = f"{base}.{count}"
        value = Value(name, type, weight=True)
        self.weights[name] = Weight(value, recipe)
        return value


def _named(recipe: Recipe, weight: Value) -> Recipe:
    """Return a recipe whose leaves carry the name (and, being the whole recipe, the shape) that they had by default."""
    if recipe.inputs:
        return replace(recipe, inputs=tuple(_named(r, weight) for r in recipe.inputs))
    if recipe.kind not in INITIALISERS:
        return recipe
    own = {"name": weight.name, "shape": weight.type.shape}
    return replace(recipe, args={**own, **recipe.args})


@dataclass(frozen=True)
class Plan:
    """A replacement that a matcher found.

    Attributes:
        replaces: the values whose meaning the replacement takes over, in the order of what ``build`` returns.
        build: makes the new values.
        note: what the remark adds to ``applied``.
    """

    replaces: tuple[Value, ...]
    build: Callable[[Site], tuple[Value, ...]]
    note: str = ""


@dataclass(frozen=True)
class Fusion:
    """One idea: its name in remarks, the ops its root may be, and the matcher."""

    name: str
    roots: frozenset[str]
    match: Callable[[Look, Node], Plan | None]


class Look:
    """One function under inspection.

    Args:
        module: whose dims and weights the function uses.
        function: the function.
        numbers: the weights' numbers, when they were lent.
        exact: whether a constant that was rounded to f32 is another number than what it was rounded from.
    """

    def __init__(self, module: Module, function: Function, numbers: NumbersOf | None = None,
                 exact: bool = False) -> None:
        self.module, self.function, self.numbers, self.exact = module, function, numbers, exact
        self.uses = Uses(function)
        self.place = {node: index for index, node in enumerate(function.nodes)}
        self.params = {p.value: p for p in function.params}
        self.cache: dict[object, object] = {}
        self._ids: dict[Value, int] = {}
        self._known: dict[object, int] = {}

    # -- nodes --------------------------------------------------------------------------------------
    def node(self, value: Value | None) -> Node | None:
        """Return the node that makes ``value``; None for a parameter, a weight or nothing."""
        return None if value is None else self.uses.producer.get(value)

    def is_op(self, value: Value | None, *ops: str) -> Node | None:
        """Return the node that makes ``value`` when its op is one of ``ops``."""
        node = self.node(value)
        return node if node is not None and node.op in ops else None

    def readers(self, value: Value) -> list[Node]:
        """Return the nodes that read ``value``."""
        return [node for node, _ in self.uses.users.get(value, [])]

    # -- equality -----------------------------------------------------------------------------------
    def number_of(self, value: Value) -> int:
        """Return a number that two values share exactly when they are made alike from the same inputs."""
        pending = [value]
        while pending:
            top = pending[-1]
            if top in self._ids:
                pending.pop()
                continue
            node = self.uses.producer.get(top)
            if node is None:
                self._ids[top] = self._known.setdefault(("value", id(top)), len(self._known))
                continue
            missing = [v for v in node.inputs() if v not in self._ids]
            if missing:
                pending.extend(missing)
                continue
            operands = tuple(None if v is None else self._ids[v] for v in node.operands)
            attrs = tuple(sorted((k, repr(v)) for k, v in node.attrs.items()))
            for index, result in enumerate(node.results):
                key = (node.op, operands, attrs, index)
                self._ids[result] = self._known.setdefault(key, len(self._known))
        return self._ids[value]

    def same(self, a: Value, b: Value) -> bool:
        """Whether two values are made alike."""
        return a is b or self.number_of(a) == self.number_of(b)

    # -- looking through ----------------------------------------------------------------------------
    def weight(self, value: Value) -> Value | None:
        """Return the weight that ``value`` is, decoded or widened at most (composites do both themselves)."""
        while not value.weight:
            node = self.is_op(value, "cast", "dequantise")
            if node is None or node.operands[0] is None or not _widens(node.operands[0].type, value.type):
                return None
            value = node.operands[0]
        return value

    def vector(self, value: Value, size: object) -> Value | None:
        """Return the value of shape ``[size]`` that ``value`` is, unit dims in front and casts that widen left out."""
        while value.type.shape != (size,):
            node = self.is_op(value, "reshape", "cast", "dequantise", "broadcast")
            if node is None or node.operands[0] is None or node.operands[0].type.size != size:
                break
            value = node.operands[0]
        plain = value
        while (node := self.is_op(plain, "cast", "dequantise")) is not None:
            inner = node.operands[0]
            if inner is None or not _widens(inner.type, plain.type):
                break
            plain = inner
        if plain.type.shape == (size,):
            return plain
        return value if value.type.size == size and value.type.shape[-1:] == (size,) else None


def _widens(inner: TensorType, outer: TensorType) -> bool:
    """Whether a cast from ``inner`` to ``outer`` loses nothing that a composite would keep."""
    if isinstance(inner.element, Storage):
        return True
    return inner.element == outer.element or (inner.is_float and outer.element == DType.F32)


# -- applying ---------------------------------------------------------------------------------------------


@dataclass
class _Sweep:
    """What one pass over a function did."""

    function: Function
    done: list[Remark] = field(default_factory=list[Remark])
    declined: list[Remark] = field(default_factory=list[Remark])


def fuse(
    module: Module, function: Function, fusions: Iterable[Fusion], numbers: NumbersOf | None = None,
    exact: bool = False,
) -> tuple[Module, tuple[Remark, ...]]:
    """Apply ``fusions`` in order, each until it finds no more places.

    Returns:
        The module with the new function (and derived weights), and the remarks: one for each replacement and one for
        each near-miss that is still there at the end of its fusion.
    """
    remarks: list[Remark] = []
    for fusion in fusions:
        declined: list[Remark] = []
        for _ in range(_MAX_SWEEPS):
            weights = dict(module.weights)
            sweep = _sweep(Look(module, function, numbers, exact), fusion, weights)
            declined = sweep.declined
            if sweep.function is function:
                break
            function = sweep.function
            module = replace(module, weights=weights).with_function(function)
            remarks.extend(sweep.done)
        remarks.extend(declined)
    return module, tuple(remarks)


def _sweep(look: Look, fusion: Fusion, weights: dict[str, Weight]) -> _Sweep:
    """Replace every place that ``fusion`` finds, no value twice."""
    function = look.function
    result = _Sweep(function)
    plans: dict[Node, Plan] = {}
    taken: set[Value] = set()
    for node in function.nodes:
        if node.op not in fusion.roots:
            continue
        try:
            plan = fusion.match(look, node)
        except Declined as declined:
            at = declined.node or node
            result.declined.append(Remark(fusion.name, declined.reason, at.name))
            continue
        if plan is not None and taken.isdisjoint(plan.replaces):
            taken.update(plan.replaces)
            plans[node] = plan
    if plans:
        result.function = _build(look, fusion, plans, weights, result.done)
    return result


def _build(look: Look, fusion: Fusion, plans: Mapping[Node, Plan], weights: dict[str, Weight],
           done: list[Remark]) -> Function:
    function = look.function
    b = FunctionBuilder(function.name, taken={v.name for v in function.values()},
                        node_names={n.name for n in function.nodes})
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    old = set(function.values())

    def current(value: Value) -> Value:
        while value in found:
            value = found[value]
        return value

    for node in function.nodes:
        mapped = rebuild_with(node, tuple(None if v is None else current(v) for v in node.operands))
        b.nodes.append(mapped)
        plan = plans.get(node)
        if plan is None:
            continue
        start = len(b.nodes)
        with b.at(node):
            made = plan.build(Site(b, current, weights))
        if plan.replaces == node.results and len(b.nodes) == start + 1 and b.nodes[start].op == node.op:
            # One op for the same op: the place in the model is the same, so is its name.
            b.nodes[start] = replace(b.nodes[start], name=node.name)
        for before, after in zip(plan.replaces, made, strict=True):
            found[before] = after
            if after not in old and not after.weight:
                names[after] = before.name
        done.append(Remark(fusion.name, f"applied{': ' + plan.note if plan.note else ''}", node.name))
    whole = Function(function.name, function.params, tuple(b.nodes), function.results)
    return rename_values(eliminate_dead_code(_in_order(replace_values(whole, found))), names)


def _in_order(function: Function) -> Function:
    """Return ``function`` with each node after what it reads (a replacement may stand after an early reader)."""
    producer = {result: node for node in function.nodes for result in node.results}
    placed: set[Node] = set()
    nodes: list[Node] = []
    for node in function.nodes:
        pending = [node]
        while pending:
            top = pending[-1]
            if top in placed:
                pending.pop()
                continue
            before = [producer[v] for v in top.inputs() if v in producer and producer[v] not in placed]
            if before:
                pending.extend(before)
                continue
            placed.add(top)
            nodes.append(top)
            pending.pop()
    return replace(function, nodes=tuple(nodes))


def merge_equal(function: Function) -> Function:
    """Return ``function`` with values that are made alike made once (the ops are pure)."""
    look = Look(Module("m", {}, {}, {}, {}), function)
    first: dict[int, Value] = {}
    merged: dict[Value, Value] = {}
    for node in function.nodes:
        for result in node.results:
            known = first.setdefault(look.number_of(result), result)
            if known is not result:
                merged[result] = known
    if not merged:
        return function
    results = tuple(Result(r.name, merged.get(r.value, r.value), r.state) for r in function.results)
    return eliminate_dead_code(replace(replace_values(function, merged), results=results))
