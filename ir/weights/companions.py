"""What a weight file says of weights beyond numbers: types of their own, and companions that change how one is read.

* ``<name>.order``, i64 [K]: the columns of ``<name>`` [N, K] lie in another order; column j multiplies input order[j].
  A ``linear`` then reads ``index_select(x, order)``.
* ``<name>.offset``, a float [N, G]: every number of group g of row n is larger by offset[n, g] than the codes say, the
  groups being K / G inputs each.  A ``linear`` then adds the product of the offsets with the sums of x over groups.
"""

from __future__ import annotations

from dataclasses import replace

from omnic.errors import BundleError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Recipe, Value, Weight
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import DType, TensorType
from omnic.ir.weights.recipes import INITIALISERS
from omnic.ir.weights.sources import Source, TypedSource

__all__ = ["COMPANIONS", "companion_of", "with_stored_types"]

#: endings of the names of companions
COMPANIONS = (".order", ".offset")


def companion_of(name: str) -> str | None:
    """Return the weight that a tensor named ``name`` would be the companion of, None for any other name."""
    return next((name.removesuffix(c) for c in COMPANIONS if name.endswith(c)), None)


def with_stored_types(module: Module, source: Source) -> Module:
    """Return ``module`` with the types and the companions that ``source`` says its weights have.

    Raises:
        BundleError: a companion that does not fit its weight, or of a weight that other ops than products read.
    """
    found: dict[str, tuple[TensorType, Recipe]] = {}
    if isinstance(source, TypedSource):
        for name, weight in module.weights.items():
            if weight.recipe.kind in INITIALISERS:
                typed = source.typed(str(weight.recipe.args.get("name", name)))
                if typed is not None:
                    found[name] = (weight.type.with_element(typed.element), weight.recipe)
    return _with_companions(retype_weights(module, found) if found else module, source)


def _with_companions(module: Module, source: Source) -> Module:
    weights = dict(module.weights)
    beside: dict[str, dict[str, Value]] = {}
    for name in source.names():
        of = companion_of(name)
        if of is None or of not in module.weights or name in module.weights:
            continue
        value = _declared(module.weights[of], name, source)
        weights[name] = Weight(value, Recipe("load", {"name": name}))
        beside.setdefault(of, {})[name.removeprefix(of)] = value
    if not beside:
        return module
    functions = {name: _read_with(f, beside, source) for name, f in module.functions.items()}
    return replace(module, weights=weights, functions=functions)


def _declared(weight: Weight, name: str, source: Source) -> Value:
    """Return the companion as a value of the module, its shape checked."""
    shape, of = source.shape(name), weight.type.shape
    order = name.endswith(".order")
    width = of[-1] if len(of) == 2 else None
    fits = shape == (width,) if order else len(shape) == 2 and shape[0] == of[0] and _divides(shape[1], width)
    if not fits:
        raise BundleError(f"{source.description}: {name} is {list(shape)}, which does not fit {weight.type}")
    return Value(name, TensorType(DType.I64 if order else DType.F32, shape), weight=True)


def _divides(groups: int, width: object) -> bool:
    return isinstance(width, int) and groups > 0 and width % groups == 0


def _read_with(function: Function, beside: dict[str, dict[str, Value]], source: Source) -> Function:
    b = FunctionBuilder(
        function.name, taken={v.name for v in function.values()}, node_names={n.name for n in function.nodes}
    )
    found: dict[Value, Value] = {}
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        node = node if operands == node.operands else replace(node, operands=operands)
        mine = [v.name for v in node.inputs() if v.weight and v.name in beside]
        if not mine:
            b.nodes.append(node)
            continue
        weight = node.operands[1] if node.op == "linear" else None
        if weight is None or mine != [weight.name]:
            raise BundleError(
                f"{source.description}: {mine[0]} has {', '.join(mine[0] + c for c in beside[mine[0]])} beside it, "
                f"which only a linear can read, and {node.op} reads it",
                "fetch the checkpoint that is not quantised, or one quantised without it",
            )
        with b.at(node):
            found[node.results[0]] = _product(b, node, beside[mine[0]])
    if not found:
        return function
    results = tuple(replace(r, value=found.get(r.value, r.value)) for r in function.results)
    return Function(function.name, function.params, tuple(b.nodes), results)


def _product(b: FunctionBuilder, node: Node, beside: dict[str, Value]) -> Value:
    """Append a ``linear`` of a weight with companions."""
    x = node.operands[0]
    assert x is not None
    if ".order" in beside:
        x = b.op("index_select", x, beside[".order"], axis=x.type.rank - 1)
    if ".offset" not in beside:
        b.nodes.append(replace(node, operands=(x, *node.operands[1:])))
        return node.results[0]
    offset = beside[".offset"]
    groups, width = offset.type.shape[1], x.type.shape[-1]
    assert isinstance(groups, int) and isinstance(width, int)
    b.nodes.append(replace(node, operands=(x, *node.operands[1:])))
    split = b.op("reshape", x, shape=(*x.type.shape[:-1], groups, width // groups))
    sums = b.op("sum", split, axes=(x.type.rank,))
    return b.op("add", node.results[0], b.op("linear", sums, offset))
