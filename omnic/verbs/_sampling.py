"""The options of generation that `run` and `chat` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError, nearest

if TYPE_CHECKING:
    from omnic.runtime.model import Model
    from omnic.runtime.sampling import Sampling


def add_options(parser: argparse.ArgumentParser, max_new: int) -> None:
    """Declare the options."""
    parser.add_argument("--max-new", type=int, default=max_new, metavar="N", help=f"most new tokens ({max_new})")
    parser.add_argument("--greedy", action="store_true", help="always the most probable token")
    group = parser.add_argument_group("sampling (docs/runtime.md says what each does, in which order)")
    group.add_argument("--temperature", type=float, metavar="X", help="0.8 unless given; 0 is --greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="only the K most probable tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="only the most probable tokens of mass P (0.95)")
    group.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as probable as the first")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="divide the logits of seen tokens by X")
    group.add_argument("--repetition-window", type=int, metavar="N", help="seen = in the last N tokens")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="subtract X for every occurrence")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="subtract X for tokens that occur")
    group.add_argument("--ban-last", action="store_true", help="never the same token twice running")
    group.add_argument("--max-run", type=int, metavar="N", help="a token at most N times running")
    group.add_argument("--no-repeat-ngram", type=int, metavar="N", help="no N tokens in the same order twice")
    group.add_argument("--ngram-window", type=int, metavar="N", help="look for them in the last N tokens")
    group.add_argument("--allow", metavar="A:B", help="only token ids A to B-1, such as the text slice")
    group.add_argument("--bias", type=Path, metavar="FILE", help="JSON object: token id or text -> added to its logit")
    group.add_argument("--seed", type=int, metavar="N", help="of the random numbers (0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--threads", type=int, metavar="N", help="threads; unless given, the cores there really are")
    machine.add_argument("--verify", action="store_true", help="check the hash of every file of the bundle first")


PLAIN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window", "frequency_penalty",
         "presence_penalty", "max_run", "no_repeat_ngram", "ngram_window", "seed")


def sampling_of(args: argparse.Namespace, model: Model) -> Sampling:
    """Return the sampling options that were given.

    Raises:
        InputError: they are wrong or contradict each other.
    """
    from omnic.runtime.sampling import Sampling

    options: dict[str, Any] = {name: getattr(args, name) for name in PLAIN if getattr(args, name) is not None}
    if args.ban_last:
        options["ban_last"] = True
    if args.allow is not None:
        options["allow"] = _slice(args.allow)
    if args.bias is not None:
        options["bias"] = _bias(args.bias, model)
    if args.greedy and options.get("temperature"):
        raise InputError("--greedy and --temperature exclude each other")
    return Sampling.greedy(**options) if args.greedy else Sampling(**options)


def load(args: argparse.Namespace) -> Model:
    """Load the bundle that was named."""
    from omnic.api import load as load_bundle

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be at least 1, not {args.threads}")
    return load_bundle(args.bundle, threads=args.threads, verify=args.verify)


def _slice(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise InputError(f"--allow {text}: not a slice of ids", "write it as START:STOP, such as 0:32000")
    return int(first), int(last)


def _bias(path: Path, model: Model) -> dict[int, float]:
    """Read a bias file: keys are ids, or texts that are one token."""
    import json

    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InputError(f"{path}: not a JSON object", 'write {"123": -5.0, " word": 2.0}')
    bias: dict[int, float] = {}
    for key, value in body.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"{path}: the bias of {key!r} is not a number")
        bias[_token(path, key, model)] = float(value)
    return bias


def _token(path: Path, key: str, model: Model) -> int:
    if key.isdigit():
        return int(key)
    tokenizer = model.needed_tokenizer
    ids = tokenizer.encode(key)
    if len(ids) == 1:
        return ids[0]
    near = nearest(key, list(tokenizer.special_ids))
    hint = f"did you mean '{near}'?" if near else "a bias is given to single tokens; write their ids"
    raise InputError(f"{path}: {key!r} is {len(ids)} tokens, not one", hint)
