"""The module as its programs are built: states and weights in the types that a package keeps them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node, Param, Result, State, Value, Weight
from omnic.ir.types import DType, Storage
from omnic.targets.coreml.options import Options

__all__ = ["legalise", "rounds"]

_UPDATES = ("cache_write", "cache_move")


def legalise(module: Module, options: Options) -> Module:
    """Return ``module`` as its programs are built.

    1. States are f16 where the runtime keeps them (it knows no other type) and where arithmetic is in fp16; bf16 ones
       are f32 elsewhere, since MIL has no bf16.
    2. In an fp16 program plain weights are f16.  What it rounds is in :mod:`omnic.targets.coreml.rounded`.

    Raises:
        InputError: a state that cannot be kept so.
    """
    _check(module)
    states = {name: _state(state, options.stateful or options.half) for name, state in module.states.items()}
    if not (options.stateful or options.half) and states == module.states:
        return module
    weights = {name: _half_weight(w) for name, w in module.weights.items()} if options.half else dict(module.weights)
    shared = {module.weights[n].value: w.value for n, w in weights.items()}
    functions = {n: _function(f, states, shared) for n, f in module.functions.items()}
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


def rounds(module: Module) -> bool:
    """Whether the programs of a legalised module round to f16 anywhere: where they do, they do so in their states."""
    return any(s.type.element == DType.F16 for s in module.states.values())


def _state(state: State, half: bool) -> State:
    if half:
        return replace(state, type=state.type.with_element(DType.F16))
    return replace(state, type=state.type.with_element(DType.F32)) if state.type.element == DType.BF16 else state


def _half_weight(weight: Weight) -> Weight:
    element = weight.type.element
    if isinstance(element, Storage) or not element.is_float or element == DType.F16:
        return weight
    return replace(weight, value=replace(weight.value, type=weight.type.with_element(DType.F16)))


def _function(function: Function, states: Mapping[str, State], weights: Mapping[Value, Value]) -> Function:
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
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        results = tuple(_result(node, v, operands) for v in node.results)
        found.update(zip(node.results, results, strict=True))
        nodes.append(replace(node, operands=operands, results=results))
    outs = tuple(Result(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, tuple(params), tuple(nodes), outs)


def _result(node: Node, value: Value, operands: tuple[Value | None, ...]) -> Value:
    if node.op in _UPDATES and operands[0] is not None:
        return replace(value, type=value.type.with_element(operands[0].type.element))
    return replace(value)
