"""``omnic train``: a spec becomes trained weights within a budget of hours."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError, nearest

if TYPE_CHECKING:
    from omnic.spec import Spec
    from omnic.training.config import TrainConfig
    from omnic.training.trainer import Result

NAME = "train"
HELP = "train a spec's model within a budget of hours, resumable at any moment"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or a preset's name")
    parser.add_argument(
        "--budget-hours", type=float, metavar="H", help="wall time for everything, tokenizer to evaluation"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder of the run (default runs/MODEL)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the main training, instead of a budget")
    parser.add_argument("--decay-start", type=int, metavar="N", help="first step of the learning rate's decay")
    parser.add_argument("--distill-steps", type=int, metavar="N", help="steps of the MTP distillation")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of initial weights and data order (default 0)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: all cores)")
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="eager-f32, eager-bf16, compile-f32 or compile-bf16, instead of the probe's choice",
    )
    parser.add_argument("--memory", metavar="SIZE", help="memory the run may take (default: what is available)")
    parser.add_argument("--corpus", metavar="TEXT", help="stdlib, stdlib+tests or a folder of text (default stdlib)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the recipe, see docs/training.md"
    )
    parser.add_argument(
        "--qat", nargs="?", const="", metavar="TYPE",
        help="quantisation-aware training: train the spec's weights in a storage type (t2<g64>, 'i4<g32, asym>'), or "
        "in those of its int4-packing; what is written are codes that a compile keeps",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace a run of other settings in the folder")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Train; the same command goes on with a run that was cut off."""
    from omnic.spec import load_spec

    spec = load_spec(args.spec)
    if args.qat is not None:
        return _few_bits(args, spec)
    config = _config(args.set, args.corpus)
    from omnic.training.progress import Progress
    from omnic.training.trainer import Request, train

    options: dict[str, Any] = {} if args.threads is None else {"threads": args.threads}
    request = Request(
        spec=spec,
        out=args.out or Path("runs") / spec.model,
        hours=args.budget_hours,
        steps=args.steps,
        decay_start=args.decay_start,
        distill_steps=args.distill_steps,
        seed=args.seed,
        mode=args.mode,
        memory=_memory(args.memory),
        config=config,
        force=args.force,
        **options,
    )
    return _told(train(request, Progress(sys.stderr)), args.json)


def _few_bits(args: argparse.Namespace, spec: Spec) -> int:
    """Train the spec's weights in few bits."""
    for option in ("decay_start", "distill_steps", "mode", "memory"):
        if getattr(args, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} is of the first training; --qat has no use for it",
                "leave it out: omnic train SPEC --qat TYPE --budget-hours H",
            )
    from omnic.compiler.few_bits import begin, packing_of
    from omnic.compiler.lowering import results_folder
    from omnic.ir.weights import ResultStore
    from omnic.training.progress import Progress
    from omnic.training.qat import QatConfig
    from omnic.training.qat_run import QatRequest, train_in_few_bits

    packing = packing_of(spec, args.qat)
    progress = Progress(sys.stderr)
    options: dict[str, Any] = {} if args.threads is None else {"threads": args.threads}
    request = QatRequest(
        spec=spec,
        out=args.out or Path("runs") / f"{spec.model}-qat",
        what=args.qat,
        start=lambda: begin(spec, packing, ResultStore(results_folder()), lambda what, share: None),
        hours=args.budget_hours,
        steps=args.steps,
        seed=args.seed,
        config=QatConfig.from_dict(_values(QatConfig().to_dict(), args.set, args.corpus)),
        force=args.force,
        **options,
    )
    return _told(train_in_few_bits(request, progress), args.json)


def _told(result: Result, as_json: bool) -> int:
    print(json.dumps({"out": str(result.out), **result.facts}) if as_json else result.out)
    return 0


def _config(settings: list[str], corpus: str | None) -> TrainConfig:
    from omnic.training.config import TrainConfig

    return TrainConfig.from_dict(_values(TrainConfig().to_dict(), settings, corpus))


def _values(values: dict[str, Any], settings: list[str], corpus: str | None) -> dict[str, Any]:
    """Return the values of a recipe with those of ``--set`` and ``--corpus``."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r} is not NAME=VALUE")
        if name not in values:
            near = nearest(name, sorted(values))
            raise InputError(
                f"the recipe has no value {name!r}",
                f"did you mean {near!r}?" if near else f"it has: {', '.join(sorted(values))}",
            )
        values[name] = _parsed(name, text, values[name])
    if corpus is not None:
        values["corpus"] = corpus
    return values


def _parsed(name: str, text: str, default: Any) -> Any:
    """Read a value as the type its default has."""
    try:
        if isinstance(default, list):
            parsed = [float(part) for part in text.strip("[]()").split(",")]
            if len(parsed) != len(default):
                raise ValueError
            return parsed
        return type(default)(text)
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number", list: "numbers separated by commas"}[type(default)]
        raise InputError(f"--set {name}={text}: {name} is {wanted}") from error


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    from omnic.spec.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InputError(f"--memory {text}: {error}") from error
