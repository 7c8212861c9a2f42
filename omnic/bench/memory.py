"""What a model should hold in memory, from its IR, beside what its process did hold."""

from __future__ import annotations

from dataclasses import dataclass

from omnic.bench.measure import Plan
from omnic.bench.traffic import Traffic
from omnic.ir.dims import evaluate
from omnic.ir.graph import Function, Module
from omnic.ir.types import TensorType

__all__ = ["Estimate", "estimate"]

#: ops that give another look at what is there, and those whose results lie in the states
VIEWS = ("reshape", "transpose", "slice", "split", "broadcast")
STATES = ("cache_read", "cache_write", "cache_move")


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part.

    Attributes:
        weights: as stored.
        states: the slots that are filled in the end.
        values: most bytes of values between nodes that are needed at one time in the longest call.
        tokens: that a row holds in the end.
        engine: of a process of the same engine with next to no model.
    """

    weights: int
    states: int
    values: int
    tokens: int
    engine: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.states + self.values + self.engine


def estimate(module: Module, plan: Plan, engine: int) -> Estimate:
    """Return what a process with one row of a plan needs; ``engine`` is what it holds without a model."""
    traffic = Traffic.of(module)
    decoded = plan.warmup + plan.rounds * plan.new
    tokens = max((*plan.prompts, *(n + decoded for n in plan.contexts)))
    longest = min(module.dims["T"].high, max((*plan.prompts, *plan.contexts)))
    between = values(module.function(), longest)
    return Estimate(traffic.summary.weight_bytes, traffic.held(tokens), between, tokens, engine)


def values(function: Function, tokens: int) -> int:
    """Return the most bytes of values that are alive at once in a call of one row of ``tokens`` tokens.

    A value is alive from its node to the last that reads it, a view as long as what it shows.  States are not values.
    """
    sizes = {"B": 1, "T": tokens, "R": 1}
    held = {v.name for node in function.nodes if node.op in STATES for v in node.results}
    held |= {r.value.name for r in function.results if r.state}
    source: dict[str, str] = {}
    last: dict[str, int] = {}
    for at, node in enumerate(function.nodes):
        shown = node.operands[0] if node.op in VIEWS else None
        for value in node.results:
            source[value.name] = source.get(shown.name, shown.name) if shown is not None else value.name
        for value in (v for v in node.operands if v is not None):
            last[source.get(value.name, value.name)] = at
    for result in function.results:
        last[source.get(result.value.name, result.value.name)] = len(function.nodes)
    now = most = 0
    ends: dict[int, int] = {}
    for at, node in enumerate(function.nodes):
        for value in node.results:
            if source[value.name] != value.name or value.name in held:
                continue
            size = _bytes(value.type, sizes)
            now += size
            ends[last.get(value.name, at)] = ends.get(last.get(value.name, at), 0) + size
        most = max(most, now)
        now -= ends.pop(at, 0)
    return most


def _bytes(type: TensorType, sizes: dict[str, int]) -> int:
    return TensorType(type.element, tuple(evaluate(d, sizes) for d in type.shape)).bytes()
