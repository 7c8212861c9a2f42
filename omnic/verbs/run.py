"""``omnic run BUNDLE``: continue a prompt.  The text alone goes to stdout, figures to stderr."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError
from omnic.verbs import _sampling

if TYPE_CHECKING:
    from omnic.runtime.generation import Generation
    from omnic.runtime.model import Model

NAME = "run"
HELP = "continue a prompt with a compiled model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that omnic compile wrote")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeat it to run a batch")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="the prompt is this file (- is stdin)")
    parser.add_argument("--ids", metavar="IDS", help="the prompt is these token ids: 5,7,9")
    parser.add_argument("--system", metavar="TEXT", help="answer as in a chat, with this system prompt")
    parser.add_argument("--template", type=Path, metavar="FILE", help="Jinja text with {{ prompt }} and {{ system }}")
    parser.add_argument("--no-bos", action="store_true", help="do not begin with the token that starts a text")
    parser.add_argument("--json", action="store_true", help="print one JSON object: texts, ids and figures")
    _sampling.add_options(parser, max_new=128)


def run(args: argparse.Namespace) -> int:
    """Generate and print."""
    prompts = _prompts(args)  # what is wrong with the command line is said before a model is loaded
    model = _sampling.load(args)
    options: dict[str, Any] = {"sampling": _sampling.sampling_of(args, model), "stop": args.stop}
    ids = _encoded(args, model, prompts, options)
    stream = model.generate(ids, args.max_new, stream=True, **options)
    if not args.json and len(ids) == 1:
        return _print_as_it_comes(stream, model)
    answers = stream.results()
    if args.json:
        _print_json(answers, ids)
        return 0
    for number, answer in enumerate(answers):
        print(_shown(answer, model) + ("\n" if number + 1 < len(answers) else ""))
        print(f"[{number}] {answer.stats.line()}, ended by {answer.finish}", file=sys.stderr)
    return 0


def _prompts(args: argparse.Namespace) -> list[str | list[int]]:
    given = [bool(args.prompt), args.prompt_file is not None, args.ids is not None]
    if sum(given) != 1:
        raise InputError(
            "give the prompt once: --prompt TEXT, --prompt-file FILE or --ids 5,7,9"
            if any(given)
            else "no prompt: give --prompt TEXT, --prompt-file FILE or --ids 5,7,9"
        )
    if args.ids is not None:
        if args.system is not None or args.template is not None:
            raise InputError("--ids are the whole prompt; --system and --template need text")
        return [_ids(args.ids)]
    if args.prompt_file is not None:
        return [_read(args.prompt_file)]
    return list(args.prompt)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    bad = next((word for word in words if not word.isdigit()), None)
    if bad is not None or not words:
        raise InputError(f"--ids: '{bad or text}' is not a token id", "write them as 5,7,9")
    return [int(word) for word in words]


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _encoded(
    args: argparse.Namespace, model: Model, prompts: list[str | list[int]], options: dict[str, Any]
) -> list[list[int]]:
    """Return the ids of each prompt; a chat also sets what ends the answer."""
    if args.system is not None and args.template is None:
        template, tokenizer = model.template, model.needed_tokenizer
        options["end_ids"] = sorted(template.end_ids(tokenizer))
        options["stop"] = [*args.stop, *template.stop]
        chats = [[{"role": "system", "content": args.system}, {"role": "user", "content": str(p)}] for p in prompts]
        return [template.encode(messages, tokenizer) for messages in chats]
    if args.template is not None:
        from omnic.runtime.templates import prompt_template

        prompts = [prompt_template(args.template, prompt=str(p), system=args.system or "") for p in prompts]
    return [model.encode(prompt, bos=False if args.no_bos else None) for prompt in prompts]


def _shown(answer: Generation, model: Model) -> str:
    return answer.text if model.tokenizer is not None else " ".join(str(token) for token in answer.ids)


def _print_as_it_comes(stream: Any, model: Model) -> int:
    from omnic.verbs._terminal import visible

    separator, person = "", sys.stdout.isatty()
    for piece in stream:
        if model.tokenizer is not None:
            sys.stdout.write(visible(piece.text) if person else piece.text)
        elif piece.id is not None:
            sys.stdout.write(f"{separator}{piece.id}")
            separator = " "
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    answer = stream.results()[0]
    print(f"{answer.stats.line()}, ended by {answer.finish}", file=sys.stderr)
    return 0


def _print_json(answers: list[Generation], ids: list[list[int]]) -> None:
    import json

    bodies = [{**answer.to_json(), "prompt_ids": prompt} for answer, prompt in zip(answers, ids, strict=True)]
    print(json.dumps(bodies[0] if len(bodies) == 1 else {"answers": bodies}, ensure_ascii=False))
