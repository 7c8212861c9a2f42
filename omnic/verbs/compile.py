"""``omnic compile SPEC --target T[,T]``: a spec, or an imported decoder, becomes a proven bundle for each target."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnic.compiler.imported import Imported
    from omnic.spec import Spec

NAME = "compile"
HELP = "compile a spec or an imported decoder for one or more targets, with measured parity"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "spec", metavar="SPEC",
        help="a spec file, the name of a preset, an exported decoder (.onnx), or the folder omnic import wrote for one",
    )
    parser.add_argument(
        "--target", required=True, metavar="T[,T]", help="targets, separated by commas (see: omnic list targets)"
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        help="the bundle; with several targets, the folder they go into (default build/<model>-<target>)",
    )
    parser.add_argument("--weights", metavar="FILE", help="a safetensors file (default: the one the spec names)")
    parser.add_argument("--seed", type=int, metavar="N", help="random weights instead of trained ones")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="DIR[=X]",
        help="merge this LoRA adapter (as PEFT saves it) into the weights, X times as strongly; may be repeated",
    )
    parser.add_argument(
        "--budget", metavar="SIZE", help="memory the weights and states may take, such as 4GB; more is refused"
    )
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        default=[],
        metavar="NAME{opt=val}",
        help="run this pass (or pipeline) after those of the spec's list; may be repeated (see: omnic list passes)",
    )
    parser.add_argument(
        "--replace-passes",
        action="store_true",
        help="leave out the spec's own list (of an imported decoder: attention-fusion): run only those of --pass",
    )
    parser.add_argument(
        "--why", metavar="NAME", help="say what this pass did and where it nearly applied: the rule, why not, the node"
    )
    parser.add_argument(
        "--print-after", metavar="NAME|all", help="print the module to standard error after this pass, or after each"
    )
    parser.add_argument(
        "--stop-after",
        metavar="NAME|STAGE",
        help="print the module after this pass or stage (front, lossy, specialise, legalise) and write no bundle",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text for calibrating passes: a file, a folder or saved windows (default: the training corpus)",
    )
    parser.add_argument(
        "--calibration-windows", type=int, default=128, metavar="N", help="windows of 256 tokens of it (default 128)"
    )
    parser.add_argument(
        "--results", metavar="DIR", help="where results of calibration are kept (default: your cache folder)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the target, over the spec's; may be repeated",
    )
    parser.add_argument(
        "--parity",
        choices=("auto", "full", "off"),
        default="auto",
        help="auto: the whole model below 300 M parameters, its parts above",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads for checking (default: the cores this process has)"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle of other content")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Compile for each target; 1 when a parity misses its bound."""
    import json
    from pathlib import Path

    from omnic.compiler.adapters import parse_adapter
    from omnic.compiler.imported import is_imported, open_imported
    from omnic.compiler.inspect import Inspector, print_why, why
    from omnic.compiler.lowering import CalibrationSource
    from omnic.compiler.options import key_values, with_budget, with_passes
    from omnic.compiler.pipeline import CompileRequest, compile_spec, default_out, lower_spec
    from omnic.compiler.progress import Bar
    from omnic.compiler.summary import bundle_summary, print_summary
    from omnic.errors import InputError
    from omnic.spec import load_spec

    targets = [t.strip() for t in args.target.split(",") if t.strip()]
    if not targets:
        raise InputError("--target names no target", "see: omnic list targets")
    if len(set(targets)) != len(targets):
        raise InputError(f"--target names {next(t for t in targets if targets.count(t) > 1)} twice", "name each once")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be 1 or more, not {args.threads}", "leave it out to use every core")
    if args.calibration_windows < 1:
        raise InputError(f"--calibration-windows must be 1 or more, not {args.calibration_windows}")
    spec: Spec | Imported
    if is_imported(args.spec):
        if args.budget is not None:
            raise InputError(f"--budget is for specs, and {args.spec} is an imported decoder", "leave it out")
        spec = open_imported(args.spec, args.passes, args.replace_passes)
    else:
        spec = with_budget(with_passes(load_spec(args.spec), args.passes, args.replace_passes), args.budget)
    lora = tuple(parse_adapter(text) for text in args.lora)
    inspector = Inspector(spec, args.print_after, args.stop_after, args.why)
    summaries: list[dict[str, object]] = []
    for target in targets:
        out = (
            None
            if args.out is None
            else Path(args.out)
            if len(targets) == 1
            else Path(args.out) / default_out(spec, target).name
        )
        request = CompileRequest(
            spec,
            target,
            out,
            Path(args.weights) if args.weights else None,
            args.seed,
            key_values(args.option),
            args.force,
            args.parity,
            args.threads,
            CalibrationSource(Path(args.calibration) if args.calibration else None, args.calibration_windows),
            Path(args.results) if args.results else None,
            inspector.watch if inspector.watches else None,
            lora=lora,
        )
        if args.stop_after is not None:
            with Bar(f"{spec.model} → {target}") as bar:
                lowered = lower_spec(request, bar)
            inspector.print_stopped(lowered, args.json)
            return 0
        with Bar(f"{spec.model} → {target}") as bar:
            bundle = compile_spec(request, bar)
        summaries.append(bundle_summary(bundle))
        if args.why is not None:
            summaries[-1]["why"] = why(bundle.manifest.passes, args.why)
        if not args.json:
            print_summary(summaries[-1])
            print_why(summaries[-1].get("why"))
    if args.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else {"bundles": summaries}, indent=2))
    return 0 if all(s["parity_ok"] is not False for s in summaries) else 1
