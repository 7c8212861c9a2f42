"""Split a function at its host calls, for targets whose programs cannot call back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node, Param, Result, Uses, Value
from omnic.ir.reference import Interpreter, empty_states
from omnic.ir.rewrite import Remark
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass

__all__ = ["Fetch", "SplitAtHost", "run_segments", "segment_names", "split_function"]

# Takes the fetch node and the item numbers, returns the slots.
Fetch = Callable[[Node, Any], Any]


def segment_names(module: Module, function: str) -> tuple[str, ...]:
    """Return the names of the segments of ``function`` in order; just its own when it was not split."""
    names = [n for n in module.functions if n.startswith(f"{function}.segment")]
    return tuple(sorted(names, key=lambda n: int(n.rpartition("segment")[2]))) or (function,)


def split_function(function: Function) -> tuple[Function, ...]:
    """Return the segments of ``function``: what lies before, between and after its ``host.fetch`` nodes.

    A segment takes, as parameters of the same names, the values that it reads and does not make; it returns
    the values it makes that a later segment reads, under their names, and the results of ``function`` that it
    makes, under theirs.  The item numbers of the fetch that ends a segment are its result ``fetch.ids`` and the
    slots are the parameter of the next segment called like the fetch's result.
    """
    uses = Uses(function)
    parts: list[list[Node]] = [[]]
    fetches: list[Node] = []
    for node in function.nodes:
        if node.op == "host.fetch":
            fetches.append(node)
            parts.append([])
        else:
            parts[-1].append(node)
    if not fetches:
        return (function,)
    home = {v: index for index, part in enumerate(parts) for n in part for v in n.results}
    segments: list[Function] = []
    for index, part in enumerate(parts):
        fetch = fetches[index] if index < len(fetches) else None
        last = index == len(parts) - 1
        segments.append(_segment(function, index, part, fetch, home, uses, last))
    return tuple(segments)


def _segment(
    function: Function, index: int, part: list[Node], fetch: Node | None, home: dict[Value, int], uses: Uses, last: bool
) -> Function:
    results = _own_results(function, index, home, last)
    live = _live_out(part, index, home, uses)
    named = {r.name: r.value for r in results}
    outputs = list(results)
    for value in live:
        if named.get(value.name) is not value:
            # A result of the function may have the name of another value.
            outputs.append(Result(f"live.{value.name}" if value.name in named else value.name, value))
    if fetch is not None:
        assert fetch.operands[0] is not None
        outputs.append(Result("fetch.ids", fetch.operands[0]))
    made = {v for n in part for v in n.results}
    read: dict[Value, None] = {}
    for value in [*(v for n in part for v in n.inputs()), *(r.value for r in outputs)]:
        if value not in made and not value.weight:
            read.setdefault(value)
    returned = {r.state for r in outputs if r.state}
    states = {p.value: p.state for p in function.params}
    params = tuple(Param(v, states[v] if states.get(v) in returned else None) for v in read)
    return Function(f"{function.name}.segment{index}", params, tuple(part), tuple(outputs))


def _own_results(function: Function, index: int, home: dict[Value, int], last: bool) -> list[Result]:
    """Return the results of ``function`` that segment ``index`` makes (the last one also returns what none makes)."""
    return [r for r in function.results if home.get(r.value, -1) == index or (last and r.value not in home)]


def _live_out(part: list[Node], index: int, home: dict[Value, int], uses: Uses) -> list[Value]:
    """Return the values of ``part`` that later segments read, in order of definition."""
    later: list[Value] = []
    for node in part:
        for value in node.results:
            readers = [user for user, _ in uses.users.get(value, [])]
            if any(_home_of(r, home) > index for r in readers):
                later.append(value)
    return later


def _home_of(node: Node, home: dict[Value, int]) -> int:
    """Return the segment of ``node``; -1 for a fetch, whose operand leaves its segment as ``fetch.ids``."""
    return home.get(node.results[0], -1)


def run_segments(
    module: Module, weights: Any, inputs: Mapping[str, Any], fetch: Fetch, function: str = "forward",
    states: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the segments of ``function`` in the reference, calling ``fetch`` between them.

    Args:
        module: a module that :class:`SplitAtHost` made, ``function`` included.
        weights: as for :class:`omnic.ir.reference.Interpreter`.
        inputs: the parameters of ``function`` by name.
        fetch: takes a ``host.fetch`` node and its item numbers, returns the slots.
        function: the name of the function that was split.
        states: by name; empty ones when None.

    Returns:
        The results of ``function`` by name, states by state name.

    Raises:
        InputError: the function has no segments.
    """
    whole = module.function(function)
    nodes = [n for n in whole.nodes if n.op == "host.fetch"]
    names = segment_names(module, function)
    if len(names) != len(nodes) + 1:
        raise InputError(f"@{function} is not split at its {len(nodes)} host calls", "run split-at-host first")
    interpreter = Interpreter(module, weights)
    batch = next(iter(inputs.values())).shape[0]
    held = dict(empty_states(module, batch, function=function) if states is None else states)
    live: dict[str, Any] = dict(inputs)
    state_values = {p.value.name: p.state for p in whole.params if p.state}
    found: dict[str, Any] = {}
    for index, name in enumerate(names):
        segment = module.function(name)
        given: dict[str, Any] = {}
        for param in segment.params:
            key = param.value.name
            if param.state is None:
                given[key] = held[state_values[key]] if key in state_values else live[key]
        taken = {p.state: held[p.state] for p in segment.params if p.state}
        out = interpreter.run(given, name, taken)
        for result in segment.results:
            if result.state:
                found[result.state] = out[result.state]
            else:
                live[result.value.name] = out[result.name]
        if index < len(nodes):
            live[nodes[index].result.name] = fetch(nodes[index], out["fetch.ids"])
    for result in whole.results:
        if result.state is None:
            found[result.name] = live[result.value.name]
    return found


@register_pass
@dataclass(frozen=True)
class SplitAtHost:
    """Outline a function into segments that end where it calls the host.

    1. Each ``host.fetch`` ends a segment; its item numbers are the result ``fetch.ids``.
    2. The slots it answers are a parameter of the next segment, called like the node's result.
    3. A value that a later segment reads is a result of the segment that makes it and a parameter of those that
       read it, under its own name.
    4. A state that a segment updates goes in and comes out of that segment.
    5. The function itself stays: it is what the segments together mean.

    Given::

        func @forward(%x: f32[B, T, 8], %ids: i64[B, T]) -> (%y: f32[B, T, 8]) {
          %h = relu(%x) : f32[B, T, 8]
          %slots = host.fetch(%ids) {kind = "expert", layer = 0} : i64[B, T]
          %rows = index_select(@experts, %slots) : f32[B, T, 8]
          %y = add(%h, %rows) : f32[B, T, 8]

    Result::

        func @forward.segment0(%x: f32[B, T, 8], %ids: i64[B, T]) -> (%h: f32[B, T, 8], %fetch.ids: i64[B, T])
        func @forward.segment1(%slots: i64[B, T], %h: f32[B, T, 8]) -> (%y: f32[B, T, 8])

    Attributes:
        function: what to split.
    """

    name: ClassVar[str] = "split-at-host"
    stage: ClassVar[Stage] = "legalise"
    function: str = "forward"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with the segments beside the function."""
        segments = split_function(module.function(self.function))
        if len(segments) == 1:
            return PassResult(module, False, (Remark(self.name, f"@{self.function} never calls the host"),))
        stale = [n for n in module.functions if n.startswith(f"{self.function}.segment")]
        module = replace(module, functions={k: f for k, f in module.functions.items() if k not in stale})
        for segment in segments:
            module = module.with_function(segment)
        return PassResult(module, True, (Remark(self.name, f"@{self.function} became {len(segments)} segments"),))
