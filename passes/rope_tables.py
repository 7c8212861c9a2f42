"""Rotary embedding by precomputed tables of cosines and sines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import AttrValue, Function, Module, Node, Recipe, Result, Value, Weight
from omnic.ir.op import find_op
from omnic.ir.ops.rope import rope_tables, rotate
from omnic.ir.rewrite import Remark, rebuild_with, rename_values
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import ResultStore
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["RopeTables"]


def _bound(module: Module) -> int:
    """Rule 2: the tokens a row can hold."""
    capacity = module.meta.get("capacity")
    if isinstance(capacity, int):
        return capacity
    sizes = [d for s in module.states.values() if not s.ring and isinstance(d := s.type.shape[-2], int)]
    if sizes:
        return max(sizes)
    if "T" in module.dims:
        return module.dims["T"].high
    raise InputError("pass 'rope-tables' finds no bound of the positions", "give it: rope-tables{positions=4096}")


@dataclass
class _Tables:
    """The tables of one module, each made once."""

    positions: int
    results: ResultStore
    weights: dict[str, Weight]
    known: dict[tuple[str, ...], tuple[Value, ...]] = field(default_factory=dict[tuple[str, ...], tuple[Value, ...]])

    def of(self, node: Node) -> tuple[Value, ...]:
        """Return cos and sin f32[P, dims/2] of a ``rope`` node."""
        attrs = {k: v for k, v in find_op("rope").bind(node.attrs).items() if k != "interleaved"}
        key = tuple(f"{name}={value!r}" for name, value in sorted(attrs.items()))
        if key not in self.known:
            index = len(self.known)
            arrays = rope_tables(np.arange(self.positions), attrs)
            both = zip(("cos", "sin"), arrays, strict=True)
            self.known[key] = tuple(self._declare(f"rope.{which}.{index}", which, key, a) for which, a in both)
        return self.known[key]

    def _declare(self, name: str, which: str, key: tuple[str, ...], table: Any) -> Value:
        stored = ResultStore.key(kind="rope table", which=which, positions=self.positions, rope=list(key))
        if stored not in self.results:
            self.results.put(stored, table.astype(np.float32))
        value = Value(name, TensorType(DType.F32, tuple(int(d) for d in table.shape)), weight=True)
        self.weights[name] = Weight(value, Recipe("stored", {"hash": stored}))
        return value


def _tabled(function: Function, tables: _Tables) -> Function:
    going = {n.name for n in function.nodes if n.op == "rope"}
    b = FunctionBuilder(
        function.name,
        taken={v.name for v in function.values()},
        node_names={n.name for n in function.nodes if n.name not in going},
    )
    rows: dict[tuple[Value, Value], Value] = {}
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        if node.op != "rope":
            b.nodes.append(rebuild_with(node, operands))
            continue
        x, positions = operands
        assert x is not None
        assert positions is not None
        with b.at(node):
            taken: list[Value] = []
            for table in tables.of(node):
                if (table, positions) not in rows:  # rule 3
                    rows[table, positions] = b.op("index_select", table, positions, axis=0, hint="rope_row")
                taken.append(rows[table, positions])
            attrs: Mapping[str, AttrValue | None] = find_op("rope").bind(node.attrs)
            y = rotate(b, x, taken[0], taken[1], bool(attrs["interleaved"]))
        found[node.result] = y
        names[y] = node.result.name
    results = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return rename_values(Function(function.name, function.params, tuple(b.nodes), results), names)


@register_pass
@dataclass(frozen=True)
class RopeTables:
    """Replace rope by rows of precomputed tables of cosines and sines.

    1. Every ``rope`` becomes core ops: rows of two tables, picked by position, and the rotation.
    2. A table has a row for each position below ``positions``: the tokens a row can hold, unless given.  A call with a
       position at or beyond that is an error of ``index_select``, never a wrong rotation.
    3. Layers with the same rope share its tables; layers of one function share the picked rows.
    4. Angles are computed in f64 and the tables rounded to f32, so numbers move by at most 2^-24 of a head's largest.

    Given::

        %q_rot = rope(%q, %positions) {dims = 16} : f32[B, 4, T, 16]

    Result::

        %rope_row = index_select(@rope.cos.0, %positions) {axis = 0} : f32[B, T, 8]
        %rope_row.1 = index_select(@rope.sin.0, %positions) {axis = 0} : f32[B, T, 8]
        ...
        %q_rot = concat(%sub, %add) {axis = 3} : f32[B, 4, T, 16]

    Attributes:
        positions: rows of the tables; the module's capacity when absent.
    """

    name: ClassVar[str] = "rope-tables"
    stage: ClassVar[Stage] = "legalise"
    positions: int | None = option(None, low=1, high=1 << 24)

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module without ``rope``."""
        ropes = [n for f in module.functions.values() for n in f.nodes if n.op == "rope"]
        if not ropes:
            return PassResult(module, False)
        rows = self.positions or _bound(module)
        tables = _Tables(rows, context.need_results(self.name), dict(module.weights))
        functions = {name: _tabled(f, tables) for name, f in module.functions.items()}
        added = [w for w in tables.weights.values() if w.name not in module.weights]
        told = f"{len(added)} tables of {rows} positions, {sum(w.type.bytes() for w in added)} bytes"
        remarks = [Remark(self.name, told), *(Remark(self.name, "applied", n.name) for n in ropes)]
        return PassResult(replace(module, functions=functions, weights=tables.weights), True, tuple(remarks))
