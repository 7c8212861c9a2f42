"""The last steps of an import: wanted rows, positions, the capacity in place of S, and nothing unused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import Dim, Expr, substitute
from omnic.ir.graph import AttrValue, Function, Module, Node, Param, Result, Uses, Value
from omnic.ir.rewrite import eliminate_dead_code, replace_values
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import WeightStore
from omnic.models.onnx.converter import Converter, R

__all__ = ["finish", "position_tables", "tied"]

#: what a value may pass through between the product with the head and the logits
_PER_TOKEN = frozenset({"add", "mul", "div", "sub", "tanh", "cast", "neg"})


def finish(module: ModuleBuilder, c: Converter, rows: Value, capacity: int) -> Module:
    """Return the module: logits of the wanted rows, rope by ``positions``, shapes with the capacity."""
    _wanted_rows(c, rows)
    built = module.build()
    function = eliminate_dead_code(built.function())
    function = eliminate_dead_code(_by_positions(function))
    function = _with_capacity(function, capacity)
    used = set(function.weights())
    weights = {n: w for n, w in built.weights.items() if n in used}
    meta = {"vocab": next(r for r in function.results if r.name == "logits").value.type.shape[-1], **built.meta}
    return replace(built, weights=weights, meta=cast("dict[str, AttrValue]", meta)).with_function(function)


# -- rows ---------------------------------------------------------------------------------------------------
def _wanted_rows(c: Converter, rows: Value) -> None:
    """Make the function return the logits of ``rows`` only, multiplied for those rows only."""
    f = c.f
    logits = f.outputs[0]
    value = logits.value
    if value.type.shape[1] != c.tokens or value.type.rank != 3:
        found = _last_only(c, value)
        if found is None:
            raise InputError(f"the logits are {value.type}: [batch, tokens, vocabulary] was expected",
                             "export the decoder with the logits of every token of the call")
        value = found
    chain: list[tuple[Node, int]] = []
    head = value
    while (made := c.made_by(head)) is not None and made.op in _PER_TOKEN:
        at = next((i for i, v in enumerate(made.operands) if v is not None and v.type.shape == head.type.shape), None)
        scalars = [v for i, v in enumerate(made.operands) if i != at and v is not None]
        if at is None or any(v.type.rank > 1 for v in scalars):
            break
        chain.append((made, at))
        inner = made.operands[at]
        assert inner is not None
        head = inner
    made = c.made_by(head)
    with f.scope("head"):
        if made is not None and made.op == "linear":
            x, w, bias = made.operands
            out = f.op("lm_head", x, w, rows, bias)
            out = out if head.type.element == out.type.element else f.op("cast", out, to=head.type.element)
        else:
            out = f.op("gather", head, f.reshape(rows, rows.type.shape[0], R, 1), axis=1)
        for node, at in reversed(chain):
            operands = tuple(out if i == at else v for i, v in enumerate(node.operands))
            out = f.op(node.op, *operands, **cast("dict[str, Any]", node.attrs))
        if out.type.element != DType.F32:
            out = f.op("cast", out, to=DType.F32)
    f.outputs[0] = Result("logits", out)


def _last_only(c: Converter, logits: Value) -> Value | None:
    """A graph that computes the last token's logits alone: return them for every token, found before its slice."""
    chain: list[Node] = []
    value: Value | None = logits
    while value is not None and (made := c.made_by(value)) is not None:
        chain.append(made)
        if made.op == "slice" and made.attrs["axis"] == 1:
            break
        if made.op not in (*_PER_TOKEN, "linear", "reshape", "rms_norm", "layer_norm"):
            return None
        value = made.operands[0]
    if value is None or not chain or chain[-1].op != "slice":
        return None
    source = chain[-1].operands[0]
    if source is None or source.type.rank != 3 or source.type.shape[1] != c.tokens:
        return None
    out = source
    for node in reversed(chain[:-1]):
        if node.op == "reshape" and node.operands[0] is not None and node.operands[0].type.rank != 3:
            return None
        if node.op == "reshape":
            continue
        out = c.f.op(node.op, out, *node.operands[1:], **cast("dict[str, Any]", node.attrs))
    return out


def tied(module: Module, weights: WeightStore) -> Module:
    """Return the module with a head that holds the numbers of the embedding table reading the table itself.

    Exporters write a tied head as a transposed copy.
    """
    function = module.function()
    tables = {n.operands[0] for n in function.nodes if n.op == "embedding"}
    moved: dict[Value, Value] = {}
    for node in function.nodes:
        head = node.operands[1] if node.op == "lm_head" else None
        if head is None or not head.weight or head in tables:
            continue
        for table in tables:
            if table is not None and table.weight and table.type == head.type and _same(weights, table, head):
                moved[head] = table
    if not moved:
        return module
    function = replace_values(function, moved)
    gone = {v.name for v in moved} - set(function.weights())
    kept = {n: w for n, w in module.weights.items() if n not in gone}
    return replace(module, weights=kept).with_function(function)


def _same(weights: WeightStore, left: Value, right: Value) -> bool:
    """Whether two weights hold the same numbers, compared slice by slice; unequal ones end at the first."""
    rows = left.type.shape[0]
    assert isinstance(rows, int)
    step = max((4 << 20) // max(left.type.bytes() // rows, 1), 1)
    return all(
        np.array_equal(weights.array(left.name, span), weights.array(right.name, span))
        for span in ((first, min(first + step, rows)) for first in range(0, rows, step))
    )


# -- positions ----------------------------------------------------------------------------------------------
_TABLES = (("embedding", 1), ("index_select", 1))
_LAYOUT = frozenset({"reshape", "transpose", "broadcast"})


def _by_positions(function: Function) -> Function:
    """Let rope and position tables see ``positions`` where the graph counted the tokens itself.

    The count start + (0..T-1) is a token's logical index, which masks go by; as floats, or as rows of a
    table, it is its position.
    """
    positions, start = function.param("positions"), function.param("start")
    if positions is None or start is None:
        return function
    uses = Uses(function)
    counted = {v for v in function.values() if _counts_tokens(v, uses, start, positions)}
    if not counted:
        return function
    f = FunctionBuilder(function.name, taken={v.name for v in function.values()},
                        node_names={n.name for n in function.nodes})
    nodes: list[Node] = []
    known: dict[Value, Value] = {}

    def moved(value: Value) -> Value:
        if value in counted:
            shape = value.type.shape
            return positions if shape == positions.type.shape else f.reshape(positions, *shape)
        if value not in known:
            node = uses.producer[value]
            inner = node.operands[0]
            assert inner is not None
            with f.at(node):
                known[value] = f.op(node.op, moved(inner), **cast("dict[str, Any]", node.attrs))
        return known[value]

    for node in function.nodes:
        operands = list(node.operands)
        for index, value in enumerate(operands):
            if value is not None and _wants_position(node, index) and _rooted(value, uses, counted):
                operands[index] = moved(value)
        nodes += f.nodes
        f.nodes.clear()
        nodes.append(replace(node, operands=tuple(operands)) if tuple(operands) != node.operands else node)
    return replace(function, nodes=tuple(nodes))


def _counts_tokens(value: Value, uses: Uses, start: Value, positions: Value) -> bool:
    """Whether a value is start + iota(T), i64 with as many numbers as ``positions``."""
    node = uses.producer.get(value)
    if node is None or node.op != "add" or value.type.size != positions.type.size:
        return False
    if value.type.element != DType.I64:
        return False
    sides = [_through(v, uses) for v in node.inputs()]
    ops = {n.op for n in (uses.producer.get(s) for s in sides) if n is not None}
    return start in sides and "iota" in ops


def _through(value: Value, uses: Uses) -> Value:
    node = uses.producer.get(value)
    while node is not None and node.op in _LAYOUT and node.operands[0] is not None:
        value = node.operands[0]
        node = uses.producer.get(value)
    return value


def _rooted(value: Value, uses: Uses, counted: set[Value]) -> bool:
    return _through(value, uses) in counted or value in counted


def _wants_position(node: Node, index: int) -> bool:
    if node.op == "cast":
        return cast(DType, node.attrs["to"]).is_float
    return (node.op, index) in (*_TABLES, ("rope", 1))


def position_tables(function: Function) -> list[int]:
    """Return the rows of every table that is read at positions."""
    positions = function.param("positions")
    uses = Uses(function)
    found: list[int] = []
    for node in function.nodes:
        if (node.op, 1) not in _TABLES:
            continue
        table, index = node.operands[:2]
        if table is None or index is None or _through(index, uses) is not positions:
            continue
        axis = cast(int, node.attrs.get("axis", 0))
        size = table.type.shape[axis]
        if isinstance(size, int):
            found.append(size)
    return found


# -- the capacity -------------------------------------------------------------------------------------------
def _with_capacity(function: Function, capacity: int) -> Function:
    """Put the number of slots in the place of S."""
    sizes: Mapping[str, Dim] = {"S": capacity}
    fresh: dict[Value, Value] = {}

    def typed(value: Value) -> Value:
        if value.weight:
            return value
        if value not in fresh:
            shape = tuple(substitute(d, sizes) for d in value.type.shape)
            fresh[value] = Value(value.name, TensorType(value.type.element, shape))
        return fresh[value]

    def attr(value: AttrValue) -> AttrValue:
        if isinstance(value, Expr):
            return cast(AttrValue, substitute(value, sizes))
        return tuple(attr(v) for v in value) if isinstance(value, tuple) else value

    params = tuple(Param(typed(p.value), p.state) for p in function.params)
    nodes = tuple(
        replace(
            n,
            operands=tuple(None if v is None else typed(v) for v in n.operands),
            attrs={k: attr(v) for k, v in n.attrs.items()},
            results=tuple(typed(v) for v in n.results),
        )
        for n in function.nodes
    )
    results = tuple(Result(r.name, typed(r.value), r.state) for r in function.results)
    return Function(function.name, params, nodes, results)
