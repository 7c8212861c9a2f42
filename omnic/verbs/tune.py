"""``omnic tune SPEC|BUNDLE``: measure how a program's products can be run on this machine, and keep what is faster."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError
from omnic.verbs._measured import given_bundle, spec_options

if TYPE_CHECKING:
    from omnic.ir.graph import Module
    from omnic.targets.base import Target, Tuned

NAME = "tune"
HELP = "measure how a program's products run best on this machine, and keep it for compile"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="BUNDLE|SPEC",
                        help="a bundle, a spec or preset, or an imported decoder")
    parser.add_argument("--target", metavar="T", help="of a spec: the target (default tvm)")
    parser.add_argument("--budget", default="10m", metavar="TIME", help="such as 90s or 10m (default 10m)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a session (default 1)")
    parser.add_argument("--records", type=Path, metavar="FILE",
                        help="the file of records (default: this user's, of this processor)")
    parser.add_argument("--op", metavar="OP,OP", default="", help="linear, linear_many, moe, loop (default: all)")
    spec_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and keep; 130 where it was interrupted, with what was found until then kept."""
    import json
    from dataclasses import asdict

    from omnic.compiler.progress import Bar
    from omnic.runtime.machine import processor
    from omnic.targets.base import TuneRequest

    seconds = _seconds(args.budget)
    if args.threads < 1:
        raise InputError(f"--threads must be 1 or more, not {args.threads}")
    if args.records is not None and not args.records.absolute().parent.is_dir():
        raise InputError(f"{args.records}: there is no folder {args.records.parent}", "make it, or name another file")
    target, module, options = _model(args)
    ops = tuple(o.strip() for o in args.op.split(",") if o.strip())
    found: list[Tuned] = []
    stopped = False
    with Bar(f"tune {module.name}") as bar:
        request = TuneRequest(module, options, seconds, args.threads, args.records, ops, bar)
        try:
            found.extend(target.tune(request))  # one by one: an interruption leaves those that came
        except KeyboardInterrupt:
            stopped = True
    file = target.tuning_file(request)
    if args.json:
        print(json.dumps({"model": module.name, "processor": processor(), "threads": args.threads,
                          "records": str(file), "stopped": stopped, "found": [asdict(f) for f in found]}))
    else:
        print(f"{module.name} on {processor()}, {args.threads} thread{'s' * (args.threads > 1)}\n")
        _print(found)
        kept = sum(f.won for f in found)
        print(f"\n{'interrupted: ' if stopped else ''}{kept} of {len(found)} are faster another way"
              + (f"; kept in {file}" if kept else "; nothing to keep"))
    return 130 if stopped else 0


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"--budget: '{text}' is no time", "write --budget 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _model(args: argparse.Namespace) -> tuple[Target, Module, dict[str, Any]]:
    """Return the target, the module that it compiles, and its options."""
    from omnic.compiler.imported import is_imported, open_imported
    from omnic.compiler.options import key_values, with_passes
    from omnic.compiler.pipeline import CompileRequest, lower_spec
    from omnic.spec import load_spec
    from omnic.targets import get_target

    bundle = given_bundle(args)
    if bundle is not None:
        target = get_target(bundle.manifest.target)
        known = target.options({})
        said = bundle.manifest.executable.options
        return target, bundle.module, {name: said.get(name, value) for name, value in known.items()}
    spec = (open_imported(args.model, args.passes, False) if is_imported(args.model)
            else with_passes(load_spec(args.model), args.passes))
    name = args.target or "tvm"
    target = get_target(name)
    options = key_values(args.option)
    request = CompileRequest(spec, name, weights=Path(args.weights) if args.weights else None, seed=args.seed,
                             options=options)
    lowered = lower_spec(request)
    return target, lowered.lossy, target.options({**spec.targets.get(name, {}), **options})


def _print(found: list[Tuned]) -> None:
    from omnic.verbs._columns import columns

    rows = [("what", "rows", "default us", "best", "gain")]
    for f in found:
        gain = f"{f.gain:.3f}x [{f.interval[0]:.3f}, {f.interval[1]:.3f}]" if f.interval[0] != f.interval[1] else ""
        shown = "" if f.seconds is None else f"{1e6 * f.seconds:,.1f}"
        rows.append((f.what, f.rows, shown, f.best or (f"default ({f.note})" if f.note else "default"), gain))
    print("\n".join(columns(rows, (False, True, True, False, False))))
