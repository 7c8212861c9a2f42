"""Scopes become modules: which paths are modules, who owns which weight, and what each body calls."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omnic.ir.graph import Value, Weight
from omnic.targets.torch.text.steps import Program, Step, outer_values

__all__ = ["Body", "Call", "Scope", "ScopeTree"]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of the module at ``path`` from the body of one of its parents."""

    path: str
    steps: tuple[Step, ...]
    operands: tuple[Value, ...]
    results: tuple[Value, ...]

    def inputs(self) -> list[Value]:
        """Return what it reads."""
        return list(self.operands)


Entry = Step | Call


@dataclass
class Body:
    """What one method of a module does: ``params`` in, ``entries``, ``results`` out.

    The root's results have ``names``; they are returned in a dict unless ``tuple``.
    """

    params: list[Value]
    entries: list[Entry]
    results: list[Value]
    names: list[str] = field(default_factory=list[str])
    tuple: bool = True


@dataclass
class Scope:
    """A path of the model that is (or holds) modules.

    Attributes:
        path: its name in the state dict.
        kind: ``module`` has a forward, ``list`` holds numbered modules, ``parameters`` only weights,
            ``numbered`` numbered weights.
        weights: attribute -> weight owned here.
        children: segment -> scope below.
        bodies: function -> what it does there.
    """

    path: str
    kind: str = "module"
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])
    children: dict[str, Scope] = field(default_factory=dict[str, "Scope"])
    bodies: dict[str, Body] = field(default_factory=dict[str, Body])


class ScopeTree:
    """The modules of a program and who they call.

    A scope path is a module when weights lie below it; other scopes are lines in the body of the nearest
    module above.  A module that could only be called with a cycle (its steps straddle others that
    depend on it) is written inline too.
    """

    def __init__(self, programs: Sequence[Program], weights: Mapping[str, Weight]) -> None:
        self.root = Scope("")
        self._routers = {v for program in programs for v in program.routers}
        self._modules = _module_paths(programs, weights)
        for path in self._modules:
            self._scope(path)
        for weight in weights.values():
            self._own(weight)
        for program in programs:
            self.root.bodies[program.name] = Body(
                list(program.params),
                self._entries("", program.steps, program.returned()),
                list(program.results.values()),
                list(program.results),
                program.name != "forward",
            )
            self._fill(self.root, program.name, program.returned(), program.steps)

    def _scope(self, path: str) -> Scope:
        """Return the scope of ``path``, made with the ones above it."""
        scope = self.root
        walked = ""
        for segment in path.split("."):
            walked = f"{walked}.{segment}" if walked else segment
            if segment not in scope.children:
                scope.children[segment] = Scope(walked, "module" if walked in self._modules else "parameters")
                if segment.isdigit() and scope.kind == "parameters":
                    scope.kind = "list"
            scope = scope.children[segment]
        return scope

    def _own(self, weight: Weight) -> None:
        *above, last = weight.name.split(".")
        scope = self._scope(".".join(above)) if above else self.root
        scope.weights[last] = weight
        if last.isdigit() and scope.kind == "parameters":
            scope.kind = "numbered"

    def _child(self, path: str, step: Step) -> str | None:
        """Return the module directly below ``path`` that ``step`` belongs to, or None."""
        if step.scope == path or (path and not step.scope.startswith(path + ".")):
            return None
        segments = step.scope.split(".")
        for count in range(path.count(".") + 2 if path else 1, len(segments) + 1):
            candidate = ".".join(segments[:count])
            if candidate in self._modules:
                return candidate
        return None

    def _entries(
        self, path: str, steps: Sequence[Step], returned: set[Value], inline: frozenset[str] = frozenset()
    ) -> list[Entry]:
        """Return steps and calls of the body of ``path`` in an order of definition."""
        groups: dict[str | Step, list[Step]] = {}
        for step in steps:
            child = self._child(path, step)
            groups.setdefault(child if child is not None and child not in inline else step, []).append(step)
        order = _topological(list(groups.values()))
        if order is None:
            # The scope with the most separate runs is the one that straddles others.
            named = [k for k in groups if isinstance(k, str)]
            return self._entries(path, steps, returned, inline | {max(named, key=lambda k: _runs(groups[k], steps))})
        made: list[Entry] = []
        keys = list(groups)
        for index in order:
            key, members = keys[index], groups[keys[index]]
            if isinstance(key, Step):
                made.append(key)
                continue
            read, own = outer_values(members)
            outside = returned | {v for s in steps if s not in set(members) for v in s.inputs()}
            passed = sorted((v for v in read if not self.owns(key, v)), key=lambda v: v.weight)
            results = [v for s in members for v in s.results if v in outside and v in own]
            made.append(
                Call(key, tuple(members), tuple(passed), tuple(sorted(results, key=lambda v: v in self._routers)))
            )
        return made

    def owns(self, path: str, value: Value) -> bool:
        """Whether ``value`` is a weight at or below ``path``."""
        return value.weight and (not path or value.name.startswith(path + "."))

    def _fill(self, scope: Scope, function: str, returned: set[Value], steps: Sequence[Step]) -> None:
        """Give every module called from ``scope`` its body."""
        for entry in scope.bodies[function].entries:
            if not isinstance(entry, Call):
                continue
            child = self._scope(entry.path)
            inner = set(entry.results)
            child.bodies[function] = Body(
                list(entry.operands), self._entries(entry.path, entry.steps, inner), list(entry.results)
            )
            self._fill(child, function, inner, entry.steps)


def _module_paths(programs: Sequence[Program], weights: Mapping[str, Weight]) -> dict[str, None]:
    """Return the scope paths that have weights below them and are not only lists of such paths, as they first occur."""
    prefixes = {".".join(name.split(".")[:n]) for name in weights for n in range(1, name.count(".") + 1)}
    found: dict[str, None] = {}
    for program in programs:
        for step in program.steps:
            segments = step.scope.split(".") if step.scope else []
            for n in range(1, len(segments) + 1):
                path = ".".join(segments[:n])
                if path in prefixes and path not in weights:
                    found.setdefault(path)
    direct = {step.scope for program in programs for step in program.steps}
    below: dict[str, set[str]] = {}
    for path in prefixes | set(weights):
        if "." in path:
            above, last = path.rsplit(".", 1)
            below.setdefault(above, set()).add(last)
    return {p: None for p in found if p in direct or not all(s.isdigit() for s in below.get(p, {"x"}))}


def _topological(groups: list[list[Step]]) -> list[int] | None:
    """Return an order of ``groups`` in which each follows what it reads, the earliest first; None for a cycle."""
    home = {v: index for index, members in enumerate(groups) for step in members for v in step.results}
    needs: list[set[int]] = [
        {home[v] for step in members for v in step.inputs() if v in home and home[v] != index}
        for index, members in enumerate(groups)
    ]
    feeds: list[list[int]] = [[] for _ in groups]
    for index, before in enumerate(needs):
        for b in before:
            feeds[b].append(index)
    waiting = [len(n) for n in needs]
    ready = [i for i, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for after in feeds[index]:
            waiting[after] -= 1
            if waiting[after] == 0:
                heapq.heappush(ready, after)
    return order if len(order) == len(groups) else None


def _runs(members: Sequence[Step], steps: Sequence[Step]) -> int:
    """Return how many separate runs ``members`` form within ``steps``."""
    inside = set(members)
    flags = [s in inside for s in steps]
    return sum(1 for before, here in zip([False, *flags], flags, strict=False) if here and not before)
