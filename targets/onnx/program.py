"""Looking inside a saved program: what it says of itself, all of it run once, or a part of it alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError, nearest
from omnic.targets.onnx.codes import BUFFER_TYPES

__all__ = ["METADATA", "describe", "row_program", "run_part", "run_whole", "runtime_options"]

#: key of the program's own description in the file's metadata
METADATA = "omnic"
#: result of SkipSimplifiedLayerNormalization that is the sum
SUM = 3
SETTLED = "settled"
#: operators whose result depends on whether their weights were packed
PACKED = ("MatMulNBits", "QMoE")
_NUMPY = {
    onnx.DataType.FLOAT: np.float32,
    onnx.DataType.FLOAT16: np.float16,
    onnx.DataType.INT64: np.int64,
    onnx.DataType.BOOL: np.bool_,
    onnx.DataType.INT32: np.int32,
    onnx.DataType.INT8: np.int8,
    onnx.DataType.UINT8: np.uint8,
}


def row_program(function: str) -> str:
    """Return the name of the file for calls of one row."""
    return f"{function}.row.onnx"


def runtime_options(threads: int) -> ort.SessionOptions:
    """Return the ONNX Runtime options every session of ours uses."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def load_model(folder: Path, function: str) -> tuple[onnx.Model, dict[str, Any]]:
    """Return a saved program (its weights stay in the data file) and its description.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = folder / f"{function}.onnx"
    if not path.is_file():
        raise BundleError(
            f"{folder}: the bundle has no program '{function}'", "copy the bundle again, or compile it again"
        )
    try:
        model = onnx.load(path)
        return model, json.loads(model.metadata_props[METADATA])
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"{path}: not a program of omnic: {error}", "copy the bundle again, or compile it again"
        ) from error
    except DecodeError as error:
        raise BundleError(f"{path}: not an ONNX file: {error}", "copy the bundle again, or compile it again") from error


def describe(folder: Path, function: str) -> dict[str, Any]:
    """Return what a program says of itself."""
    return load_model(folder, function)[1]


def run_whole(
    folder: Path, function: str, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], threads: int = 1
) -> dict[str, NDArray[Any]]:
    """Run a program once from empty states and return the values called ``names``."""
    model, about = load_model(folder, function)
    batch = len(np.asarray(inputs[about["inputs"][0]]))
    wanted = {p: inputs[p] for p in about["inputs"] if p in inputs}
    return _run(folder, model, about, {**wanted, **_empty(about, batch)}, names, threads)


def run_part(
    folder: Path, function: str, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], threads: int = 1
) -> dict[str, NDArray[Any]]:
    """Run only what lies between the values ``inputs`` and the values ``names``; only its weights are read.

    States that are not among the inputs are empty.
    """
    model, about = load_model(folder, function)
    batch = next((len(a) for a in inputs.values() if np.ndim(a)), 1)
    return _run(folder, model, about, {**_empty(about, batch), **inputs}, names, threads)


def _empty(about: Mapping[str, Any], batch: int) -> dict[str, NDArray[Any]]:
    """Return the buffers of empty states by name."""
    return {
        name: np.zeros([batch if d == "B" else int(d) for d in state["shape"]], BUFFER_TYPES[state["dtype"]])
        for name, state in about["states"].items()
    }


def _run(
    folder: Path,
    model: onnx.Model,
    about: Mapping[str, Any],
    inputs: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    threads: int,
) -> dict[str, NDArray[Any]]:
    graph = model.graph
    values = _values(graph)
    _check_names(about, names)
    given = {name: values[name] for name in inputs if name in values}
    dims = {name: values[name] for name in values if name.startswith("dim.")}
    needed, missing = _between(graph, [values[n] for n in names], {*given.values(), *dims.values()})
    if missing:
        raise InputError(
            f"to show {', '.join(names)} of @{about['function']} the values {', '.join(missing)} are needed too"
        )
    feeds = {name: np.asarray(array, _NUMPY[_dtype(values[name])]) for name, array in inputs.items() if name in given}
    feeds |= {
        name: np.array([_symbol(name, given, inputs)], np.int64) for name, value in dims.items() if value in needed
    }
    part = _cut(model, {n: values[n] for n in feeds if values[n] in needed}, [values[n] for n in names], needed)
    feeds = {n: a for n, a in feeds.items() if values[n] in needed}
    data = onnx.to_proto(part).SerializeToString()
    options = runtime_options(threads)
    # The cut model lives in memory; its weights are still read from the bundle's data file.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    # A part is run once: packing plain weights would cost more than the run.  Products with stored weights compute
    # otherwise when they are not packed (in f32, and slowly), so theirs are.
    if not any(n.op_type in PACKED for n in _every(part.graph)):
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = session.run([f"shown.{i}" for i in range(len(names))], feeds)
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def _every(graph: onnx.Graph) -> Iterator[onnx.Node]:
    """Nodes of a graph and of its branches."""
    for node in graph:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == onnx.AttributeType.GRAPH:
                yield from _every(attribute.as_graph())


def _values(graph: onnx.Graph) -> dict[str, onnx.Value]:
    found = {v.name: v for v in graph.inputs if v.name}
    for node in graph:
        found |= {v.name: v for v in node.outputs if v.name}
    return found


def _check_names(about: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in about["shown"]:
            near = nearest(name, about["shown"])
            raise InputError(
                f"the program @{about['function']} does not show the value '{name}'",
                f"did you mean '{near}'?" if near else "see the values that Target.preserved lists",
            )


def _dtype(value: onnx.Value) -> onnx.DataType:
    if value.type is None:
        raise BundleError(f"the value {value.name} of the program has no type", "compile it again")
    return value.type.dtype


def _symbol(name: str, given: Mapping[str, onnx.Value], inputs: Mapping[str, NDArray[Any]]) -> int:
    """Return the size of a symbolic dim from a given value that has it."""
    symbol = name.removeprefix("dim.")
    for key, value in given.items():
        for axis, dim in enumerate(value.shape or ()):
            if str(getattr(dim, "value", dim)) == symbol:
                return int(np.asarray(inputs[key]).shape[axis])
    raise InputError(f"no given value says how large {symbol} is")


def _reads(node: onnx.Node) -> Iterator[onnx.Value]:
    """What a node reads, the outside values of its branches included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == onnx.AttributeType.GRAPH:
            inner = attribute.as_graph()
            made = {v for n in inner for v in n.outputs}
            for child in inner:
                yield from (v for v in _reads(child) if v not in made)
            yield from (v for v in inner.outputs if v not in made)


def _between(
    graph: onnx.Graph, wanted: Sequence[onnx.Value], given: set[onnx.Value]
) -> tuple[set[onnx.Value], list[str]]:
    """Return the values that ``wanted`` needs (given ones, where the walk stops, too), and inputs that are missing."""
    needed: set[onnx.Value] = set()
    missing: list[str] = []
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value in needed:
            continue
        needed.add(value)
        if value in given and value not in wanted:
            continue
        node = value.producer()
        if node is None:
            if not value.is_initializer() and value not in given:
                missing.append(str(value.name))
            continue
        stack.extend((node.outputs[SUM], *node.inputs[2:]) if _summed(node, given) else _reads(node))  # type: ignore[arg-type]
    return needed, missing


def _summed(node: onnx.Node, given: Collection[onnx.Value]) -> bool:
    """Whether a skip norm's sum is given, so that nothing is left to add."""
    return node.op_type == "SkipSimplifiedLayerNormalization" and node.outputs[SUM] in given


def _cut(
    model: onnx.Model, given: Mapping[str, onnx.Value], wanted: Sequence[onnx.Value], needed: set[onnx.Value]
) -> onnx.Model:
    """Turn ``model`` into the part between ``given`` and ``wanted`` (it is ours to change)."""
    graph = model.graph
    graph.outputs.clear()
    for index, value in enumerate(wanted):
        node = onnx.node("Identity", [value], name=f"shown.{index}")
        shown = node.outputs[0]
        shown.name, shown.type, shown.shape = f"shown.{index}", value.type, value.shape
        graph.append(node)
        graph.outputs.append(shown)
        needed.add(shown)
    stop = set(given.values())
    kept = {n for n in graph if any(v in needed and (v not in stop or v in wanted) for v in n.outputs)}
    _settle(graph, [n for n in graph if n in kept and _summed(n, stop)])
    graph.inputs.clear()
    for name, value in given.items():
        fresh = onnx.Value(name=name, type=value.type, shape=value.shape)
        value.name = f"before.{name}"
        onnx.convenience.replace_all_uses_with(value, fresh)
        graph.inputs.append(fresh)
    for node in reversed(list(graph)):
        if node not in kept and node.name != SETTLED:
            graph.remove(node, safe=False)
    reached = {v for n in graph for v in _reads(n)}
    for name in [n for n, v in graph.initializers.items() if v not in reached]:
        del graph.initializers[name]
    return model


def _settle(graph: onnx.Graph, norms: Sequence[onnx.Node]) -> None:
    """Let skip norms whose sum is given read it, and add zeros to it: the operator that runs stays the same."""
    for node in norms:
        total = node.outputs[SUM]
        nothing = onnx.Value(
            name=f"zero.{node.name}",
            const_value=onnx.tensor(np.float32(0), name=f"zero.{node.name}"),
            type=onnx.TensorType(onnx.DataType.FLOAT),
            shape=onnx.Shape([]),
        )
        graph.register_initializer(nothing)
        zeros = onnx.node("Mul", [total, nothing], name=SETTLED)
        zeros.outputs[0].name = f"zeros.{node.name}"
        graph.insert_before(node, zeros)
        node.replace_input_with(0, total)
        node.replace_input_with(1, zeros.outputs[0])
