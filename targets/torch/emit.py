"""Writing the torch part of a bundle: two Python files for people, the weights in their own types."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module, Weight
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore, part_layout
from omnic.targets.base import Emitted, Progress
from omnic.targets.torch.inference import legalised
from omnic.targets.torch.session import WEIGHTS_FILE
from omnic.targets.torch.text.inference import emit_inference
from omnic.targets.torch.training import emit_training

__all__ = ["compile", "write_weights"]

_SAFETENSORS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def compile(module: Module, weights: WeightStore, out_dir: Path | str, progress: Progress | None = None) -> Emitted:
    """Write the program of ``module`` into ``out_dir``.

    ``inference.py`` is what a session runs (it emits the text anew from the IR, and never executes the file),
    ``model.py`` the training module, ``weights.safetensors`` the weights under their names.

    Args:
        module: after the lossy passes.
        weights: its numbers.
        out_dir: an existing folder.
        progress: called with what is being done and the share done.

    Raises:
        InputError: the module holds what the target cannot honour.
    """
    out = Path(out_dir)
    ready = legalised(module)
    remarks: list[str] = []
    programs = {"forward": "inference.py"}
    _write_text(out / "inference.py", emit_inference(ready))
    if any(isinstance(w.type.element, Storage) for w in module.weights.values()):
        remarks.append("no model.py: the weights are quantised, and training starts from the front module")
    elif any(isinstance(s.type.element, Storage) for s in module.states.values()):
        remarks.append("no model.py: the states are quantised, and training starts from the front module")
    elif all(n.op not in ("fake_quant", "host.fetch") for f in module.functions.values() for n in f.nodes):
        _write_text(out / "model.py", emit_training(module))
        programs["training"] = "model.py"
    else:
        remarks.append("no model.py: the module holds ops that only inference has")
    write_weights(ready, weights, out / WEIGHTS_FILE, progress)
    return Emitted("torch", ready, programs, _interface(ready), remarks=tuple(remarks))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_weights(module: Module, weights: WeightStore, path: Path, progress: Progress | None = None) -> None:
    """Write a safetensors file of every weight in its own type, a slice at a time.

    A weight of a storage type is several tensors, as :meth:`omnic.ir.weights.WeightStore.parts` makes them: the
    packed codes under the weight's name, then ``.scale``, ``.zero`` and ``.row``.

    Raises:
        OSError: the file cannot be written; the bundle's writer says what to do about a full disk.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "model": module.name}}
    offset = 0
    for name, weight in module.weights.items():
        for suffix, (kind, shape) in part_layout(weight.type).items():
            size = math.prod(shape) * kind.itemsize
            about = {"dtype": _SAFETENSORS[kind.name], "shape": list(shape), "data_offsets": [offset, offset + size]}
            header[name + suffix] = about
            offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in module.weights.values():
            if progress is not None:
                progress("write weights", done / max(offset, 1))
            for part in _in_order(weight, weights):
                file.write(np.ascontiguousarray(part).tobytes())
            done += weight.type.bytes()


def _in_order(weight: Weight, weights: WeightStore) -> Iterator[NDArray[Any]]:
    """Yield the pieces of a weight's tensors in the order of the file; a large one is made anew for each tensor."""
    ranges = list(weights.row_ranges(weight.name)) if weight.type.rank else [None]
    if len(ranges) == 1:
        yield from weights.parts(weight.name, ranges[0]).values()
        return
    for suffix in part_layout(weight.type):
        for rows in ranges:
            yield weights.parts(weight.name, rows)[suffix]


def _interface(module: Module) -> dict[str, Any]:
    """Return inputs, outputs and states of each function with their types as text."""
    return {
        name: {
            "inputs": {p.value.name: str(p.value.type) for p in function.params if p.state is None},
            "outputs": {r.name: str(r.value.type) for r in function.results if r.state is None},
            "states": {p.state: str(p.value.type) for p in function.params if p.state is not None},
        }
        for name, function in module.functions.items()
    }
