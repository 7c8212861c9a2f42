"""From an IR module to the files of a bundle: programs, the data file and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as onnx

from omnic.errors import InputError
from omnic.ir.decompose import decompose_function
from omnic.ir.dims import DimRange
from omnic.ir.graph import Function, Module, Node, Uses
from omnic.ir.types import DType, Storage, TensorType
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.onnx.caps import KINDS, PROFILE_CAPS
from omnic.targets.onnx.codes import buffers
from omnic.targets.onnx.columns import is_product
from omnic.targets.onnx.legalise import activation_of, legalise
from omnic.targets.onnx.legalise import remarks as stored_remarks
from omnic.targets.onnx.lower import CACHED, PROFILES
from omnic.targets.onnx.lower.attend import fused_attention
from omnic.targets.onnx.lower.composites import position_limit, skip_norm
from omnic.targets.onnx.lower.core import refuse
from omnic.targets.onnx.lower.states import read_before
from omnic.targets.onnx.packed import check_packable, write_packed
from omnic.targets.onnx.plan import Plan, make_plan
from omnic.targets.onnx.program import METADATA, row_program
from omnic.targets.onnx.tensors import DATA_FILE, TensorTable
from omnic.targets.onnx.writer import IR_VERSION, GraphWriter
from omnic.targets.refusals import check_ops

__all__ = ["KIND", "TABLE_FILE", "Program", "emit", "write_function"]

_ONNX = {
    "f32": onnx.DataType.FLOAT,
    "f16": onnx.DataType.FLOAT16,
    "i8": onnx.DataType.INT8,
    "u8": onnx.DataType.UINT8,
}
_UPDATES = ("cache_write", "cache_close", "cache_move")
KIND = "onnx"
TABLE_FILE = "weights.json"


@dataclass(frozen=True)
class Program:
    """One function as an ONNX model.

    Attributes:
        model: the model; its weights are references into the data file.
        nodes: ONNX node -> ops of the IR it stands for.
        remarks: what was not fused, and why.
        fused: whether an attention is the fused operator, so that a program of one row is worth having.
        description: what the file says about itself (:data:`METADATA`).
    """

    model: onnx.Model
    nodes: Mapping[str, Sequence[str]]
    remarks: tuple[str, ...]
    fused: bool
    description: Mapping[str, Any]


def emit(request: EmitRequest) -> Emitted:
    """Write every function of the module as a program, and the weights once for all of them.

    Raises:
        InputError: the module holds what the programs cannot.
    """
    profile = str(request.options["profile"])
    fused = profile == "fused"
    check_ops("onnx", PROFILE_CAPS[profile], request.module)
    if request.options["prepacked"]:
        check_packable(request.module)
    module = legalise(request.module, int(request.options["accuracy_level"]) if fused else 0)
    tensors = TensorTable()
    programs: dict[str, Program] = {}
    rows: dict[str, str] = {}
    for done, function in enumerate(module.functions.values()):
        request.progress("lower", done / len(module.functions))
        programs[function.name] = write_function(module, function, tensors, profile)
        if programs[function.name].fused:
            rows[function.name] = row_program(function.name)
            alone = write_function(module, function, tensors, profile, row=True)
            onnx.save(alone.model, request.out / rows[function.name])
    tensors.write(request.out / DATA_FILE, request.weights, request.progress)
    (request.out / TABLE_FILE).write_text(json.dumps(tensors.record()), encoding="utf-8")
    files: dict[str, str] = {}
    nodes: dict[str, Sequence[str]] = {}
    for name, program in programs.items():
        files[name] = f"{name}.onnx"
        onnx.save(program.model, request.out / files[name])
        nodes |= {f"{name}:{node}" if len(programs) > 1 else node: ops for node, ops in program.nodes.items()}
    remarks = [f"{name}: {r}" for name, p in programs.items() for r in p.remarks]
    remarks += stored_remarks(module, fused)
    remarks += [f"weight {name} lies {count} times in {DATA_FILE}" for name, count in tensors.copies().items()]
    copies: dict[str, int] = {}
    if request.options["prepacked"]:
        for done, name in enumerate(programs):
            request.progress("pack weights", done / len(programs))
            stem = rows.get(name, f"{name}.onnx").removesuffix(".onnx")
            copies[f"{stem}.packed.bin"] = write_packed(request.out, stem)
        total = sum(copies.values())
        remarks.append(f"prepacked: {total:,} bytes more on disk, of which a session maps what it uses")
    about = {
        name: {k: v for k, v in p.description.items() if k in ("inputs", "states", "results")}
        for name, p in programs.items()
    }
    interface = {"programs": about, "rows": rows, "data": DATA_FILE, "bytes": tensors.bytes, "copies": copies}
    return Emitted(KIND, module, files, interface, nodes, tuple(remarks))


def write_function(
    module: Module, function: Function, tensors: TensorTable, profile: str, row: bool = False
) -> Program:
    """Lower one function, for every call or (``row``) for calls of one row whose tokens are all valid.

    The program of one row needs no ``If``: each is a graph of its own, and reading the weights of one layer has emptied
    the caches of what ONNX Runtime keeps about the next.

    Raises:
        InputError: an op or a state that the programs cannot hold; it names the line of the spec.
    """
    table = PROFILES[profile]
    if row:
        module = replace(module, dims={**module.dims, "B": DimRange(1, 1)})
    cached = make_plan(function, "plain").cached
    lowered = decompose_function(function, lambda n: _kept(module, n, table, cached, profile))
    plan = make_plan(lowered, profile)
    _check_states(module, lowered)
    w = GraphWriter(module, lowered, tensors, profile, row)
    for param in lowered.params:
        if isinstance(param.value.type.element, Storage):
            w.state_param(param.value, {s: (_ONNX[k], d) for s, (k, d) in buffers(param.value.type).items()})
        else:
            w.param(param.value, param.state is not None)
    for node in lowered.nodes:
        _lower(w, node, plan, table)
    for result in lowered.results:
        for suffix in buffers(result.value.type) if result.state else ("",):
            stored = isinstance(result.value.type.element, Storage)
            found = w.state_parts(result.value)[suffix] if stored else w.need(result.value)
            if found in w.graph.outputs or found.producer() is None:
                found = _copy(w, result.name + suffix, found)
            elif stored:
                found.name, found.type = f"result.{result.name}{suffix}", _buffer_type(result.value.type, suffix)
            w.graph.outputs.append(found)
    if row:
        w.prune()
    ours = {v.name for v in function.values()}
    description = _describe(w, profile, [name for name in w.shown if name in ours])
    model = onnx.Model(w.graph, ir_version=IR_VERSION, producer_name="omnic")
    model.metadata_props[METADATA] = json.dumps(description)
    remarks = tuple(f"{name} is standard Attention: {why}" for name, why in plan.remarks.items())
    return Program(model, w.nodes, remarks, bool(plan.fused), description)


def _kept(module: Module, node: Node, table: Mapping[str, Any], cached: Mapping[str, Any], profile: str) -> bool:
    """Whether a composite is lowered as it is."""
    if node.op in CACHED:
        return node.name in cached
    if node.op == "rope" and position_limit(module) is None:
        return False
    act = node.attrs.get("act", "none") if node.op in ("linear", "lm_head", "moe") else "none"
    if act != "none" and (profile != "fused" or (activation_of(node) != act and not is_product(node))):
        return False
    return node.op in table


def _lower(w: GraphWriter, node: Node, plan: Plan, table: Mapping[str, Any]) -> None:
    if node.name in plan.fused:
        fused = plan.fused[node.name]
        others = [
            n for n in (*(fused.linears or ()), fused.q.rope, fused.k.rope, *fused.cached.writes) if n is not None
        ]
        with w.at(node, *others):
            fused_attention(w, fused)
        return
    if node.name in plan.absorbed:
        return
    if node.name in plan.skips:
        skip_norm(w, node, plan.skips[node.name])
        return
    with w.at(node):
        if node.op in CACHED:
            CACHED[node.op](w, plan.cached[node.name])
        elif node.op in table:
            table[node.op](w, node)
        else:
            raise refuse(node, "there is no lowering of it", "choose another target for this model")


def _copy(w: GraphWriter, name: str, found: onnx.Value) -> onnx.Value:
    """A result that is an input, or another result too, needs a value of its own."""
    copy = w.op("Identity", found)
    copy.name, copy.type, copy.shape = f"result.{name}", found.type, found.shape
    return copy


def _check_states(module: Module, function: Function) -> None:
    """Check that every state may be updated in place: only its cache_write reads the old version.

    Raises:
        InputError: a state of another kind, or one that is read as it was before the call.
    """
    uses = Uses(function)
    for param in function.params:
        if param.state is None:
            continue
        state, users = module.states[param.state], uses.users.get(param.value, [])
        loc = next((f" ({n.loc})".replace('"', "") for n, _ in users if n.loc), "")
        place = f"state {state.name} of @{function.name}{loc}"
        element = state.type.element
        stored = isinstance(element, Storage) and element.kind in KINDS and element.scale != "s4"
        if not stored and element not in (DType.F32, DType.F16):
            hint = f"kv-quant with {', '.join(KINDS)} fits" if isinstance(element, Storage) else None
            raise InputError(f"onnx cannot keep {place} as {element}", hint or "set kv_dtype to f32 or f16")
        if isinstance(element, Storage) and element.axis == -2 and int(str(state.type.shape[-2])) % element.group:
            raise InputError(
                f"onnx cannot keep {place} in blocks of {element.group} tokens: they do not fill its "
                f"{state.type.shape[-2]} slots",
                "choose a context that the block divides, or keys=token",
            )
        if any(n.op == "cache_write" and read_before(function, n) for n, _ in users):
            users = [(n, at) for n, at in users if n.op != "cache_read"]
        if state.rollback != "positional" or any(n.op not in _UPDATES for n, _ in users):
            raise InputError(
                f"onnx cannot update {place} in place: it is not written token by token",
                "choose another target for layers with recurrent states",
            )
        if len(users) > 1:
            raise InputError(
                f"onnx cannot update {place} in place: {len(users)} nodes read its old version",
                "write it once and read the new version",
            )


def _buffer_type(type: TensorType, suffix: str) -> onnx.TensorType:
    return onnx.TensorType(_ONNX[buffers(type)[suffix][0]])


def _describe(w: GraphWriter, profile: str, shown: Sequence[str]) -> dict[str, Any]:
    """What a session and a checker need to know about a program."""
    module, function = w.module, w.function
    states = {
        f"{p.state}{suffix}": {
            "type": str(p.value.type),
            "shape": [d if isinstance(d, int) else str(d) for d in shape],
            "dtype": kind,
            "ring": module.states[p.state].ring,
            "window": module.states[p.state].window,
        }
        for p in function.params
        if p.state is not None
        for suffix, (kind, shape) in buffers(p.value.type).items()
    }
    outputs = [
        (r.name + suffix, r.state and r.state + suffix, shape)
        for r in function.results
        for suffix, (_, shape) in (buffers(r.value.type) if r.state else {"": ("", r.value.type.shape)}).items()
    ]
    results = [
        {"name": name, "value": found.name, "state": state, "shape": [str(d) for d in shape]}
        for (name, state, shape), found in zip(outputs, w.graph.outputs, strict=True)
    ]
    return {
        "function": function.name,
        "profile": profile,
        "dims": {n: [r.low, r.high] for n, r in module.dims.items()},
        "meta": {k: v for k, v in module.meta.items() if isinstance(v, (int, str))},
        "inputs": [p.value.name for p in function.params if p.state is None],
        "states": states,
        "results": results,
        "positions": position_limit(module),
        "shown": list(shown),
    }
