"""Functions of the IR as functions of a MIL program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function as IRFunction
from omnic.ir.graph import Module, Node, Uses, Value
from omnic.ir.op import find_op
from omnic.ir.types import DType
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.lower import CACHED, COLUMNS, SINGLE, TABLE
from omnic.targets.coreml.lower.attend import cached
from omnic.targets.coreml.mil import Builder, Function, Var, coremltools, get_new_symbol, types
from omnic.targets.coreml.options import Options
from omnic.targets.coreml.phases import CallForm, clone
from omnic.targets.coreml.stored import WeightTable
from omnic.targets.coreml.writer import MilWriter, refuse, sanitised
from omnic.targets.refusals import check_ops

__all__ = ["Built", "build_function", "check_module"]

TARGET_OS = coremltools.target.iOS18
#: inputs that a call of one token does not need: they are always 1 and 0
_IMPLIED = {"length": 1, "rows": 0}


@dataclass(frozen=True)
class Built:
    """One function of a package.

    Attributes:
        form: which.
        mil: the function of MIL.
        names: value of the IR -> name in the program.
        columns: those of them that are [1, C, 1, T] in the program where the IR has [B, T, C].
        inputs: input of the program -> parameter of the IR's function.
        outputs: output of the program -> result of the IR's function.
        ops: node of the IR -> kinds of operations.
    """

    form: CallForm
    mil: Any
    names: Mapping[str, str]
    columns: frozenset[str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    ops: Mapping[str, list[str]]


def check_module(module: Module) -> None:
    """Refuse what no function could be made of, before any is built.

    Raises:
        InputError: naming the op, the line of the spec and why.
    """
    check_ops("coreml", CAPS, module)
    for function in module.functions.values():
        for node in function.nodes:
            for value in (*node.inputs(), *node.results):
                if value.type.rank > CAPS.limit("rank"):
                    raise refuse(
                        node, f"%{value.name} has {value.type.rank} dims, MIL takes {CAPS.limit('rank')}"
                        " (coremltools 9.0, types.tensor)", "reshape it to fewer dims")


def build_function(module: Module, form: CallForm, weights: WeightTable, options: Options) -> Built:
    """Lower one function.

    Raises:
        InputError: an op that MIL cannot take.
    """
    source = clone(module, form)
    specs, flexible = _inputs(source, form, options)
    made = Function({name: spec for name, (spec, _) in specs.items()}, opset_version=TARGET_OS)
    columns = options.compute == "ane"
    w = MilWriter(module, weights, half=options.half, columns=columns, length=form.tokens)
    w.known = frozenset(source.values())
    states = {p.value for p in source.params if p.state is not None}
    with made:
        for name, (_, value) in specs.items():
            var = made.inputs[name]
            if value in states and options.stateful:
                w.held(value, var)
            else:
                w.given(value, var)
        for param in source.params:
            implied = _IMPLIED.get(param.value.name)
            if param.value not in {v for _, v in specs.values()} and implied is not None:
                w.bind(param.value, w.const(np.full([int(str(d)) for d in param.value.type.shape], implied, np.int32)))
        if form.tokens is None:
            first = next(v for v in source.params if v.value.name in ("tokens", "next_tokens", "hidden")).value
            shape = w.op("shape", x=w.need(first))
            w.caches["length"] = w.op("squeeze", x=w.op("slice_by_index", x=shape, begin=[1], end=[2]), axes=[0])
        held = dict(w.caches)
        uses, table = Uses(source), COLUMNS if columns else TABLE
        for node in source.nodes:
            _lower(w, node, table, uses, options, held)
        outputs = _outputs(w, source, options)
        made.set_outputs([var for _, var in outputs])
    made.input_types = flexible
    given = {name: value.name for name, (_, value) in specs.items()}
    kept = {v.name: n for v in source.values() if (n := w.names.get(v.name)) is not None}
    return Built(form, made, kept, frozenset(w.laid_out), given, {var.name: name for name, var in outputs}, w.ops)


def _inputs(source: IRFunction, form: CallForm, options: Options) -> tuple[dict[str, tuple[Any, Value]], list[Any]]:
    """Return the function's inputs as MIL takes them, and their flexible shapes."""
    specs: dict[str, tuple[Any, Value]] = {}
    flexible: list[Any] = []
    length = get_new_symbol() if form.tokens is None else None
    for param in source.params:
        value = param.value
        if form.tokens == 1 and value.name in _IMPLIED and form.rows == 1:
            continue
        name = sanitised(value.name)
        word = types.int32
        if value.type.is_float:
            word = types.fp16 if options.half or value.type.element == DType.F16 else types.fp32
        shape = [d if isinstance(d, int) else length for d in value.type.shape]
        if param.state is not None and options.stateful:
            spec = Builder.StateTensorSpec(tuple(shape), dtype=types.fp16)
        else:
            spec = Builder.TensorSpec(tuple(shape), dtype=word)
        specs[name] = (spec, value)
        if form.tokens is None and any(not isinstance(d, int) for d in value.type.shape):
            flexible.append(_flexible(name, value, form))
    return specs, flexible


def _flexible(name: str, value: Value, form: CallForm) -> Any:
    shapes = [tuple(d if isinstance(d, int) else n for d in value.type.shape) for n in form.sizes]
    if form.length == "enumerated":
        return coremltools.TensorType(name=name, shape=coremltools.EnumeratedShapes(shapes, default=shapes[-1]))
    low, high = form.sizes
    ranged = coremltools.RangeDim(low, high, default=high)
    return coremltools.TensorType(
        name=name, shape=tuple(d if isinstance(d, int) else ranged for d in value.type.shape))


def _lower(
    w: MilWriter, node: Node, table: Mapping[str, Any], uses: Uses, options: Options, held: Mapping[Any, Any]
) -> None:
    if node.op == "cache_write" and node.operands[0] in held:
        # The new version of a state of the runtime is that state.
        w.caches[node.result] = held[node.operands[0]]
    with w.at(node):
        if node.op in SINGLE and options.half and options.compute != "ane":
            with w.single():
                _one(w, node, table, uses)
            return
        _one(w, node, table, uses)


def _one(w: MilWriter, node: Node, table: Mapping[str, Any], uses: Uses) -> None:
    if node.op in CACHED and cached(node, uses):
        CACHED[node.op](w, node)
    elif node.op in table:
        table[node.op](w, node)
    elif find_op(node.op).composite:
        _decomposed(w, node, table)
    else:
        raise refuse(node, "there is no lowering of it", "choose another target for this model")


def _decomposed(w: MilWriter, node: Node, table: Mapping[str, Any]) -> None:
    """Lower what a composite decomposes into."""
    definition = find_op(node.op)
    b = FunctionBuilder(node.name)
    with b.at(node):
        found = definition.decompose(b, *definition.arrange(node.operands), **definition.bind(node.attrs))
    made = IRFunction(node.name, (), tuple(b.nodes), ())
    uses = Uses(made)
    for inner in b.nodes:
        _one(w, inner, table, uses)
    for value, result in zip(node.results, found if isinstance(found, tuple) else (found,), strict=True):
        w.bind(value, w.need(result))


def _outputs(w: MilWriter, source: IRFunction, options: Options) -> list[tuple[str, Var]]:
    """Return the outputs by name of the IR's result; states of the runtime are none."""
    found: list[tuple[str, Var]] = []
    used: set[int] = set()
    for result in source.results:
        if result.state is not None and options.stateful:
            continue
        var = w.need(result.value)
        if result.state is None and result.value.type.is_float:
            var = w.cast(var, "fp32") if not options.half else w.cast(var, "fp16")
        wanted = sanitised(result.name) + ("_new" if result.state is not None else "")
        if id(var) in used or var.op is None or var.op.op_type.startswith("const"):
            var = w.op("identity", x=var)
        used.add(id(var))
        w.rename(var, wanted)
        found.append((result.name, var))
    if not found:
        raise InputError(f"coreml: @{source.name} returns nothing but states", "return a value from it")
    return found
