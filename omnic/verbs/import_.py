"""``omnic import FILE.onnx -o DIR``: a decoder that another tool exported becomes a module and its weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnic.ir.graph import Module
    from omnic.ir.weights import WeightStore

NAME = "import"
HELP = "import a decoder exported to ONNX as a module and a weight file"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="an .onnx file; its external data lies beside it")
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--capacity", type=int, metavar="N",
        help="tokens the cache can hold (default: 2048, or what the file's tables of positions allow)",
    )  # fmt: skip
    parser.add_argument("--chunk", type=int, default=512, metavar="N", help="most tokens of one call (default 512)")
    parser.add_argument("--name", metavar="NAME", help="of the module (default: the file's name)")
    parser.add_argument("--force", action="store_true", help="replace what the folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Import the file and write ``module.ir`` and ``weights.safetensors``."""
    import json

    from omnic.errors import InputError
    from omnic.models.onnx import import_onnx
    from omnic.runtime.files import human_bytes

    out = Path(args.out)
    if out.is_file():
        raise InputError(f"{out} is a file", "name a folder")
    there = [out / name for name in ("module.ir", "weights.safetensors") if (out / name).exists()]
    if there and not args.force:
        raise InputError(f"{there[0]} exists", "--force replaces it")
    module, weights = import_onnx(args.file, args.capacity, chunk=args.chunk, name=args.name)
    report = save(module, weights, out)
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{out}: {report['module']}, {report['nodes']} nodes, {report['parameters'] / 1e6:,.2f} M parameters, "
          f"{human_bytes(report['weight_bytes'])} of weights, {report['states']} states of {report['capacity']} slots")
    return 0


def save(module: Module, weights: WeightStore, out: Path) -> dict[str, Any]:
    """Write a module and its weights into a folder, each whole or not at all; return what was written.

    The weights lie under the names the module gives them, as the module reads them, so the two files stand alone.
    """
    from dataclasses import replace

    from omnic.ir.graph import Recipe
    from omnic.ir.text import print_module
    from omnic.runtime.files import write_atomic

    plain = {n: replace(w, recipe=Recipe("load", {"name": n})) for n, w in module.weights.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_weights(weights, out / "weights.safetensors")
    write_atomic(out / "module.ir", print_module(replace(module, weights=plain)).encode())
    function = module.function()
    return {
        "module": module.name,
        "folder": str(out),
        "nodes": len(function.nodes),
        "parameters": module.parameters(),
        "weight_bytes": sum(w.type.bytes() for w in module.weights.values()),
        "states": len(module.states),
        "capacity": module.meta.get("capacity"),
    }


def write_weights(store: WeightStore, path: Path) -> None:
    """Write every weight of a store to a safetensors file, slice by slice (huggingface.co/docs/safetensors)."""
    import json

    import numpy as np

    from omnic.errors import InternalError
    from omnic.ir.types import Storage
    from omnic.runtime.files import disk_errors

    header: dict[str, Any] = {}
    offset = 0
    for name, weight in store.module.weights.items():
        element, size = weight.type.element, weight.type.bytes()
        if isinstance(element, Storage):
            raise InternalError(f"weight '{name}' is packed")
        header[name] = {"dtype": element.value.upper(), "shape": list(weight.type.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_errors(path), part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, weight in store.module.weights.items():
                for _, _, numbers in store.slices(name):
                    stored = np.ascontiguousarray(numbers.astype(weight.type.dtype.numpy, copy=False))
                    file.write(stored.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
