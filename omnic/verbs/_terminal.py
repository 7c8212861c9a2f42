"""The terminal side of ``omnic chat``: reading lines, streaming answers, commands."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from omnic.errors import InputError, OmnicError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from omnic.runtime.conversation import Conversation
    from omnic.runtime.generation import Generation
    from omnic.runtime.sampling import Sampling

COMMANDS = {
    "/help": "these lines",
    "/system [TEXT]": "show or set the system prompt (starts over)",
    "/set NAME VALUE": "set max_new or a sampling option, such as temperature 0.5; alone: show them",
    "/retry": "answer the last question again",
    "/undo": "take the last question and answer back",
    "/clear": "forget the conversation",
    "/save FILE": "write the conversation as JSON",
    "/quit": "leave (so does Ctrl-D)",
}
BLOCK = '"""'
# C0 and C1 controls but line feed and tab: U+2400 has a picture of each C0 one, the others become a mark.
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


class Interrupts:
    """While an answer runs, the first Ctrl-C asks it to end; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take Ctrl-C for this answer."""
        self.asked = False
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class ChatTerminal:
    """One chat in a terminal, or over a pipe (then without prompts and colours).

    Args:
        conversation: what is said.
        console: where remarks go (standard error).
        read: returns the next line without its end; raises EOFError at the end.
        out: where answers go; standard output when None.
        lively: whether a person is watching.
    """

    def __init__(
        self,
        conversation: Conversation,
        console: Console,
        read: Callable[[str], str],
        out: TextIO | None = None,
        lively: bool = True,
    ) -> None:
        self.conversation, self.console, self.read, self.lively = conversation, console, read, lively
        self.out = out or sys.stdout
        self.interrupts = Interrupts()

    def greet(self, name: str) -> None:
        """Say which model this is."""
        if self.lively:
            info = self.conversation.model.session.info
            self.console.print(f"[bold]{name}[/bold]  {info.kind}, context {info.capacity:,} tokens", highlight=False)
            self._say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")

    def loop(self) -> None:
        """Talk until the end of the input."""
        while True:
            try:
                if not self._turn():
                    return
            except KeyboardInterrupt:  # at the prompt, or between two answers; an answer has its own handling
                self.console.print("\n[dim]Ctrl-D or /quit leaves[/dim]", highlight=False)

    def _turn(self) -> bool:
        """Read one line and do what it says; return False to leave."""
        try:
            line = self._next()
        except EOFError:
            if self.lively:
                self.console.print()
            return False
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self._command(line)
            if line.strip():
                self.answer(line.removeprefix("/") if line.startswith("//") else line)
        except OmnicError as error:
            if not self.lively:
                raise
            self.console.print(f"[red]{_plain(error.render())}[/red]", highlight=False)
        return True

    def answer(self, question: str) -> None:
        """Ask the model and stream what it says."""
        with self.interrupts.watching():
            stream = self.conversation.ask(question, self.interrupts)
            started = False
            try:
                for piece in stream:
                    text = piece.text if started else piece.text.lstrip()
                    started = started or bool(text)
                    self.out.write(visible(text) if self.lively else text)
                    self.out.flush()
            except KeyboardInterrupt:
                stream.close()
            answer = self.conversation.done()
        self.out.write("\n")
        self.out.flush()
        self._remark(answer)

    def _remark(self, answer: Generation) -> None:
        if not self.lively:
            return
        stats, model = answer.stats, self.conversation.model
        used = stats.prompt_tokens + stats.new_tokens
        words = [f"{stats.new_tokens} tokens"]
        if stats.tokens_per_s is not None:
            words.append(f"{stats.tokens_per_s:.0f} tokens/s")
        if stats.ttft_s is not None:
            words.append(f"first after {stats.ttft_s:.2f} s")
        words.append(f"context {used:,} of {model.session.info.capacity:,}")
        if answer.finish in ("length", "context", "cancelled"):
            reason = {"length": "stopped at --max-new", "context": "the context is full", "cancelled": "stopped by you"}
            words.append(reason[answer.finish])
        if self.conversation.left_out:
            words.append(f"the {self.conversation.left_out} oldest messages no longer fit")
        self.console.print(f"[dim]{' · '.join(words)}[/dim]\n", highlight=False)

    def _next(self) -> str:
        """Return the next line; one that ends in a backslash goes on, and triple quotes hold several."""
        line = self.read("> " if self.lively else "")
        if line.strip().startswith(BLOCK):
            lines = [line.strip().removeprefix(BLOCK)]
            while not lines[-1].rstrip().endswith(BLOCK):
                lines.append(self.read(". " if self.lively else ""))
            return "\n".join(lines).rstrip().removesuffix(BLOCK).strip("\n")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read(". " if self.lively else "")
        return line

    def _command(self, line: str) -> bool:
        """Run a command; return False to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/set": self._set,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
        }
        if name not in actions:
            near = nearest(name, [*actions, "/quit"])
            raise InputError(f"there is no command {name}", f"did you mean {near}?" if near else "see: /help")
        actions[name](rest)
        return True

    def _say(self, text: str) -> None:
        self.console.print(f"[dim]{_plain(text)}[/dim]", highlight=False)

    def _help(self, _: str) -> None:
        for name, text in COMMANDS.items():
            self._say(f"  {name:<16} {text}")
        self._say('  a line that ends in \\ goes on; """ begins and ends several lines; // begins a line with /')

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = text
            self.conversation.clear()
        self._say(f"system prompt: {self.conversation.system or '(none)'}")

    def _set(self, text: str) -> None:
        sampling: Sampling = self.conversation.options["sampling"]
        shown: dict[str, Any] = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        shown["max_new"] = self.conversation.max_new
        if not text:
            for name, value in shown.items():
                self._say(f"  {name} = {value}")
            return
        name, _, value = text.partition(" ")
        name = name.replace("-", "_")
        if name not in shown or not isinstance(shown[name], int | float):
            near = nearest(name, list(shown))
            raise InputError(f"there is no sampling option {name}", f"did you mean {near}?" if near else "see: /set")
        new = _parsed(name, value, shown[name])
        if name == "max_new":
            if new < 1:
                raise InputError(f"max_new must be at least 1, not {new}")
            self.conversation.max_new = new
        else:
            self.conversation.options["sampling"] = replace(sampling, **{name: new})
        self._say(f"{name} = {new}")

    def _retry(self, _: str) -> None:
        question = self.conversation.undo()
        if question is None:
            raise InputError("there is no question yet")
        sampling: Sampling = self.conversation.options["sampling"]
        if sampling.temperature:  # the same seed would give the same answer
            self.conversation.options["sampling"] = replace(sampling, seed=(sampling.seed + 1) % 2**64)
        self.answer(question)

    def _undo(self, _: str) -> None:
        question = self.conversation.undo()
        self._say("there is nothing to take back" if question is None else f"taken back: {question}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self._say("the conversation is forgotten")

    def _save(self, name: str) -> None:
        import json

        from omnic.runtime.files import write_atomic

        if not name:
            raise InputError("/save needs a file name", "such as /save chat.json")
        path = Path(name).expanduser()
        messages: list[dict[str, str]] = list(self.conversation.messages)
        if self.conversation.system:
            messages.insert(0, {"role": "system", "content": self.conversation.system})
        body = json.dumps({"messages": messages}, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomic(path, body.encode())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        self._say(f"written: {path}")


def visible(text: str) -> str:
    """Return ``text`` with control characters shown as pictures, so that no answer can steer the terminal."""
    return text.translate(PICTURES)


def _parsed(name: str, text: str, now: Any) -> Any:
    """Return ``text`` as a value of the type of ``now``."""
    if isinstance(now, bool):
        if text not in ("on", "off", "true", "false"):
            raise InputError(f"{name} is on or off, not '{text}'")
        return text in ("on", "true")
    try:
        return type(now)(text)
    except ValueError as error:
        raise InputError(f"{name} is a number, not '{text}'") from error


def _plain(text: str) -> str:
    """Return ``text`` with what rich would take for markup escaped."""
    from rich.markup import escape

    return escape(text)
