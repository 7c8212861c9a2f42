"""``omnic compile SPEC --target T[,T]``: a spec becomes a proven bundle for each target."""

from __future__ import annotations

import argparse

NAME = "compile"
HELP = "compile a spec for one or more targets, with measured parity"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or the name of a preset")
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
        "--budget", metavar="SIZE", help="memory the weights and states may take, such as 4GB; more is refused"
    )
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        default=[],
        metavar="NAME{opt=val}",
        help="run this pass; may be repeated",
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

    from omnic.compiler.options import key_values, with_budget, with_passes
    from omnic.compiler.pipeline import CompileRequest, compile_spec, default_out
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
    spec = with_passes(with_budget(load_spec(args.spec), args.budget), args.passes)
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
        )
        with Bar(f"{spec.model} → {target}") as bar:
            bundle = compile_spec(request, bar)
        summaries.append(bundle_summary(bundle))
        if not args.json:
            print_summary(summaries[-1])
    if args.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else {"bundles": summaries}, indent=2))
    return 0 if all(s["parity_ok"] is not False for s in summaries) else 1
