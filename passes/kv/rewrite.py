"""Rewriting a module so that its states are kept as a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omnic.errors import InternalError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Param, Recipe, Result, State, Value, Weight
from omnic.ir.rewrite import eliminate_dead_code, rebuild_with
from omnic.ir.types import DType, TensorType
from omnic.passes.kv.forms import RECENT, Form, Part, Plan

__all__ = ["apply_plan", "part_name", "scale_name"]

#: ops that read recent tokens -> which operand the keys or latents are; the values or rope keys follow
_KEYS = {"attention": 1, "mla": 2}


def part_name(state: str, part: Part, parts: tuple[Part, ...]) -> str:
    """Return the name of the state that keeps ``part``: the state's own when it is the only one."""
    return state if len(parts) == 1 else f"{state}.{parts.index(part)}"


def scale_name(state: str) -> str:
    """Return the name of the weight with a state's static scales; its ``.offset`` stands beside it."""
    return f"{state}.scale"


def apply_plan(module: Module, plan: Plan, recipes: Mapping[str, tuple[TensorType, Recipe]] | None = None) -> Module:
    """Return ``module`` with the states of ``plan`` kept in their parts, in every function.

    Args:
        module: any module.
        plan: the parts of each state to change.
        recipes: type and recipe of each weight of static scales, by name.
    """
    states: dict[str, State] = {}
    for name, state in module.states.items():
        for part in plan.get(name, ()):
            states |= {s.name: s for s in _declare(state, part, part_name(name, part, plan[name]))}
        if name not in plan:
            states[name] = state
    weights = dict(module.weights)
    for name, (type, recipe) in (recipes or {}).items():
        weights[name] = Weight(Value(name, type, weight=True), recipe)
    functions: dict[str, Function] = {}
    for name, function in module.functions.items():
        touched = any(p.state in plan for p in function.params)
        functions[name] = _Rewriter(function, module.states, states, weights, plan).run() if touched else function
    return replace(module, states=states, weights=weights, functions=functions)


def _declare(state: State, part: Part, name: str) -> list[State]:
    """Return the declarations of one part: the state, and its ring of recent tokens."""
    shape = state.type.shape
    if part.heads is not None:
        shape = (shape[0], len(part.heads), *shape[2:])
    slots, form = shape[-2], part.form
    if state.ring and form.multiple > 1 and isinstance(slots, int):
        shape = (*shape[:-2], -(-slots // form.multiple) * form.multiple, shape[-1])
    kept = [replace(state, name=name, type=TensorType(form.element, shape))]
    if form.recent:
        ring = TensorType(RECENT, (*shape[:-2], form.recent, shape[-1]))
        window = form.block + form.keep
        kept.append(State(f"{name}.recent", ring, "recent", state.group, ring=True, window=window))
    return kept


class _Rewriter:
    """Makes the new form of one function."""

    def __init__(self, function: Function, before: Mapping[str, State], states: Mapping[str, State],
                 weights: Mapping[str, Weight], plan: Plan) -> None:
        self.source, self.states, self.weights, self.plan = function, states, weights, plan
        self.owner: dict[Value, str] = {
            p.value: p.state for p in function.params if p.state is not None and p.state in plan
        }
        going = {n for n in function.nodes if self._touches(n)}
        kept = {v.name for v in function.values()} - {v.name for n in going for v in n.results} - set(plan)
        self.b = FunctionBuilder(function.name, taken=kept, node_names={n.name for n in function.nodes} -
                                 {n.name for n in going})
        self.found: dict[Value, Value] = {}
        self.versions: dict[Value, list[Value]] = {}
        self.rings: dict[str, Value] = {}
        self.recent: dict[Value, tuple[Value, Value, Form]] = {}
        self.shared: dict[tuple[object, ...], Value] = {}
        self.pending: dict[Value, tuple[Node, str, Value]] = {}
        self.params: list[Param] = []

    def _touches(self, node: Node) -> bool:
        first = node.operands[0] if node.operands else None
        if first not in self.owner or node.op not in ("cache_write", "cache_read", "cache_move"):
            return False
        if node.op != "cache_read":
            assert first is not None
            self.owner[node.result] = self.owner[first]
        return True

    def run(self) -> Function:
        """Return the new function."""
        for param in self.source.params:
            if param.state not in self.plan:
                self.params.append(param)
                continue
            assert param.state is not None
            self.versions[param.value] = [self._param(name) for name in self._names(param.state)]
        for node in self.source.nodes:
            if node.op == "cache_write" and node.operands[0] in self.versions:
                self._write(node)
            elif node.op == "cache_read" and node.operands[0] in self.versions:
                self._read(node)
            elif node.op == "cache_move" and node.operands[0] in self.versions:
                self._move(node)
            elif node.op in _KEYS and self._now(node.operands[_KEYS[node.op]]) in self.recent:
                self._attend(node)
            else:
                operands = tuple(self.found.get(v, v) if v is not None else None for v in node.operands)
                self.b.nodes.append(rebuild_with(node, operands))
        if self.pending:
            raise InternalError(f"@{self.source.name}: recent keys of {list(self.rings)} are written and never read")
        results = [r for result in self.source.results for r in self._result(result)]
        return eliminate_dead_code(Function(self.source.name, tuple(self.params), tuple(self.b.nodes), tuple(results)))

    def _names(self, state: str) -> list[str]:
        return [part_name(state, part, self.plan[state]) for part in self.plan[state]]

    def _param(self, name: str) -> Value:
        """Add the parameter of a state, and of its ring."""
        value = self.b.param(name, self.states[name].type)
        self.params.append(Param(value, name))
        ring = f"{name}.recent"
        if ring in self.states:
            self.rings[name] = self.b.param(ring, self.states[ring].type)
            self.params.append(Param(self.rings[name], ring))
        return value

    def _result(self, result: Result) -> list[Result]:
        if result.value not in self.versions or result.state is None:
            return [Result(result.name, self.found.get(result.value, result.value), result.state)]
        made: list[Result] = []
        for name, value in zip(self._names(result.state), self.versions[result.value], strict=True):
            made.append(Result(name, value, name))
            if name in self.rings:
                made.append(Result(f"{name}.recent", self.rings[name], f"{name}.recent"))
        return made

    def _now(self, value: Value | None) -> Value | None:
        return None if value is None else self.found.get(value, value)

    # -- the nodes of a cache ---------------------------------------------------------------------------
    def _write(self, node: Node) -> None:
        state, x, start, length = (self._now(v) for v in node.operands)
        old = node.operands[0]
        assert old is not None and x is not None and start is not None and length is not None and state is not None
        name, b = self.owner[old], self.b
        made: list[Value] = []
        with b.at(node):
            for part, before, target in zip(self.plan[name], self.versions[old], self._names(name), strict=True):
                part_x = self._heads(x, part)
                if part.form.static:
                    part_x = self._scaled(part_x, name, part, write=True)
                if part.form.recent:
                    made.append(self._recent_write(node, target, before, part, part_x, start, length))
                else:
                    hint = node.result.name
                    made.append(b.op("cache_write", before, part_x, start, length, hint=hint, **node.attrs))
        self.versions[node.result] = made

    def _heads(self, x: Value, part: Part) -> Value:
        """Return the heads of x [B, H, T, D] that a part keeps."""
        if part.heads is None:
            return x
        return self.b.op("index_select", x, self.b.constant(part.heads, DType.I64), axis=1)

    def _scaled(self, x: Value, state: str, part: Part, write: bool) -> Value:
        """Return x in units of the static scales, or back."""
        b = self.b
        scale = self.weights[scale_name(state)].value
        offset = self.weights[f"{state}.offset"].value if part.form.offset else None
        if part.heads is not None:
            index = b.constant(part.heads, DType.I64)
            scale = b.op("index_select", scale, index, axis=0)
            offset = None if offset is None else b.op("index_select", offset, index, axis=0)
        if write:
            return b.op("div", x if offset is None else b.op("sub", x, offset), scale, hint="units")
        y = b.op("mul", x, scale)
        return y if offset is None else b.op("add", y, offset)

    def _recent_write(
        self, node: Node, name: str, state: Value, part: Part, x: Value, start: Value, length: Value
    ) -> Value:
        """Close blocks, or write tokens; the ring itself is written once attention has read it."""
        b, ring = self.b, self.rings[name]
        # What a query of this call reads is what a later call reads back from the ring.
        rounded = b.op("cast", b.op("cast", x, to=RECENT), to=DType.F32)
        zero = self._once(("zero", start), lambda: b.op("sub", start, start, hint="none"))
        before, index = b.emit("cache_read", ring, start, zero, ring=True, hint="recent_before")
        index = self._once(("old", start, ring.type.shape[-2]), lambda: index)
        recent = b.op("concat", before, rounded, axis=-2, hint="recent")
        indices = self._once(("recent", index, x.type.shape[-2]), lambda: self._index(index, x, start, length))
        if part.form.along_slots:
            written = b.op("cache_close", state, recent, indices, start, length, hint=node.result.name, **node.attrs)
        else:
            written = b.op("cache_write", state, x, start, length, hint=node.result.name, **node.attrs)
        self.recent[written] = (recent, indices, part.form)
        self.pending[written] = (node, name, rounded)
        return written

    def _once(self, key: tuple[object, ...], make: object) -> Value:
        """Return a value that all layers share."""
        if key not in self.shared:
            self.shared[key] = make()  # type: ignore[operator]
        return self.shared[key]

    def _index(self, before: Value, x: Value, start: Value, length: Value) -> Value:
        """Return the logical index of each recent token: those before the call, then its own, -1 where none is."""
        b, batch, tokens = self.b, x.type.shape[0], x.type.shape[-2]
        step = b.reshape(b.op("iota", size=(tokens,), type=DType.I64), 1, tokens)
        index = b.op("add", b.reshape(start, batch, 1), step)
        valid = b.op("lt", step, b.reshape(length, batch, 1))
        index = b.op("where", valid, index, b.constant(-1, DType.I64))
        return b.op("concat", before, index, axis=1, hint="recent_index")

    def _read(self, node: Node) -> None:
        old, start, length = node.operands[0], self._now(node.operands[1]), self._now(node.operands[2])
        assert old is not None
        name, b = self.owner[old], self.b
        base = node.results[0].name.removesuffix("_y")
        values: list[Value] = []
        index: Value | None = None
        with b.at(node):
            for part, version in zip(self.plan[name], self.versions[old], strict=True):
                y, found = b.emit("cache_read", version, start, length, hint=base, **node.attrs)
                index = index or found
                if part.form.static:
                    y = self._scaled(y, name, part, write=False)
                if version in self.recent:
                    self.recent[y] = self.recent[version]
                    self.pending[y] = self.pending.pop(version)
                values.append(y)
            joined = values[0] if len(values) == 1 else self._joined(values, self.plan[name])
        assert index is not None
        self.found[node.results[0]], self.found[node.results[1]] = joined, index

    def _joined(self, values: list[Value], parts: tuple[Part, ...]) -> Value:
        """Return the heads of all parts in their own order."""
        order = [h for part in parts for h in part.heads or ()]
        y = self.b.op("concat", *values, axis=1)
        if order == sorted(order):
            return y
        back = tuple(order.index(h) for h in range(len(order)))
        return self.b.op("index_select", y, self.b.constant(back, DType.I64), axis=1)

    def _move(self, node: Node) -> None:
        old, source, target = node.operands[0], self._now(node.operands[1]), self._now(node.operands[2])
        assert old is not None
        with self.b.at(node):
            hint = node.result.name
            moved = [self.b.op("cache_move", v, source, target, hint=hint, **node.attrs) for v in self.versions[old]]
        self.versions[node.result] = moved

    def _attend(self, node: Node) -> None:
        """Attention over codes and recent tokens, then the rings take the call's tokens."""
        operands = [self._now(value) for value in node.operands]
        place = _KEYS[node.op]
        keys, values = operands[place], operands[place + 1]
        assert keys is not None and values is not None
        recent, indices, form = self.recent[keys]
        b, hint = self.b, node.result.name
        about: dict[str, Any] = {"block": form.block, "keep": form.keep, **node.attrs}
        with b.at(node):
            if node.op == "mla":
                mixed = b.op("mla", *operands[:10], recent, indices, hint=hint, **about)
            else:
                q, k, v, q_index, k_index, sinks = operands[:6]
                recent_v = self.recent[values][0] if values in self.recent else None
                given = (q, k, v, recent, q_index, k_index, indices, sinks, recent_v)
                mixed = b.op("block_attention", *given, hint=hint, **about)
        self.found[node.result] = mixed
        for value in (keys, values):
            if value not in self.pending:
                continue
            write, name, rounded = self.pending.pop(value)
            with b.at(write):
                start, length = self._now(write.operands[2]), self._now(write.operands[3])
                self.rings[name] = b.op("cache_write", self.rings[name], rounded, start, length, ring=True,
                                        hint=f"{write.result.name}_recent")
