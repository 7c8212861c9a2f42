"""``omnic chat BUNDLE``: talk to a compiled model in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

from omnic.errors import InputError
from omnic.verbs import _sampling

NAME = "chat"
HELP = "talk to a compiled model in the terminal"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that omnic compile wrote")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    _sampling.add_options(parser, max_new=512)


def run(args: argparse.Namespace) -> int:
    """Talk until the end of the input."""
    from rich.console import Console

    from omnic.runtime.conversation import Conversation
    from omnic.verbs._terminal import ChatTerminal

    lively = sys.stdin.isatty() and sys.stdout.isatty()
    console = Console(stderr=True)
    with console.status("loading") if lively else contextlib.nullcontext():
        model = _sampling.load(args)
        if model.tokenizer is None:
            raise InputError(
                "this model has no tokenizer, so it cannot chat",
                "name a tokenizer in the spec and compile again; omnic run --ids takes and gives token ids",
            )
        sampling = _sampling.sampling_of(args, model)
        model.template  # noqa: B018  a template that is wrong is said now, not at the first question
    conversation = Conversation(model, args.system, args.max_new, sampling=sampling, stop=args.stop)
    chat = ChatTerminal(conversation, console, _reader(lively), lively=lively)
    chat.greet(model.bundle.manifest.model if model.bundle else "model")
    chat.loop()
    return 0


def _reader(lively: bool) -> Callable[[str], str]:
    """Return what reads a line: with editing and history for a person, plainly from a pipe."""
    if lively:
        with contextlib.suppress(ImportError):  # some Pythons are built without it; lines are then not editable
            import readline  # noqa: F401  its import gives input() editing and history

        return input

    def read(_: str) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read
