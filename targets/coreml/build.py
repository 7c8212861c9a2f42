"""Functions of the IR as functions of a MIL program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.dims import Dim
from omnic.ir.graph import Function as IRFunction
from omnic.ir.graph import Module, Node, Uses, Value
from omnic.ir.op import find_op
from omnic.ir.types import DType
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.chunks import Stage
from omnic.targets.coreml.lower import CACHED, COLUMNS, SINGLE, TABLE
from omnic.targets.coreml.lower.attend import cached
from omnic.targets.coreml.mil import Builder, Function, Var, coremltools, get_new_symbol, types
from omnic.targets.coreml.options import Options
from omnic.targets.coreml.phases import CallForm
from omnic.targets.coreml.stored import WeightTable
from omnic.targets.coreml.writer import MilWriter, refuse, sanitised, word_of
from omnic.targets.refusals import check_ops

__all__ = ["Built", "Carried", "build_stage", "check_module"]

TARGET_OS = coremltools.target.iOS18
#: inputs that a call of one token does not need: they are always 1 and 0
_IMPLIED = {"length": 1, "rows": 0}


@dataclass(frozen=True)
class Carried:
    """What a stage hands to later ones.

    Attributes:
        name: of the output.
        word: MIL's word for its elements.
        columns: whether it is [1, C, 1, T] where the IR has [1, T, C].
    """

    name: str
    word: str
    columns: bool


@dataclass(frozen=True)
class Built:
    """One function of a package: a function of the IR, or a stage of one.

    Attributes:
        form: which.
        stage: of it.
        mil: the function of MIL.
        names: value of the IR -> name in the program.
        columns: those of them that are [1, C, 1, T] in the program where the IR has [B, T, C].
        inputs: input of the program -> parameter of the IR's function.
        outputs: output of the program -> result of the IR's function.
        takes: input of the program -> value that an earlier stage gives.
        gives: output of the program -> value that later stages take.
        carried: what it gives.
        ops: node of the IR -> kinds of operations.
    """

    form: CallForm
    stage: Stage
    mil: Any
    names: Mapping[str, str]
    columns: frozenset[str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    takes: Mapping[str, str]
    gives: Mapping[str, str]
    carried: Mapping[Value, Carried]
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


def build_stage(
    module: Module,
    form: CallForm,
    stage: Stage,
    weights: WeightTable,
    options: Options,
    carried: Mapping[Value, Carried],
) -> Built:
    """Lower one function, or one stage of it.

    Args:
        module: of the function.
        form: which function of the package.
        stage: of it.
        weights: constants of the package that the stage lies in.
        options: of the compile.
        carried: what earlier stages give.

    Raises:
        InputError: an op that MIL cannot take.
    """
    source = stage.function
    specs, flexible = _inputs(source, form, options, carried)
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
            elif value in carried and carried[value].columns:
                w.given_columns(value, var)
            else:
                w.given(value, var)
        for param in source.params:
            implied = _IMPLIED.get(param.value.name)
            if param.value not in {v for _, v in specs.values()} and implied is not None:
                w.bind(param.value, w.const(np.full([int(str(d)) for d in param.value.type.shape], implied, np.int32)))
        if form.tokens is None:
            var, axis = _counted(w, specs, carried)
            shape = w.op("slice_by_index", x=w.op("shape", x=var), begin=[axis], end=[axis + 1])
            w.caches["length"] = w.op("squeeze", x=shape, axes=[0])
        held = dict(w.caches)
        uses, table = Uses(source), COLUMNS if columns else TABLE
        for node in source.nodes:
            _lower(w, node, table, uses, options, held)
        outputs, given = _outputs(w, stage, options)
        made.set_outputs([*(var for _, var in outputs), *(var for _, var in given)])
    made.input_types = flexible
    read = {name: value.name for name, (_, value) in specs.items()}
    takes = {name: value for name, value in read.items() if value in {v.name for v in stage.takes}}
    kept = {v.name: n for v in source.values() if (n := w.names.get(v.name)) is not None}
    return Built(
        form, stage, made, kept, frozenset(w.laid_out), {n: v for n, v in read.items() if n not in takes},
        {var.name: name for name, var in outputs}, takes, {var.name: v.name for v, var in given},
        {v: Carried(var.name, word_of(var), _is_columns(w, v)) for v, var in given}, w.ops,
    )


def _is_columns(w: MilWriter, value: Value) -> bool:
    return w.columnar and w.has_columns(value)


def _counted(
    w: MilWriter, specs: Mapping[str, tuple[Any, Value]], carried: Mapping[Value, Carried]
) -> tuple[Var, int]:
    """Return an input with a dim for the tokens of the call, and which dim that is."""
    for _, value in specs.values():
        if not all(isinstance(d, int) for d in value.type.shape):
            if value in carried and carried[value].columns:
                return w.columns(value), 3
            return w.need(value), next(i for i, d in enumerate(value.type.shape) if not isinstance(d, int))
    raise InputError("coreml: a function of flexible length has no input by which it is counted",
                     "compile with length=fixed")


def _inputs(
    source: IRFunction, form: CallForm, options: Options, carried: Mapping[Value, Carried]
) -> tuple[dict[str, tuple[Any, Value]], list[Any]]:
    """Return the function's inputs as MIL takes them, and their flexible shapes."""
    specs: dict[str, tuple[Any, Value]] = {}
    flexible: list[Any] = []
    length = get_new_symbol() if form.tokens is None else None
    for param in source.params:
        value = param.value
        if form.tokens == 1 and value.name in _IMPLIED and form.rows == 1:
            continue
        name = sanitised(value.name)
        word = "int32"
        if value.type.is_float:
            word = "fp16" if options.half or value.type.element == DType.F16 else "fp32"
        dims = list(value.type.shape)
        if value in carried:
            word = carried[value].word
            dims = [dims[0], dims[2], 1, dims[1]] if carried[value].columns else dims
        shape = [d if isinstance(d, int) else length for d in dims]
        if param.state is not None and options.stateful:
            spec = Builder.StateTensorSpec(tuple(shape), dtype=types.fp16)
        else:
            spec = Builder.TensorSpec(tuple(shape), dtype=types.string_to_builtin(word))
        specs[name] = (spec, value)
        if form.tokens is None and any(not isinstance(d, int) for d in dims):
            flexible.append(_flexible(name, dims, form))
    return specs, flexible


def _flexible(name: str, dims: Sequence[Dim], form: CallForm) -> Any:
    shapes = [tuple(d if isinstance(d, int) else n for d in dims) for n in form.sizes]
    if form.length == "enumerated":
        return coremltools.TensorType(name=name, shape=coremltools.EnumeratedShapes(shapes, default=shapes[-1]))
    low, high = form.sizes
    ranged = coremltools.RangeDim(low, high, default=high)
    return coremltools.TensorType(name=name, shape=tuple(d if isinstance(d, int) else ranged for d in dims))


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


def _outputs(
    w: MilWriter, stage: Stage, options: Options
) -> tuple[list[tuple[str, Var]], list[tuple[Value, Var]]]:
    """Return the outputs by name of the IR's result, and those for later stages; states of the runtime are none."""
    found: list[tuple[str, Var]] = []
    used: set[int] = set()

    def named(var: Var, name: str) -> Var:
        if id(var) in used or var.op is None or var.op.op_type.startswith("const"):
            var = w.op("identity", x=var)
        used.add(id(var))
        w.rename(var, name)
        return var

    for result in stage.function.results:
        if result.state is not None and options.stateful:
            continue
        var = w.need(result.value)
        if result.state is None and result.value.type.is_float:
            var = w.cast(var, "fp32") if not options.half else w.cast(var, "fp16")
        found.append((result.name, named(var, sanitised(result.name) + ("_new" if result.state is not None else ""))))
    given: list[tuple[Value, Var]] = []
    for value in stage.gives:
        var = w.columns(value) if _is_columns(w, value) else w.need(value)
        given.append((value, named(w.cast(var, w.float) if value.type.is_float else var, sanitised(value.name))))
    if not found and not given:
        raise InputError(f"coreml: @{stage.function.name} returns nothing but states", "return a value from it")
    return found, given
