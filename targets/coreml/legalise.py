"""What the programs round, written into the module: states and weights of 16 bits, values of an fp16 program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node, Param, Result, State, Value, Weight
from omnic.ir.types import DType, Storage, TensorType
from omnic.targets.coreml.options import Options

__all__ = ["legalise"]

_UPDATES = ("cache_write", "cache_move")


def legalise(module: Module, options: Options) -> Module:
    """Return ``module`` as its programs compute it.

    1. States are f16 where the runtime keeps them (it knows no other type) and where arithmetic is in fp16.
    2. In an fp16 program plain weights are f16, and every float value is rounded to f16 where it is made.

    Raises:
        InputError: a state that cannot be kept so.
    """
    if not (options.stateful or options.half):
        _check(module)
        return module
    _check(module)
    states = {name: _half_state(state) for name, state in module.states.items()}
    weights = {name: _half_weight(w) for name, w in module.weights.items()} if options.half else dict(module.weights)
    shared = {module.weights[n].value: w.value for n, w in weights.items()}
    functions = {n: _function(f, states, shared, options.half) for n, f in module.functions.items()}
    return replace(module, states=states, weights=weights, functions=functions)


def _check(module: Module) -> None:
    if module.prefill_from is not None:
        raise InputError(
            "coreml has no product of 8-bit activations, which @prefill consists of (MIL of coremltools 9.0)",
            "leave out prefill-int8, or choose the target onnx or torch",
        )
    for state in module.states.values():
        if isinstance(state.type.element, Storage):
            raise InputError(
                f"coreml cannot keep state {state.name} as {state.type.element}: a StateType is fp16, and inputs and"
                " outputs are fp16, fp32, int32 and int8 (coremltools 9.0, MIL backend)",
                "leave out kv-quant, or choose the target onnx or torch",
            )
        if state.rollback != "positional":
            raise InputError(
                f"coreml cannot keep state {state.name}: it is not written token by token",
                "choose another target for layers with recurrent states",
            )


def _half_state(state: State) -> State:
    return replace(state, type=state.type.with_element(DType.F16))


def _half_weight(weight: Weight) -> Weight:
    element = weight.type.element
    if isinstance(element, Storage) or not element.is_float or element == DType.F16:
        return weight
    return replace(weight, value=replace(weight.value, type=weight.type.with_element(DType.F16)))


def _function(
    function: Function, states: Mapping[str, State], weights: Mapping[Value, Value], half: bool
) -> Function:
    found: dict[Value, Value] = dict(weights)
    params: list[Param] = []
    for param in function.params:
        if param.state is not None:
            made = replace(param.value, type=param.value.type.with_element(states[param.state].type.element))
            found[param.value] = made
            params.append(Param(made, param.state))
        else:
            params.append(param)
    nodes: list[Node] = []
    for param in function.params if half else ():
        if param.state is None and param.value.type.element == DType.F32:
            made = Value(f"{param.value.name}.given", param.value.type)
            found[param.value] = made
            like = next(n for n in function.nodes if param.value in n.operands)
            nodes += _casts(like, param.value, made, f"{function.name}/{param.value.name}")
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        results = tuple(_result(node, v, operands) for v in node.results)
        found.update(zip(node.results, results, strict=True))
        if not half or node.op in (*_UPDATES, "cache_read", "constant"):
            nodes.append(replace(node, operands=operands, results=results))
            continue
        for one, given, made in _steps(node, operands, results):
            nodes += _rounded(one, given, made)
    outs = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, tuple(params), tuple(nodes), outs)


def _result(node: Node, value: Value, operands: tuple[Value | None, ...]) -> Value:
    if node.op in _UPDATES and operands[0] is not None:
        return replace(value, type=value.type.with_element(operands[0].type.element))
    return replace(value)


def _steps(
    node: Node, operands: tuple[Value | None, ...], results: tuple[Value, ...]
) -> list[tuple[Node, tuple[Value | None, ...], tuple[Value, ...]]]:
    """Return a node as the steps that each round: a gate is opened, then multiplied."""
    gate = operands[0] if operands else None
    if node.op != "gated_act" or gate is None or set(node.attrs) != {"kind"}:
        return [(node, operands, results)]
    opened = Value(f"{results[0].name}.open", gate.type)
    first = replace(node, op="act", operands=(gate,), results=(opened,), name=f"{node.name}.act")
    second = replace(node, op="mul", operands=(opened, operands[1]), attrs={}, results=results)
    return [(first, (gate,), (opened,)), (second, (opened, operands[1]), results)]


#: what only moves numbers, or chooses among them, rounds nothing
_EXACT = frozenset({
    "reshape", "transpose", "broadcast", "slice", "concat", "split", "pad", "gather", "index_select", "where", "neg",
    "abs", "relu", "maximum", "minimum", "max", "embedding", "scatter", "topk", "sort", "clamp",
})


def _rounded(node: Node, operands: tuple[Value | None, ...], results: tuple[Value, ...]) -> list[Node]:
    """Return the node with each of its f32 results rounded to f16."""
    going = [v for v in results if v.type.element == DType.F32] if node.op not in _EXACT else []
    made: list[Node] = []
    exact = {v: Value(f"{v.name}.exact", v.type) for v in going}
    made.append(replace(node, operands=operands, results=tuple(exact.get(v, v) for v in results)))
    for index, value in enumerate(going):
        made += _casts(node, exact[value], value, f"{node.name}.round{index or ''}")
    return made


def _casts(like: Node, source: Value, target: Value, name: str) -> tuple[Node, Node]:
    """Return the nodes that make ``target`` of ``source`` by rounding it to f16."""
    half = Value(f"{target.name}.f16", TensorType(DType.F16, target.type.shape))
    there = replace(like, op="cast", operands=(source,), attrs={"to": DType.F16}, results=(half,), name=f"{name}.f16")
    return there, replace(like, op="cast", operands=(half,), attrs={"to": DType.F32}, results=(target,), name=name)
