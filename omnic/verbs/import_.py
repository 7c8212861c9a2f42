"""``omnic import PATH -o DIR``: a model that someone else made becomes one omnic works on.

A published checkpoint (a folder with ``config.json``, or a GGUF file) becomes a spec, weights and tokenizer; a decoder
that another tool exported to ONNX becomes a module and its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnic.compiler.importing import ImportReport
    from omnic.ir.graph import Module
    from omnic.ir.weights import WeightStore

NAME = "import"
HELP = "import a published checkpoint, a GGUF file, or a decoder exported to ONNX"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint's folder, a .gguf or an .onnx file")
    parser.add_argument("-o", "--out", metavar="DIR", help="the folder to write (default models/NAME)")
    parser.add_argument(
        "--context", "--capacity", type=int, metavar="N",
        help="tokens the states can hold (default: the trained length, 4096 at most; ONNX: 2048, or what the file's "
        "tables of positions allow)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="of the model (default: the name of the folder or file)")
    parser.add_argument("--link", action="store_true", help="leave a checkpoint's weights where they are")
    parser.add_argument("--without-tokenizer", action="store_true", help="leave out the tokenizer")
    parser.add_argument("--explain", action="store_true", help="print what every key of the configuration did")
    parser.add_argument(
        "--chunk", type=int, default=512, metavar="N", help="ONNX: most tokens of one call (default 512)"
    )
    parser.add_argument("--force", action="store_true", help="replace what the folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Import the checkpoint or the file."""
    from omnic.errors import InputError

    if args.context is not None and args.context < 2:
        raise InputError(f"--context {args.context}: states of fewer than 2 tokens leave nothing to attend to")
    path = Path(args.path)
    own = args.name or (path.stem if path.is_file() else path.resolve().name)
    out = Path(args.out) if args.out else Path("models") / own
    if out.is_file():
        raise InputError(f"{out} is a file", "name a folder")
    if path.suffix == ".onnx":
        return _onnx(args, path, out)
    return _checkpoint(args, path, out)


def _checkpoint(args: argparse.Namespace, path: Path, out: Path) -> int:
    import json

    from omnic.compiler.importing import import_checkpoint
    from omnic.compiler.progress import Bar

    with Bar(f"import {path.name}") as bar:
        report = import_checkpoint(
            path, out, link=args.link, context=args.context, name=args.name, force=args.force,
            tokenizer=not args.without_tokenizer, progress=bar,
        )  # fmt: skip
    if args.json:
        print(json.dumps(_plain(report), indent=2))
        return 0
    _show(report, args.explain)
    return 0


def _onnx(args: argparse.Namespace, path: Path, out: Path) -> int:
    """Import the file and write ``module.ir`` and ``weights.safetensors``."""
    import json

    from omnic.errors import InputError
    from omnic.models.onnx import import_onnx
    from omnic.runtime.files import human_bytes

    there = [out / name for name in ("module.ir", "weights.safetensors") if (out / name).exists()]
    if there and not args.force:
        raise InputError(f"{there[0]} exists", "--force replaces it")
    module, weights = import_onnx(path, args.context, chunk=args.chunk, name=args.name)
    report = save(module, weights, out)
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{out}: {report['module']}, {report['nodes']} nodes, {report['parameters'] / 1e6:,.2f} M parameters, "
          f"{human_bytes(report['weight_bytes'])} of weights, {report['states']} states of {report['capacity']} slots")
    return 0


def _plain(report: ImportReport) -> dict[str, Any]:
    """Return the report as JSON has it."""
    tokenizer = report.tokenizer
    return {
        "folder": str(report.folder),
        "family": report.family,
        "spec": str(report.spec),
        "weights": str(report.weights),
        "parameters": report.parameters,
        "weight_bytes": report.weight_bytes,
        "quantised": report.quantised,
        "unread": list(report.unread),
        "tokenizer": None if tokenizer is None else list(tokenizer.files),
        "effects": [{"key": e.key, "value": e.value, "effect": e.effect, "given": e.given} for e in report.effects],
    }


def _show(report: ImportReport, explain: bool) -> None:
    import shlex
    import sys

    from omnic.models.checkpoints.checkpoint import effects_table
    from omnic.runtime.files import human_bytes
    from omnic.verbs._columns import columns

    if explain:
        print("\n".join(columns([("key", "value", "what it did"), *effects_table(report.effects)])))
        print()
    codes = f", {report.quantised} of them quantised" if report.quantised else ""
    print(f"{report.folder}: {report.family}, {report.parameters / 1e6:,.2f} M parameters, "
          f"{human_bytes(report.weight_bytes)} of weights{codes}")
    print(f"  spec       {report.spec}")
    print(f"  weights    {report.weights}")
    if report.tokenizer is None:
        print("  tokenizer  none: the model takes and gives token ids")
    else:
        print(f"  tokenizer  {', '.join(report.tokenizer.files)}")
        for note in report.tokenizer.notes:
            print(f"             {note}")
    for key in report.unread:
        print(f"warning: omnic does not know the key '{key}' of {report.configuration}: it may change the model",
              file=sys.stderr)
    print(f"next: omnic compile {shlex.quote(str(report.spec))} --target onnx")


def save(module: Module, weights: WeightStore, out: Path) -> dict[str, Any]:
    """Write a module and its weights into a folder, each whole or not at all; return what was written.

    The weights lie under the names the module gives them, as the module reads them, so the two files stand alone.
    """
    from dataclasses import replace

    from omnic.compiler.weight_files import write_weights
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
