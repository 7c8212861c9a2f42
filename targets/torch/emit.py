"""Writing the torch part of a bundle: two Python files for people, the weights in the spec's dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.targets.base import Emitted, Progress
from omnic.targets.torch.inference import legalised
from omnic.targets.torch.session import WEIGHTS_FILE
from omnic.targets.torch.text.inference import emit_inference
from omnic.targets.torch.training import emit_training

__all__ = ["compile", "write_weights"]

_SAFETENSORS = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "i64": "I64",
    "i32": "I32",
    "i8": "I8",
    "u8": "U8",
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
    if all(n.op not in ("fake_quant", "host.fetch") for f in module.functions.values() for n in f.nodes):
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

    Raises:
        InputError: a weight has a storage type.
        OSError: the file cannot be written; the bundle's writer says what to do about a full disk.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "model": module.name}}
    offset = 0
    for name, weight in module.weights.items():
        kind = str(weight.type.element)
        if kind not in _SAFETENSORS:
            raise InputError(f"torch holds no weight of {weight.type.element}: '{name}' is {weight.type}")
        size = weight.type.bytes()
        header[name] = {
            "dtype": _SAFETENSORS[kind],
            "shape": list(weight.type.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, weight in module.weights.items():
            if progress is not None:
                progress("write weights", done / max(offset, 1))
            if weight.type.rank == 0:
                file.write(np.asarray(weights.array(name), weight.type.dtype.numpy).tobytes())
            for _, _, part in weights.slices(name) if weight.type.rank else ():
                file.write(np.ascontiguousarray(part, dtype=weight.type.dtype.numpy).tobytes())
            done += weight.type.bytes()


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
