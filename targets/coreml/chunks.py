"""Cutting a model into several packages at the borders of its blocks.

A *unit* is a block, the embedding, or what lies behind the blocks; it is never cut.  Units that read the same weights
(a tied embedding and its head) lie in one package as long as they fit.  A function whose units lie in several
packages becomes *stages*, one after the other; what is cheap to make from a call's whole numbers is made in each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from omnic.ir.graph import Function, Module, Node, Param, Result, Value
from omnic.ir.types import DType
from omnic.targets.cut import state_values

__all__ = ["Stage", "pack", "plan", "stages_of", "unit_of"]

#: share of the limit that is left for the program and its tables of cosines
MARGIN = 1 / 64


@dataclass(frozen=True)
class Stage:
    """A run of a function that lies in one package.

    Attributes:
        package: which, counted from 0.
        name: of the function in that package.
        function: its nodes; what earlier stages hand over are parameters without a state.
        takes: values that earlier stages make.
        gives: values that later stages need.
    """

    package: int
    name: str
    function: Function
    takes: tuple[Value, ...] = ()
    gives: tuple[Value, ...] = ()


def unit_of(node: Node) -> str:
    """Return the unit of a node: ``blocks.3``, or the first step of its scope."""
    steps = node.scope.split(".")
    return ".".join(steps[:2]) if steps[0] == "blocks" else steps[0]


def plan(module: Module, limit: int | None, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return unit -> package, counted from 0; the fewest packages, as even as they can be.

    Args:
        module: what is compiled.
        limit: most bytes of a package; None for one package.
        sizes: weight -> bytes in a package.
    """
    units = _units(module)
    if limit is None or sum(sizes[n] for n in set().union(*units.values())) <= limit * (1 - MARGIN):
        return dict.fromkeys(units, 0)
    groups = _tied(_joined(module, list(units)), units, sizes, int(limit * (1 - MARGIN)))
    weights = [set[str]().union(*(units[u] for u in group)) for group in groups]
    places = pack(weights, sizes, int(limit * (1 - MARGIN)))
    return {unit: place for group, place in zip(groups, places, strict=True) for unit in group}


def _units(module: Module) -> dict[str, set[str]]:
    """Return unit -> names of its weights, in the order in which they run."""
    found: dict[str, set[str]] = {}
    for function in module.functions.values():
        cheap = _cheap(function)
        for node in function.nodes:
            if node not in cheap:
                found.setdefault(unit_of(node), set()).update(v.name for v in node.inputs() if v.weight)
    return found


def _cheap(function: Function) -> set[Node]:
    """Return nodes that every stage makes again: whole numbers from the call's own, and constants."""
    known = {p.value for p in function.params if p.state is None and not p.value.type.is_float}
    found: set[Node] = set()
    for node in function.nodes:
        whole = not any(v.type.is_float for v in node.results)
        if node.op == "constant" or (whole and all(v in known for v in node.inputs())):
            found.add(node)
            known.update(node.results)
    return found


def _joined(module: Module, units: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the units with those as one between which no border can be: a cache or truth values would cross it."""
    at = {unit: i for i, unit in enumerate(units)}
    first = list(range(len(units)))
    for function in module.functions.values():
        cheap, held = _cheap(function), state_values(function)
        makers = {v: n for n in function.nodes if n not in cheap for v in n.results}
        readers: dict[str, int] = {}
        for node in (n for n in function.nodes if n not in cheap):
            here = at[unit_of(node)]
            for value in node.inputs():
                there, maker = here, makers.get(value)
                if value in held:
                    there = readers.setdefault(held[value], here)
                elif maker is not None and (maker.op == "cache_read" or value.type.element == DType.BOOL):
                    there = at[unit_of(maker)]
                low, high = sorted((here, there))
                for i in range(low, high + 1):
                    first[i] = min(first[i], low)
    groups: dict[int, list[str]] = {}
    for i, unit in enumerate(units):
        root = i
        while first[root] != root:
            root = first[root]
        groups.setdefault(root, []).append(unit)
    return [tuple(g) for g in groups.values()]


def _tied(
    groups: list[tuple[str, ...]], units: Mapping[str, set[str]], sizes: Mapping[str, int], limit: int
) -> list[tuple[str, ...]]:
    """Put groups that read the same weights together, at the place of the first, where a package holds them."""
    found: list[tuple[str, ...]] = []
    for group in groups:
        ours = set[str]().union(*(units[u] for u in group))
        for i, other in enumerate(found):
            theirs = set[str]().union(*(units[u] for u in other))
            if ours & theirs and sum(sizes[n] for n in ours | theirs) <= limit:
                found[i] = (*other, *group)
                break
        else:
            found.append(group)
    return found


def pack(groups: Sequence[Collection[str]], sizes: Mapping[str, int], limit: int) -> list[int]:
    """Return the package of each group of weights: the fewest in order, the largest as small as it can be.

    A group that is larger than ``limit`` has a package of its own.
    """
    found = _filled(groups, sizes, limit)
    low, high = max((sum(sizes[n] for n in group) for group in groups), default=0), limit
    while high - low > max(limit >> 10, 1):
        middle = (low + high) // 2
        tried = _filled(groups, sizes, middle)
        if tried[-1] <= found[-1]:
            found, high = tried, middle
        else:
            low = middle
    return found


def _filled(groups: Sequence[Collection[str]], sizes: Mapping[str, int], limit: int) -> list[int]:
    found: list[int] = []
    held: set[str] = set()
    for group in groups:
        if held and sum(sizes[n] for n in held.union(group)) > limit:
            held = set()
            found.append(found[-1] + 1)
        else:
            found.append(found[-1] if found else 0)
        held.update(group)
    return found


def stages_of(function: Function, places: Mapping[str, int]) -> tuple[Stage, ...]:
    """Return the stages of a function in the order in which they run.

    Args:
        function: for one row and its lengths.
        places: unit -> package, as :func:`plan` gives it.
    """
    cheap = _cheap(function)
    runs: list[tuple[int, list[Node]]] = []
    for node in (n for n in function.nodes if n not in cheap):
        place = places[unit_of(node)]
        if runs and runs[-1][0] == place:
            runs[-1][1].append(node)
        else:
            runs.append((place, [node]))
    if len(runs) <= 1:
        return (Stage(runs[0][0] if runs else 0, function.name, function),)
    home = {v: i for i, (_, nodes) in enumerate(runs) for n in nodes for v in n.results}
    results = [[r for r in function.results if home.get(r.value, len(runs) - 1) == i] for i in range(len(runs))]
    needs = [_needed(nodes, results[i], cheap, function) for i, (_, nodes) in enumerate(runs)]
    found: list[Stage] = []
    met: dict[int, int] = {}
    for i, (place, nodes) in enumerate(runs):
        met[place] = met.get(place, 0) + 1
        takes = tuple(v for v in home if home[v] < i and v in needs[i])
        gives = tuple(v for n in nodes for v in n.results if any(v in later for later in needs[i + 1 :]))
        made = {*nodes, *(n for n in cheap if any(v in needs[i] for v in n.results))}
        params = (*(Param(v, None) for v in takes), *(p for p in function.params if p.value in needs[i]))
        name = function.name if met[place] == 1 else f"{function.name}_{met[place]}"
        inner = replace(function, name=name, params=params, results=tuple(results[i]),
                        nodes=tuple(n for n in function.nodes if n in made))
        found.append(Stage(place, name, inner, takes, gives))
    return tuple(found)


def _needed(
    nodes: Sequence[Node], results: Iterable[Result], cheap: Collection[Node], function: Function
) -> set[Value]:
    """Return the values that a run reads, those of the cheap nodes that it repeats among them."""
    makers = {v: n for n in function.nodes if n in cheap for v in n.results}
    stack = [v for n in nodes for v in n.inputs() if not v.weight] + [r.value for r in results]
    found: set[Value] = set()
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found.add(value)
        if value in makers:
            stack += makers[value].inputs()
    return found
