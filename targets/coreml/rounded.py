"""What the programs compute, rounding by rounding: the module that a bundle holds and the reference evaluates.

An fp16 program rounds what each of its operations makes.  Here every node that stands for one operation is followed by
a rounding to f16, a node that is lowered to several is written out as those, and what is computed in fp32 in between
is rounded once at its end.  So the reference, whose sums are in f64, rounds where the program does, and a program that
is right differs from it by nothing but the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Result, Uses, Value
from omnic.ir.op import find_op
from omnic.ir.ops.composite import as_element
from omnic.ir.ops.rope import rope_angles, rotate
from omnic.ir.rewrite import rename_values
from omnic.ir.types import DType, TensorType
from omnic.targets.coreml.chunks import unit_of
from omnic.targets.coreml.legalise import rounds
from omnic.targets.coreml.lower import CACHED, SINGLE, TABLE
from omnic.targets.coreml.lower.attend import cached, factor_of
from omnic.targets.coreml.lower.composites import SMALLEST_PEAK, TABLE_STEP
from omnic.targets.coreml.lower.experts import decompose_experts
from omnic.targets.coreml.options import Options

__all__ = ["rounded"]

#: what moves numbers, or chooses among them, rounds nothing
_EXACT = frozenset({
    "reshape", "transpose", "broadcast", "slice", "concat", "split", "pad", "gather", "index_select", "where", "neg",
    "abs", "relu", "maximum", "minimum", "max", "embedding", "topk", "sort", "clamp", "cache_read",
})
_LARGEST = 65504.0


def rounded(module: Module, options: Options) -> Module:
    """Return ``module``, legalised, with every rounding of its programs to f16.

    With arithmetic in fp32 and states in fp16 only the tables of rotations are written out: they decide which way a
    state rounds.  With states in fp32 the module is what it was.
    """
    if not (options.half or rounds(module)):
        return module
    functions = {name: _function(f, options) for name, f in module.functions.items()}
    meta = {**module.meta, "decoded": "f16"} if options.half else module.meta
    return replace(module, functions=functions, meta=meta)


def _function(function: Function, options: Options) -> Function:
    b = _Rounder(function, options)
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    for param in function.params if options.half else ():
        reader = next((n for n in function.nodes if param.value in n.operands), None)
        if param.state is None and param.value.type.element == DType.F32 and reader is not None:
            with b.at(reader):
                found[param.value] = b.rounding(param.value)
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        with b.at(node):
            results = b.place(replace(node, operands=operands), top=True)
        for before, after in zip(node.results, results, strict=True):
            if after is not before:
                found[before] = after
                names.setdefault(after, before.name)
    results = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    fixed = {p.value for p in function.params} | {v for v in names if v.weight}
    made = Function(function.name, function.params, tuple(b.nodes), results)
    return rename_values(made, {v: n for v, n in names.items() if v not in fixed})


class _Rounder(FunctionBuilder):
    """A builder that puts the roundings of a program behind the nodes put into it.

    Args:
        function: whose nodes are put into it.
        options: of the program.
    """

    def __init__(self, function: Function, options: Options) -> None:
        super().__init__(function.name, {v.name for v in function.values()}, {n.name for n in function.nodes})
        self.half, self.columns = options.half, options.compute == "ane"
        self.uses = Uses(function)
        #: cosines and sines by what they are made of
        self.tables: dict[tuple[Any, ...], tuple[Value, Value]] = {}
        self._wide = not options.half

    @contextmanager
    def wide(self) -> Generator[None]:
        """Round nothing inside."""
        before, self._wide = self._wide, True
        try:
            yield
        finally:
            self._wide = before

    def emit(self, op: str, *operands: Value | None, hint: str = "", **attrs: object) -> tuple[Value, ...]:
        """Append what the program computes for a node, rounded."""
        results = super().emit(op, *operands, hint=hint, **attrs)
        return results if self._wide else self.place(self.nodes.pop())

    def kept(self, op: str, *operands: Value | None, **attrs: object) -> Value:
        """Append one node that is one operation of the program, rounded."""
        super().emit(op, *operands, hint="", **attrs)
        return self.keep(self.nodes.pop())[0]

    def place(self, node: Node, top: bool = False) -> tuple[Value, ...]:
        """Append what the program computes for ``node``; ``top``: it is a node of the function itself.

        Returns:
            The values that stand for its results.
        """
        given: dict[str, Any] = dict(find_op(node.op).bind(node.attrs))
        if node.op == "rope" and (top or self.half):
            return (_rope(self, node, given, island=top and not self.columns),)
        if not self.half or (top and node.op in SINGLE and not self.columns):
            return self.keep(node)
        if top and node.op in CACHED and cached(node, self.uses):
            return (_CACHED[node.op](self, node, given),)
        if node.op in _HALVES:
            return (_HALVES[node.op](self, node, given),)
        if node.op in TABLE:
            return self.keep(node)
        return self.expanded(node, given)

    def expanded(self, node: Node, given: dict[str, Any]) -> tuple[Value, ...]:
        """Append what a composite decomposes into."""
        definition = find_op(node.op)
        made = definition.decompose(self, *definition.arrange(node.operands), **given)
        return made if isinstance(made, tuple) else (made,)

    def keep(self, node: Node) -> tuple[Value, ...]:
        """Append ``node`` as it is and a rounding of each float that it makes."""
        node = _with_halves(node) if self.half else node
        exact = not self.half or node.op in _EXACT or (
            node.op == "scatter" and node.attrs.get("reduce", "none") == "none") or (
            node.op == "cast" and node.operands[0] is not None and node.operands[0].type.element == DType.F16) or (
            node.op == "constant")
        going = [] if exact else [v for v in node.results if v.type.element == DType.F32]
        if node.op == "router":
            # Its results keep their names, under which a check takes the program's own choice and forces it here.
            self.nodes.append(node)
            return tuple(self.rounding(v) if v in going else v for v in node.results)
        before = {v: Value(self._fresh(f"{v.name}.exact"), v.type) for v in going}
        self.nodes.append(replace(node, results=tuple(before.get(v, v) for v in node.results)))
        for value in going:
            self.rounding(before[value], value)
        return node.results

    def rounding(self, source: Value, target: Value | None = None) -> Value:
        """Append the rounding of ``source`` to f16 and return the rounded value, ``target`` when it is given."""
        half = Value(self._fresh(f"{source.name}.f16"), TensorType(DType.F16, source.type.shape))
        target = target or Value(self._fresh(f"{source.name}.rounded"), source.type)
        for x, y, to in ((source, half, DType.F16), (half, target, DType.F32)):
            self.nodes.append(Node("cast", (x,), {"to": to}, (y,), self._node_name("round"), self._scope, self._loc))
        return target


def _half(number: float) -> float:
    """Return a constant as the program holds it: its f16, or the largest one."""
    return float(np.float16(min(max(number, -_LARGEST), _LARGEST)))


def _with_halves(node: Node) -> Node:
    """Return a node with its numbers as the program holds them."""
    if node.op == "constant" and node.result.type.is_float:
        values: Any = node.attrs["values"]
        return replace(node, attrs={**node.attrs, "values": tuple(_half(float(v)) for v in values)})
    if node.op == "clamp":
        return replace(node, attrs={k: _half(float(v)) if isinstance(v, float) else v for k, v in node.attrs.items()})
    return node


# -- what is lowered to several operations ----------------------------------------------------------------------
def _linear(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    _, weight, bias = node.operands
    assert weight is not None
    if weight.weight and (bias is None or bias.weight):
        return r.keep(node)[0]
    return r.expanded(node, given)[0]


def _gated(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    gate, up = node.operands
    assert gate is not None and up is not None
    limit, alpha, beta = given["limit"], given["alpha"], given["beta"]
    if limit:
        gate, up = r.op("clamp", gate, max=limit), r.op("clamp", up, min=-limit, max=limit)
    if alpha != 1.0:
        opened = r.op("mul", gate, r.op("sigmoid", r.op("mul", gate, r.constant(alpha))))
    else:
        opened = r.op("act", gate, kind=given["kind"])
    return r.op("mul", opened, r.op("add", up, r.constant(beta)) if beta else up)


def _norm(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    x, weight = node.operands
    assert x is not None
    last, added = (x.type.rank - 1,), None
    if r.columns:
        peak = r.op("maximum", r.op("max", r.op("abs", x), axes=last, keepdims=True), r.constant(SMALLEST_PEAK))
        x = r.op("div", x, peak)
        root = r.op("div", r.constant(math.sqrt(given["eps"])), peak)
        added = r.op("mul", root, root)
    square = r.op("mean", r.op("mul", x, x), axes=last, keepdims=True)
    if added is not None:
        square = r.op("add", square, added)
    else:
        with r.wide():
            square = r.op("add", square, r.constant(_half(given["eps"])))
    y = r.op("mul", x, r.op("rsqrt", square))
    return y if weight is None else r.op("mul", y, as_element(r, weight, y.type.dtype))


def _rope(r: _Rounder, node: Node, given: dict[str, Any], island: bool) -> Value:
    x, positions = node.operands
    assert x is not None and positions is not None
    # Each block has tables of its own, so that what crosses the borders of blocks is in the program too.
    key = (repr(sorted((k, v) for k, v in given.items() if k != "interleaved")), positions, island, unit_of(node))
    with r.wide():
        if key not in r.tables:
            r.tables[key] = tuple(_table(r, t, island) for t in rope_angles(r, positions, given))  # type: ignore[assignment]
        cos, sin = r.tables[key]
        if island:
            y = rotate(r, x, cos, sin, given["interleaved"])
    if island:
        return r.rounding(y) if r.half else y
    return rotate(r, x, cos, sin, given["interleaved"])


def _table(r: _Rounder, exact: Value, island: bool) -> Value:
    """Return a table as the program holds it: in steps of :data:`TABLE_STEP`, or in f16."""
    if not island:
        return r.rounding(exact)
    steps = r.op("round", r.op("mul", exact, r.constant(1.0 / TABLE_STEP)))
    return r.op("mul", steps, r.constant(TABLE_STEP))


def _head(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    y = r.kept("lm_head", *node.operands, **{**given, "softcap": 0.0})
    if not given["softcap"]:
        return y
    cap = r.constant(given["softcap"])
    return r.op("mul", r.op("tanh", r.op("div", y, cap)), cap)


def _moe(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    return decompose_experts(r, *find_op("moe").arrange(node.operands), **{**given, "dispatch": "dense"})


_HALVES: Mapping[str, Callable[[_Rounder, Node, dict[str, Any]], Value]] = {
    "linear": _linear, "gated_act": _gated, "rms_norm": _norm, "lm_head": _head, "moe": _moe,
}


# -- attention over caches --------------------------------------------------------------------------------------
def _fused(r: _Rounder, q: Value, k: Value, v: Value, index: tuple[Value, Value], given: dict[str, Any]) -> Value:
    width = int(str(q.type.shape[-1]))
    factor = factor_of(given["scale"], width)
    if factor is not None:
        q = r.op("mul", q, r.constant(factor))
    return r.kept("attention", q, k, v, *index, scale=1.0 / math.sqrt(width), window=given["window"])


def _attention(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    q, k, v, q_index, k_index = node.operands[:5]
    assert q is not None and k is not None and v is not None and q_index is not None and k_index is not None
    return _fused(r, q, k, v, (q_index, k_index), given)


def _latent(r: _Rounder, node: Node, given: dict[str, Any]) -> Value:
    """The absorbed order of the products, which every function of an fp16 package has."""
    q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index = node.operands[:8]
    assert q_nope is not None and q_rope is not None and latent is not None and rope_k is not None
    assert w_k is not None and w_v is not None and q_index is not None and k_index is not None
    batch, slots, width = latent.type.shape
    moved = r.op("matmul", q_nope, as_element(r, w_k, DType.F32))
    query = r.op("concat", moved, q_rope, axis=3)
    values = r.reshape(latent, batch, 1, slots, width)
    keys = r.op("concat", values, r.reshape(rope_k, batch, 1, slots, rope_k.type.shape[2]), axis=3)
    y = _fused(r, query, keys, values, (q_index, k_index), given)
    return r.op("matmul", y, as_element(r, w_v, DType.F32), tb=True)


_CACHED: Mapping[str, Callable[[_Rounder, Node, dict[str, Any]], Value]] = {"attention": _attention, "mla": _latent}
