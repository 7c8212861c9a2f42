"""``omnic bench [BUNDLE|SPEC]``: prompts and decoding on this machine, beside other engines, against thresholds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError
from omnic.verbs._measured import given_bundle, spec_options

if TYPE_CHECKING:
    from omnic.bench.canary import Canary
    from omnic.bench.measure import Measurement, Plan
    from omnic.bench.runners import Contestant
    from omnic.bench.thresholds import Threshold, Verdict
    from omnic.runtime.bundle import Bundle

NAME = "bench"
HELP = "measure prompts and decoding, beside other engines and against thresholds"
FOLDER = Path("build/bench")
#: tokens before, and tokens decoded, to see what runs for one
PROBE, STEPS = 8, 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="BUNDLE|SPEC", nargs="?", default="tiny",
                        help="a bundle, or a spec or preset that is compiled first (default tiny)")
    parser.add_argument("--target", metavar="T", help="target a spec is compiled for (default onnx)")
    parser.add_argument("--device", default="local", metavar="D", help="where it runs: local, this machine")
    spec_options(parser)
    parser.add_argument("--prompts", metavar="N,N", help="lengths of prompts (default 128)")
    parser.add_argument("--contexts", metavar="N,N",
                        help="tokens in the caches when decoding begins (default 128)")
    parser.add_argument("--new", type=int, default=16, metavar="N", help="tokens decoded in a turn (default 16)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each engine (default 7)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="calls before anything counts (default 2)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each engine (default 1)")
    parser.add_argument("--peers", default="", metavar="P,P",
                        help="engines to measure beside it, on the same numbers: all, or some of onnxruntime-genai, "
                             "llama.cpp, executorch, transformers")
    parser.add_argument("--against", action="append", default=[], metavar="BUNDLE",
                        help="measure this bundle beside it too, as another way to compile the model; may be repeated")
    parser.add_argument("--budget", metavar="TIME",
                        help="choose prompts, contexts and rounds that take about this long, such as 90s or 10m")
    parser.add_argument("--no-canary", action="store_true",
                        help="measure without first running a tiny model whose tokens are known")
    parser.add_argument("--require", default="", metavar="OP,OP=N",
                        help="operators or kernels that must run for a token, once or N times; exit 1 if one does not")
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="check these bounds; exit 1 when one is missed")
    parser.add_argument("--write-thresholds", type=Path, metavar="FILE",
                        help="raise the bounds in FILE to 0.95 of what was measured")
    parser.add_argument("--write-acceptance", type=Path, metavar="FILE",
                        help="raise this model's least tokens a second in FILE likewise")
    parser.add_argument("--history", type=Path, metavar="FILE", default=Path("build/bench/history.sqlite"),
                        help="SQLite file the run is added to (default build/bench/history.sqlite)")
    parser.add_argument("--no-history", action="store_true", help="add it to none")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the measurement as a page")
    parser.add_argument("--schema", choices=("thresholds", "acceptance"), help="print a file's JSON Schema, and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure, compare, record; 1 when a threshold is missed."""
    import json

    from omnic.bench import history
    from omnic.bench.text import lines
    from omnic.bench.thresholds import (
        ProviderThresholds,
        accepted,
        failures,
        judge,
        load_acceptance,
        load_thresholds,
        raised,
        required,
        save_thresholds,
        schemas,
    )

    if args.schema:
        print(json.dumps(schemas()[args.schema], indent=2))
        return 0
    plan = _plan(args)
    bounds = list(load_thresholds(args.thresholds).rows) if args.thresholds else []
    bounds += required(args.require)
    known = load_thresholds(args.write_thresholds) if _there(args.write_thresholds) else None
    least = load_acceptance(args.write_acceptance) if _there(args.write_acceptance) else None
    if args.html and not args.html.absolute().parent.is_dir():
        raise InputError(f"{args.html}: there is no folder {args.html.parent}", "make it, or name another file")
    measured, promised = _measure(args, plan)
    verdicts = judge(ProviderThresholds(rows=(*bounds, *promised)), measured)
    earlier: list[tuple[str, str, int, float]] = []
    if not args.no_history:
        history.append(args.history, measured)
        earlier = history.earlier(args.history, measured)
    if args.write_thresholds:
        save_thresholds(args.write_thresholds, raised(known, measured))
    if args.write_acceptance:
        save_thresholds(args.write_acceptance, accepted(least, measured))
    if args.html:
        from omnic.bench.page import render

        args.html.write_text(render(measured, verdicts, earlier), encoding="utf-8")
    if args.json:
        print(json.dumps(_as_dict(measured, verdicts)))
    else:
        from omnic.verbs._columns import columns

        print("\n".join(lines(measured, verdicts, columns)))
    return 1 if failures(verdicts) else 0


def _there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _plan(args: argparse.Namespace) -> Plan:
    """Return what to measure, from the options alone."""
    from omnic.bench.measure import Plan

    if args.device != "local":
        raise InputError(f"device '{args.device}' cannot be measured", "this omnic measures on this machine: local")
    for name in ("new", "rounds", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    if args.warmup < 0:
        raise InputError(f"--warmup must be 0 or more, not {args.warmup}")
    if args.budget and (args.prompts, args.contexts) != (None, None):
        raise InputError("--budget chooses the lengths", "leave out --prompts and --contexts")
    prompts, contexts = _lengths("prompts", args.prompts), _lengths("contexts", args.contexts)
    if not prompts and not contexts:
        raise InputError("nothing to measure: both --prompts and --contexts are empty", "leave one of them out")
    return Plan(prompts, contexts, args.new, args.rounds, args.warmup, args.threads)


def _lengths(name: str, text: str | None) -> tuple[int, ...]:
    if text is None:
        return (128,)
    words = [w.strip() for w in text.split(",") if w.strip()]
    bad = next((w for w in words if not w.isdigit() or int(w) < 1), None)
    if bad is not None:
        raise InputError(f"--{name}: '{bad}' is not a number of tokens", f"write --{name} 128,512")
    return tuple(dict.fromkeys(int(w) for w in words))


def _measure(args: argparse.Namespace, plan: Plan) -> tuple[Measurement, list[Threshold]]:
    """Return the measurement, and the bounds that the model's own spec sets."""
    from dataclasses import replace

    import numpy as np

    from omnic.bench.auto import seconds_of
    from omnic.bench.measure import measure
    from omnic.bench.memory import estimate
    from omnic.bench.peers import PeerRequest, peer_names, precision_of, prepared
    from omnic.bench.runners import bundle_contestant
    from omnic.bench.thresholds import Threshold
    from omnic.bench.traffic import Traffic
    from omnic.compiler.progress import Bar
    from omnic.runtime.machine import machine
    from omnic.targets import get_target

    seconds = seconds_of(args.budget) if args.budget else None
    bundle, spec_given = _bundle(args, plan)
    module = bundle.module
    names = tuple(n.strip() for n in args.peers.split(",") if n.strip())
    names = peer_names() if names == ("all",) else names
    if names and not spec_given:
        raise InputError("--peers are built from the model's own numbers", "give the spec instead of the bundle")
    vocab, capacity = int(str(module.meta["vocab"])), int(str(module.meta["capacity"]))
    if seconds is None:
        plan.check(capacity, vocab)
    manifest = bundle.manifest
    ours = bundle_contestant(bundle.path, manifest.target, manifest.model, plan.threads)
    others = [_other(Path(path), vocab, capacity, plan) for path in args.against]
    precision = precision_of(module)
    about: dict[str, Any] = {"target": manifest.target, "weights": str(precision),
                             "numeric class": manifest.numeric_class, "omnic": manifest.omnic, "threads": plan.threads}
    canary: Canary | None = None
    with Bar(f"measure {manifest.model}") as bar:
        if not args.no_canary:
            bar("hear the canary", 0.0)
            canary = _canary(args, manifest.target, plan.threads)
            about["canary"] = str(canary)
        absent: dict[str, str] = {}
        if names:
            bar("build the peers", 0.0)
            request = PeerRequest(bundle.spec, Path(args.weights) if args.weights else None, args.seed, precision,
                                  capacity, plan.threads, FOLDER / "peers")
            peers, absent = prepared(names, request)
            others += peers
        measured = measure(manifest.model, [ours, *others], plan, vocab, Traffic.of(module), machine(), bar, absent,
                           about, budget=None if seconds is None else (seconds, capacity))
        bar("look at what ran", 1.0)
        ids = np.arange(3, 3 + max(1, min(PROBE, vocab - 3, capacity - STEPS)))
        ran = get_target(manifest.target).ran(bundle, ids, STEPS, plan.threads)
    engine = canary.peak if canary else measured.empty[ours.name]
    measured = replace(measured, ran=tuple(ran), memory=estimate(module, measured.plan, engine))
    promised: list[Threshold] = []
    if bundle.from_spec and bundle.spec.budget.memory:
        promised.append(Threshold(preset=manifest.model, metric="peak_bytes", max=float(bundle.spec.budget.memory)))
    return measured, promised


def _other(path: Path, vocab: int, capacity: int, plan: Plan) -> Contestant:
    """Return a bundle of ``--against``."""
    from omnic.bench.runners import bundle_contestant
    from omnic.runtime.bundle import open_bundle

    bundle = open_bundle(path)
    meta = bundle.module.meta
    if (int(str(meta["vocab"])), int(str(meta["capacity"]))) != (vocab, capacity):
        raise InputError(f"--against {path}: a model of {meta['vocab']} words and {meta['capacity']} tokens",
                         f"compare bundles of one model: the measured one has {vocab} words and {capacity} tokens")
    return bundle_contestant(bundle.path, bundle.manifest.target, bundle.manifest.model, plan.threads, named=True)


def _canary(args: argparse.Namespace, target: str, threads: int) -> Canary:
    """Run the canary, and warn where it is slow."""
    import sys

    from omnic.bench.canary import sing
    from omnic.runtime.machine import processor

    found = sing(target, threads, processor(), None if args.no_history else args.history, FOLDER / "canary")
    if found.slow:
        print(f"warning: the canary was slow: {found}; the machine is busy, or not as it was", file=sys.stderr)
    return found


def _bundle(args: argparse.Namespace, plan: Plan) -> tuple[Bundle, bool]:
    """Return the bundle to measure, and whether a spec was given."""
    bundle = given_bundle(args)
    if bundle is not None:
        return bundle, False
    from omnic.api import compile as compile_model
    from omnic.compiler.options import key_values, with_passes
    from omnic.spec import load_spec

    spec = with_passes(load_spec(args.model), args.passes)
    made = compile_model(spec, args.target or "onnx", weights=args.weights, seed=args.seed,
                         options=key_values(args.option), parity="off", threads=plan.threads)
    return made, True


def _as_dict(measured: Measurement, verdicts: list[Verdict]) -> dict[str, Any]:
    from dataclasses import asdict

    figures = [{**asdict(f), "tokens_per_second": f.per_second} for f in measured.figures]
    return {
        **asdict(measured), "figures": figures,
        "thresholds": [{**v.threshold.model_dump(), "found": v.found, "ok": v.ok} for v in verdicts],
    }  # fmt: skip
