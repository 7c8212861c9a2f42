"""From an IR module to the files of a bundle: ``program.pte``, and what a session has to know of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnic.errors import InputError
from omnic.ir.decompose import decompose
from omnic.ir.graph import Module, Node
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights import WeightStore
from omnic.ir.weights.store import fixed_shape, part_layout
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.executorch.cache import keep, kept
from omnic.targets.executorch.caps import CAPS
from omnic.targets.executorch.coded import ACTIVATION, Coded, parts_in_file, product_form, readers_of, with_activations
from omnic.targets.executorch.codes import buffers_of
from omnic.targets.executorch.delegates import DELEGATES, missing_device, require_package
from omnic.targets.executorch.files import ABOUT_FILE, KIND, NODES_FILE, PROGRAM_FILE, TABLE_FILE
from omnic.targets.executorch.lowered import lower_methods, lowered_key
from omnic.targets.executorch.methods import Method, methods_of, new_states, runner_metadata, token_state
from omnic.targets.executorch.module import TORCH_DTYPES, refuse
from omnic.targets.executorch.options import VERIFY
from omnic.targets.executorch.outside import DATA_FILE
from omnic.targets.executorch.stored import Held, find_weights
from omnic.targets.executorch.traced import nodes_of
from omnic.targets.refusals import check_ops

__all__ = ["emit", "legalised", "load_weights"]

#: files of a program -> their endings in the cache of lowered programs
FILES = {PROGRAM_FILE: "pte", DATA_FILE: "ptd", NODES_FILE: "json"}


def legalised(module: Module) -> Module:
    """Return ``module`` with the ops that have no lowering decomposed.

    Raises:
        InputError: it holds an op, a weight or a state that the target cannot take.
    """
    check_ops("executorch", CAPS, module)
    for name, state in module.states.items():
        _check_state(name, state.type)
    coded = {name for name, why in coded_weights(module).items() if why is None}
    ready = decompose(module, lambda node: _kept(node, coded))
    for function in ready.functions.values():
        for node in function.nodes:
            if not CAPS.lowers(node.op):
                raise refuse(node, CAPS.refusal(node.op) or "there is no lowering of it", "choose another target")
    return ready


def _check_state(name: str, type: TensorType) -> None:
    """Refuse a state of a type that the target has no buffers for."""
    if isinstance(type.element, Storage):
        size = type.shape[type.element.axis]
        why = CAPS.storage_refusal(type.element, size if isinstance(size, int) else 0, state=True)
        hint = "choose other options of kv-quant, or leave it out"
    else:
        plain = (DType.F32, DType.F16, DType.BF16)
        why = None if type.dtype in plain else "executorch keeps states in f32, f16, bf16 or codes"
        hint = "choose another kv_dtype"
    if why is not None:
        raise InputError(f"executorch cannot keep state {name} as {type.element}: {why}", hint)


def _kept(node: Node, coded: Set[str]) -> bool:
    """Whether a composite is lowered as it is; products of 8-bit activations are those with a weight in ``coded``."""
    act, weight = node.attrs.get("act", "none"), next(iter(node.operands[1:2]), None)
    if act != "none" and not (act == ACTIVATION and weight is not None and weight.name in coded):
        return False
    if node.op == "attention" and node.operands[6] is not None:
        return False
    if node.op == "block_attention" and node.operands[8] is None:
        return False
    if node.op == "mla" and any(node.operands[at] is not None for at in (8, 10)):
        return False
    return CAPS.lowers(node.op)


def coded_weights(module: Module) -> dict[str, str | None]:
    """Return weight of a storage type -> why it is decoded to f32, None where its codes are in the program."""
    found: dict[str, str | None] = {}
    readers = readers_of(module)
    for name, weight in module.weights.items():
        type = weight.type.element
        if isinstance(type, Storage) and name in readers:
            others = readers[name] - {"linear", "lm_head", "embedding"}
            found[name] = "it is read by more than products" if others else product_form(type, fixed_shape(weight.type))
    return found


def load_weights(module: Module, weights: WeightStore) -> dict[str, Tensor | Coded]:
    """Return every weight that is read: codes where products take them, else f32, integers as they are."""
    found: dict[str, Tensor | Coded] = {}
    coded, readers = coded_weights(module), readers_of(module)
    for name, weight in module.weights.items():
        if name not in readers:
            continue
        if name in coded and coded[name] is None:
            found[name] = Coded.of(weights.quantised(name))
            continue
        dtype = torch.float32 if weight.type.is_float else TORCH_DTYPES[weight.type.dtype]
        tensor = torch.empty(fixed_shape(weight.type), dtype=dtype)
        if weight.type.rank == 0:
            tensor.numpy()[...] = weights.array(name)
        for start, stop, part in weights.slices(name) if weight.type.rank else ():
            tensor.numpy()[start:stop] = part
        found[name] = tensor
    return found


def held_parts(module: Module, weights: Mapping[str, Tensor | Coded]) -> dict[str, Held]:
    """Return what of the weights the program must hold, part by part."""
    found: dict[str, Held] = {}
    readers = readers_of(module)
    for name, weight in weights.items():
        if isinstance(weight, Coded):
            layout = part_layout(module.weights[name].type)
            for part, (array, form) in parts_in_file(name, weight, readers[name]).items():
                kind, shape = layout[part.removeprefix(name)]
                found[part] = Held(array, form, shape, kind.name)
        else:
            array = weight.numpy()
            found[name] = Held(array, "as it is", array.shape, array.dtype.name)
    return found


def emit(request: EmitRequest) -> Emitted:
    """Write the program, its description and the table of its weights.

    Raises:
        InputError: the module holds what the target cannot honour.
    """
    options = with_verify(request.options, request.module)
    require_package(options["delegate"])
    module = legalised(request.module)
    _check_delegate(module, options["delegate"])
    decoded = coded_weights(module)
    module = with_activations(module, {name for name, why in decoded.items() if why is None})
    methods = methods_of(module, options)
    request.progress("read weights", 0.0)
    weights = load_weights(module, request.weights.with_module(module))
    runner = any(m.kind == "runner" for m in methods)
    constants = runner_metadata(module) if runner else {}
    key = lowered_key(module, weights, {**options, "constants": constants})
    remarks: list[str] = []
    if _copied(key, request.out):
        request.progress("lowered before", 1.0)
    else:
        files = _lowered(module, methods, weights, options, constants, request)
        for name, data in files.items():
            (request.out / name).write_bytes(data)
        try:
            keep(key, files[PROGRAM_FILE], beside={FILES[n]: d for n, d in files.items() if n != PROGRAM_FILE})
        except OSError as error:
            remarks.append(f"the lowered program was not kept for the next compile: {error}")
    request.progress("find weights", 0.0)
    beside = request.out / DATA_FILE if options["weights"] == "ptd" else None
    plain = DELEGATES[options["delegate"]].plain
    table = find_weights(request.out / PROGRAM_FILE, held_parts(module, weights), beside, all_of_them=plain)
    (request.out / TABLE_FILE).write_text(json.dumps(table), encoding="utf-8")
    about = describe(module, methods, options)
    (request.out / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
    remarks += _remarks(module, options, decoded)
    programs = {name: PROGRAM_FILE for name in module.functions}
    needs = missing_device(options["delegate"])
    return Emitted(KIND, module, programs, about, {}, tuple(remarks), needs)


def _check_delegate(module: Module, delegate: str) -> None:
    """Refuse states of codes where a delegate of another device computes."""
    if DELEGATES[delegate].llama:
        return
    for name, state in module.states.items():
        if isinstance(state.type.element, Storage):
            raise InputError(
                f"executorch cannot keep state {name} as {state.type.element} with delegate={delegate}: its programs"
                " keep states in f32, f16 or bf16",
                "leave out kv-quant, or choose delegate=xnnpack",
            )


def with_verify(options: Mapping[str, Any], module: Module) -> dict[str, Any]:
    """Return the options with the lengths of ``verify`` settled.

    Raises:
        InputError: a length that was asked for is longer than a call.
    """
    longest, asked = module.dims["T"].high, options["verify"]
    for count in asked or ():
        if count > longest:
            raise InputError(
                f"target executorch: verify={count}, and a call of this model takes at most {longest} tokens (chunk)",
                f"choose at most {longest}, or raise chunk in the spec",
            )
    lengths = asked if asked is not None else tuple(n for n in VERIFY if n <= longest)
    return {**options, "verify": lengths}


def _copied(key: str, out: Path) -> bool:
    """Copy a program that was lowered before; False when there is none, or another process just made room."""
    try:
        if kept(key) is None:
            return False
        for name, ending in FILES.items():
            found = kept(key, ending=ending)
            if found is not None:
                shutil.copyfile(found, out / name)
    except FileNotFoundError:
        return False
    return (out / PROGRAM_FILE).is_file()


def _lowered(
    module: Module,
    methods: Sequence[Method],
    weights: Mapping[str, Tensor | Coded],
    options: Mapping[str, Any],
    constants: Mapping[str, Any],
    request: EmitRequest,
) -> dict[str, bytes]:
    """Lower the methods and return the files of the program."""
    made = lower_methods(module, methods, weights, options, constants, request.progress)
    nodes = json.dumps(nodes_of(made, [m.name for m in methods])).encode()
    files = {PROGRAM_FILE: bytes(made.buffer), NODES_FILE: nodes}
    if options["weights"] == "ptd":
        with tempfile.TemporaryDirectory() as folder:
            made.write_tensor_data_to_file(folder)
            files[DATA_FILE] = (Path(folder) / DATA_FILE).read_bytes()
    return files


def _remarks(module: Module, options: Mapping[str, Any], decoded: Mapping[str, str | None]) -> list[str]:
    found: list[str] = []
    delegate = str(options["delegate"])
    for name, why in decoded.items():
        if why is not None:
            found.append(f"weight {name} ({module.weights[name].type}) lies in the file as f32: {why}")
    packed = delegate != "portable"
    tied = [n for n, ops in readers_of(module).items() if packed and "embedding" in ops and len(ops) > 1]
    found += [f"weight {name} lies twice in the file: as a table of rows and in a product" for name in tied]
    return found


def describe(module: Module, methods: Sequence[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a session has to know of a program."""
    about: dict[str, Any] = {}
    buffers = new_states(module)
    for method in methods:
        if method.kind != "phase" or method.function is None:
            continue
        function = method.function
        held = [p.state for p in function.params if p.state is not None]
        about[method.name] = {
            "function": method.of,
            "inputs": [p.value.name for p in function.params if p.state is None],
            "states": [buffer for name in held for buffer in buffers_of(name, buffers).values()],
            "results": [
                {"name": r.name, "value": r.value.name, "shape": [str(d) for d in r.value.type.shape]}
                for r in function.results
                if r.state is None
            ],
        }
    states = {
        buffer: {"state": name, "type": str(s.type), "token": token_state(module, name), "ring": s.ring}
        for name, s in module.states.items()
        for buffer in buffers_of(name, buffers).values()
    }
    return {
        "methods": about,
        "runner": any(m.kind == "runner" for m in methods),
        "states": states,
        "state": options["state"],
        "delegate": options["delegate"],
        "weights": options["weights"],
        "verify": list(options["verify"]),
    }
