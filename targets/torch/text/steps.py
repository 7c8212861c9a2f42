"""What a function is while it becomes Python: steps, and a few rewrites that only the text needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnic.errors import InternalError
from omnic.ir.graph import Function, Loc, Value
from omnic.ir.op import find_op
from omnic.ir.types import DType, TensorType

__all__ = ["ROUTER_LISTS", "Program", "Step", "dead_code", "hoist_rope_tables", "name_causal_attention", "program_of"]


ROUTER_LISTS = ("router_indices", "router_gates", "router_logits")
"""The lists that the results of routers go to, in the order of the op's results."""


@dataclass(frozen=True, eq=False)
class Step:
    """One line-to-be: a node of the IR with its defaults filled in, or an op of the text's own.

    Attributes:
        op: key of the lowering tables.
        operands: values read, None where absent.
        attrs: every attribute.
        results: values made.
        scope: path of the part of the model it belongs to.
        loc: line of the spec.
    """

    op: str
    operands: tuple[Value | None, ...]
    attrs: dict[str, Any]
    results: tuple[Value, ...]
    scope: str
    loc: Loc | None = None

    def inputs(self) -> list[Value]:
        """Return the operands that are present."""
        return [v for v in self.operands if v is not None]


@dataclass
class Program:
    """One function as steps.

    Attributes:
        name: of the function.
        params: its parameters in order.
        steps: in an order of definition.
        results: name -> value.
        routers: results of routers that leave the function -> the list they go to (``router_logits``, ...).
    """

    name: str
    params: list[Value]
    steps: list[Step]
    results: dict[str, Value]
    routers: dict[Value, str] = field(default_factory=dict[Value, str])

    def returned(self) -> set[Value]:
        """Return every value that leaves the function."""
        return {*self.results.values(), *self.routers}

    def producers(self) -> dict[Value, Step]:
        """Return the step that makes each value."""
        return {v: step for step in self.steps for v in step.results}


def program_of(function: Function) -> Program:
    """Return ``function`` as steps, attributes complete."""
    steps = [
        Step(n.op, n.operands, {k: v for k, v in find_op(n.op).bind(n.attrs).items()}, n.results, n.scope, n.loc)
        for n in function.nodes
    ]
    return Program(
        function.name, [p.value for p in function.params], steps, {r.name: r.value for r in function.results}
    )


def dead_code(program: Program) -> None:
    """Drop the steps whose results nobody reads."""
    live = program.returned()
    kept: list[Step] = []
    for step in reversed(program.steps):
        if any(v in live for v in step.results):
            live.update(step.inputs())
            kept.append(step)
    program.steps = kept[::-1]


def is_token_range(value: Value, producers: dict[Value, Step]) -> bool:
    """Whether ``value`` [B, T] is 0..T-1 in every row."""
    step = producers.get(value)
    if step is None:
        return False
    if step.op == "iota":
        return True
    if step.op in ("broadcast", "reshape", "cast") and step.operands[0] is not None:
        inner = step.operands[0]
        keeps_last = step.op != "reshape" or (bool(inner.type.shape) and inner.type.shape[-1] == value.type.shape[-1])
        return keeps_last and is_token_range(inner, producers)
    if step.op == "add":
        return any(
            is_token_range(a, producers) and is_zero(b, producers)
            for a, b in (step.operands, step.operands[::-1])
            if a is not None and b is not None
        )
    return False


def is_zero(value: Value, producers: dict[Value, Step]) -> bool:
    """Whether ``value`` is a constant 0 (broadcast or reshaped)."""
    step = producers.get(value)
    if step is None:
        return False
    if step.op == "constant":
        return not any(step.attrs["values"])
    inner = step.operands[0] if step.op in ("broadcast", "reshape", "cast") else None
    return inner is not None and is_zero(inner, producers)


def hoist_rope_tables(program: Program) -> None:
    """Make the cosines and sines of each distinct rope once, at the root, and read them in every layer.

    Positions that are 0..T-1 in every row give tables [T, dims/2], others [B, T, dims/2].
    """
    producers = program.producers()
    tables: dict[tuple[Any, ...], tuple[Value, Value]] = {}
    steps: list[Step] = []
    for step in program.steps:
        if step.op != "rope":
            steps.append(step)
            continue
        x, positions = step.operands
        if x is None or positions is None:
            raise InternalError("rope without its operands")
        common = is_token_range(positions, producers)
        settings = {k: v for k, v in step.attrs.items() if k != "interleaved"}
        key = ("range" if common else positions, *settings.items())
        if key not in tables:
            tokens = positions.type.shape[1:] if common else positions.type.shape
            kind = TensorType(DType.F32, (*tokens, step.attrs["dims"] // 2))
            tables[key] = Value("cos", kind), Value("sin", kind)
            steps.append(Step("rope_table", (None if common else positions,), settings, tables[key], "", step.loc))
        steps.append(Step("rotate", (x, *tables[key]), step.attrs, step.results, step.scope, step.loc))
    program.steps = steps


def name_causal_attention(program: Program) -> None:
    """Name attention of a sequence over itself ``causal_attention`` or ``causal_mla``, ops that need no index.

    Queries and keys share one index there, so key s is visible to query t iff s <= t (and within the window).
    """
    producers = program.producers()
    for at, step in enumerate(program.steps):
        if step.op == "attention":
            q, k, v, q_index, k_index, sinks, parents, _ = step.operands
            kept = (q, k, v, sinks)
        elif step.op == "mla":
            *kept, q_index, k_index, parents, _ = step.operands[:10]
        else:
            continue
        same = q_index is k_index or all(i is not None and is_token_range(i, producers) for i in (q_index, k_index))
        if parents is None and same:
            program.steps[at] = Step(f"causal_{step.op}", tuple(kept), step.attrs, step.results, step.scope, step.loc)


def users(steps: Iterable[Step]) -> dict[Value, list[Step]]:
    """Return the steps that read each value."""
    found: dict[Value, list[Step]] = {}
    for step in steps:
        for value in step.inputs():
            found.setdefault(value, []).append(step)
    return found


def bring_out_routers(program: Program, choices: bool) -> None:
    """Record the logits of every router, which auxiliary losses read, as results of the function.

    Args:
        program: the function.
        choices: the chosen experts and their gates too.
    """
    for step in program.steps:
        if step.op == "router":
            kept = zip(step.results, ROUTER_LISTS, strict=True) if choices else [(step.results[2], ROUTER_LISTS[2])]
            program.routers.update(kept)


def outer_values(steps: Sequence[Step]) -> tuple[list[Value], set[Value]]:
    """Return what ``steps`` read from outside (in order of first use) and all they make."""
    made = {v for step in steps for v in step.results}
    read: dict[Value, None] = {}
    for step in steps:
        for value in step.inputs():
            if value not in made:
                read.setdefault(value)
    return list(read), made
