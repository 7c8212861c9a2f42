"""Rules about the values, nodes and signatures of functions."""

from __future__ import annotations

from collections.abc import Iterator

from omnic.errors import InputError
from omnic.ir.dims import Dim, Expr, symbols
from omnic.ir.graph import Function, Module, Value, dims_of
from omnic.ir.op import all_ops
from omnic.ir.types import Storage, TensorType
from omnic.ir.verify.declarations import storage_problem, undeclared
from omnic.ir.verify.problem import Place, Problem

__all__ = ["bound_dims", "declared_dims", "definitions", "latent_weights", "node_names", "result_names", "types",
           "value_types", "weights_used"]


def definitions(module: Module, function: Function) -> Iterator[Problem]:
    """Every value is defined once, under its own name, before it is read."""
    defined: set[Value] = set()
    first: dict[str, str] = {}
    for index, param in enumerate(function.params):
        place = Place("param", function.name, index)
        if param.value.weight:
            yield Problem(f"parameter %{param.value.name} is a weight", place)
        if param.value.name in first:
            yield Problem(f"%{param.value.name} is defined twice", place, first[param.value.name])
        first.setdefault(param.value.name, "first defined as a parameter")
        defined.add(param.value)
    made_later = {v: n.name for n in function.nodes for v in n.results}
    for index, node in enumerate(function.nodes):
        for value in node.inputs():
            if value.weight or value in defined:
                continue
            if value in made_later:
                message, hint = f"%{value.name} is used before it is defined", f"{made_later[value]} defines it"
            else:
                message, hint = f"%{value.name} is not a value of @{function.name}", None
            yield Problem.of_node(message, function, index, node, "operand", value, hint)
        for number, value in enumerate(node.results):
            if value in defined or value.name in first:
                yield Problem.of_node(f"%{value.name} is defined twice", function, index, node, "defined", number,
                                      first.get(value.name))
            first.setdefault(value.name, f"first defined by {node.name}")
            defined.add(value)
    for index, result in enumerate(function.results):
        if not result.value.weight and result.value not in defined:
            yield Problem(f"result %{result.name} returns %{result.value.name}, which is not a value of "
                          f"@{function.name}", Place("returned", function.name, index))


def weights_used(module: Module, function: Function) -> Iterator[Problem]:
    """A weight that is read is the module's own."""
    for index, node in enumerate(function.nodes):
        for value in node.inputs():
            if not value.weight:
                continue
            known = module.weights.get(value.name)
            if known is None:
                yield Problem.of_node(f"weight @{value.name} is not declared", function, index, node, "operand", value)
            elif known.value is not value:
                yield Problem.of_node(f"@{value.name} is another value than the weight that the module declares",
                                      function, index, node, "operand", value)


def types(module: Module, function: Function) -> Iterator[Problem]:
    """The results of a node have the types that its op infers from operands and attributes."""
    ops = all_ops()
    for index, node in enumerate(function.nodes):
        op = ops.get(node.op)
        if op is None:
            yield Problem.of_node(f"unknown op '{node.op}'", function, index, node)
            continue
        try:
            found = op.infer_results(tuple(v.type if v else None for v in node.operands), node.attrs)
        except InputError as error:
            yield Problem.of_node(error.message, function, index, node, hint=error.hint)
            continue
        if len(found) != len(node.results):
            message = f"{node.op} has {len(found)} results, {len(node.results)} named"
            yield Problem.of_node(message, function, index, node)
        for number, (type, value) in enumerate(zip(found, node.results, strict=False)):
            if type != value.type:
                message = f"{node.op} gives {type}, not {value.type}"
                yield Problem.of_node(message, function, index, node, "type", number)


def value_types(module: Module, function: Function) -> Iterator[Problem]:
    """A storage type has a meaning wherever it stands."""
    for index, param in enumerate(function.params):
        problem = storage_problem(param.value.type)
        if problem:
            yield Problem(problem, Place("param", function.name, index))
    for index, node in enumerate(function.nodes):
        for number, value in enumerate(node.results):
            problem = storage_problem(value.type)
            if problem:
                yield Problem.of_node(problem, function, index, node, "type", number)


def declared_dims(module: Module, function: Function) -> Iterator[Problem]:
    """Every symbol in a type or an attribute is a dim of the module."""
    for index, param in enumerate(function.params):
        for name in undeclared(module, param.value.type.shape):
            yield _undeclared(module, name, Place("param", function.name, index))
    for index, node in enumerate(function.nodes):
        for number, value in enumerate(node.results):
            for name in undeclared(module, value.type.shape):
                yield _undeclared(module, name, Place("type", function.name, index, number))
        for key, attr in node.attrs.items():
            for name in undeclared(module, tuple(dims_of(attr))):
                yield _undeclared(module, name, Place("attr", function.name, index, key))


def _undeclared(module: Module, name: str, place: Place) -> Problem:
    return Problem(f"dim {name} is not declared", place, f"declare it: dim {name} in 1..N")


def bound_dims(module: Module, function: Function) -> Iterator[Problem]:
    """Every symbol in a function can be computed from the shapes of its parameters."""
    known = {name for name, range in module.dims.items() if range.low == range.high}
    declared = set(module.dims)
    pending = [d for p in function.params for d in p.value.type.shape if isinstance(d, Expr)]
    solved = True
    while solved:
        solved = False
        for dim in pending:
            unknown = symbols(dim) - known
            if len(unknown) == 1 and _linear(dim, next(iter(unknown))):
                known |= unknown
                solved = True
    for index, node in enumerate(function.nodes):
        seen: list[tuple[Place, list[Dim]]] = [
            (Place("attr", function.name, index, key), dims_of(attr)) for key, attr in node.attrs.items()]
        seen += [(Place("type", function.name, index, i), list(v.type.shape)) for i, v in enumerate(node.results)]
        for place, dims in seen:
            for name in sorted({s for d in dims for s in symbols(d)} & declared - known):
                known.add(name)
                yield Problem(f"dim {name} comes from no parameter of @{function.name}", place,
                              "a symbol must be the size of some parameter", node.loc)


def _linear(dim: Expr, name: str) -> bool:
    """Whether ``dim`` is n*name + something without it, so that its size tells ``name``."""
    holding = [monomial for monomial, coefficient in dim.terms if name in symbols(Expr(((monomial, coefficient),)))]
    return len(holding) == 1 and len(holding[0]) == 1 and holding[0][0].kind == "sym"


def node_names(module: Module, function: Function) -> Iterator[Problem]:
    """A node has a name of its own."""
    seen: set[str] = set()
    for index, node in enumerate(function.nodes):
        if not node.name or node.name in seen:
            what = f"two nodes are called {node.name}" if node.name else "a node has no name"
            yield Problem.of_node(what, function, index, node)
        seen.add(node.name)


def result_names(module: Module, function: Function) -> Iterator[Problem]:
    """A result has a name of its own."""
    seen: set[str] = set()
    for index, result in enumerate(function.results):
        if result.name in seen:
            yield Problem(f"two results are called {result.name}", Place("result", function.name, index))
        seen.add(result.name)


def latent_weights(module: Module, function: Function) -> Iterator[Problem]:
    """The up-projections of MLA are plain or i8 per head: absorption contracts them along two dims."""
    for index, node in enumerate(function.nodes):
        if node.op != "mla":
            continue
        inputs = all_ops()["mla"].inputs
        for spec, value in zip(inputs, node.operands, strict=False):
            if spec.name not in ("w_k", "w_v") or value is None or not _grouped(value.type):
                continue
            yield Problem.of_node(f"mla: {spec.name} cannot be {value.type.element}", function, index, node, "operand",
                                  value, "absorption contracts it along two dims: i8<head> or a plain type")


def _grouped(type: TensorType) -> bool:
    return isinstance(type.element, Storage) and (type.element.kind != "i8" or type.element.group != -1)
