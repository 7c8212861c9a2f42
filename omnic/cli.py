"""The command line: finds the verb, parses its options, and turns every outcome into an exit code.

==== ==========================================================================
code meaning
==== ==========================================================================
0    done
1    a check found a difference, or a threshold failed
2    the input is wrong
3    a package, a device or memory that this machine does not have
4    an internal error: a defect of omnic
130  interrupted with Ctrl-C
141  the reader of our output went away (``omnic list | head -1``)
==== ==========================================================================

Errors go to stderr as one message; with ``--json`` they are also an object ``{"error": ...}`` on
stdout.  A traceback appears only with ``--debug``; without it a defect leaves its traceback in a
file that the message names.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from omnic import __version__, verbs
from omnic.errors import Diagnostic, DiagnosticError, InputError, InternalError, MissingExtraError, OmnicError, nearest

__all__ = ["main"]

INTERRUPTED = 130
BROKEN_PIPE = 141

# The extra of pyproject.toml that brings a package which a verb may miss.
EXTRA_OF = {
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxruntime": "onnx",
    "torch": "torch",
    "psutil": "train",
    "onnxruntime_genai": "bench",
    "transformers": "bench",
    "coremltools": "coreml",
    "executorch": "executorch",
    "torchao": "executorch",
    "tvm": "tvm",
    "torch_mlir": "mlir",
}

# What the machine, and not our code, refused: the remedy for each.
REFUSALS = {
    errno.ENOSPC: "free some disk space, or choose another place with -o",
    errno.EDQUOT: "free some of your disk quota, or choose another place with -o",
    errno.EFBIG: "the limit on file sizes is reached (ulimit -f): raise it, or choose another place with -o",
    errno.EROFS: "choose a place that can be written with -o",
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage as an :class:`InputError`."""

    def error(self, message: str) -> NoReturn:
        raise InputError(self._with_suggestion(message), f"see: {self.prog} --help")

    def _with_suggestion(self, message: str) -> str:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            return message
        option = unknown.split()[0].split("=")[0]
        known = [text for action in self._actions for text in action.option_strings]
        near = nearest(option, known) if option.startswith("-") else None
        return f"{message}; did you mean {near}?" if near else message


def overview() -> str:
    """Return the text of ``omnic --help``: every verb under its heading."""
    lines = [
        "usage: omnic VERB [options]",
        "",
        "One spec describes a model; omnic trains it, compiles it for a device, runs it and proves the result.",
    ]
    helps = verbs.catalogue()
    width = max((len(name) for name in helps), default=0)
    grouped = {name for _, names in verbs.GROUPS for name in names}
    for heading, names in verbs.GROUPS:
        present = [name for name in (names or helps) if name in helps and (names or name not in grouped)]
        if present:
            lines += ["", f"{heading}:", *(f"  {name:<{width}}  {helps[name]}" for name in present)]
    lines += [
        "",
        "options:",
        "  -h, --help  this text; `omnic VERB --help` describes one verb",
        "  --version   the version",
        "  --debug     show the traceback of an internal error",
    ]
    return "\n".join(lines)


def parser_of(verb: str) -> tuple[_Parser, Any]:
    """Return the parser and the module of one verb."""
    module = verbs.load(verb)
    parser = _Parser(prog=f"omnic {verb}", description=module.HELP, allow_abbrev=False)
    module.configure(parser)
    if "--debug" not in parser._option_string_actions:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return parser, module


def _dispatch(argv: Sequence[str]) -> int:
    """Run the verb that ``argv`` names and return its exit code."""
    rest = list(argv)
    while rest and rest[0] == "--debug":
        rest.pop(0)
    if not rest:
        print(overview(), file=sys.stderr)
        return 2
    first = rest.pop(0)
    if first in ("-h", "--help", "help"):
        if first == "help" and rest:
            return _dispatch([rest[0], "--help"])
        print(overview())
        return 0
    if first in ("--version", "-V"):
        print(f"omnic {__version__}")
        return 0
    known = verbs.names()
    if first not in known:
        if first.startswith("-"):
            raise InputError(f"unknown option {first}", "options of a verb follow it: omnic VERB [options]")
        near = nearest(first, known)
        raise InputError(
            f"unknown verb '{first}'" + (f"; did you mean '{near}'?" if near else ""),
            "see: omnic --help",
        )
    parser, module = parser_of(first)
    try:
        args = parser.parse_args(rest)
    except SystemExit as stop:  # --help of a verb
        return int(stop.code or 0)
    return int(module.run(args))


def _as_json(error: OmnicError) -> str:
    """Return the error as the one JSON object of stdout."""
    body: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, DiagnosticError):
        body["diagnostics"] = [_diagnostic_json(diagnostic) for diagnostic in error.diagnostics]
    return json.dumps({"error": body}, ensure_ascii=False)


def _diagnostic_json(diagnostic: Diagnostic) -> dict[str, Any]:
    span = diagnostic.span
    return {
        "message": diagnostic.message,
        "hint": diagnostic.hint,
        "file": span.file if span else None,
        "line": span.line if span else None,
        "column": span.column if span else None,
    }


def _report(error: OmnicError, argv: Sequence[str]) -> int:
    """Print one error and return its exit code."""
    if "--json" in argv:
        print(_as_json(error))
    print(error.render(), file=sys.stderr)
    return error.exit_code


def _defect(error: BaseException, argv: Sequence[str]) -> InternalError:
    """Return the error to show for a defect, its traceback kept in a file."""
    text = "".join(traceback.format_exception(error))
    if "--debug" in argv:
        sys.stderr.write(text)
        where = "the traceback above"
    else:
        where = _keep_traceback(text, argv)
    if isinstance(error, InternalError):
        shown = InternalError(error.message.removeprefix("internal error: "))
    else:
        detail = str(error).strip().split("\n")[0]
        shown = InternalError(f"{type(error).__name__}: {detail}" if detail else type(error).__name__)
    shown.hint = f"{shown.hint} and {where}"
    return shown


def _keep_traceback(text: str, argv: Sequence[str]) -> str:
    """Write the traceback to a new file and return its path."""
    import platform
    import shlex

    head = (
        f"omnic {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"command: omnic {shlex.join(argv)}\n\n"
    )
    try:
        handle, path = tempfile.mkstemp(prefix="omnic-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(head + text)
    except OSError:  # no place to keep it: the terminal is the only one left
        sys.stderr.write(text)
        return "the traceback above"
    return path


def _machine_error(error: BaseException) -> OmnicError | None:
    """Return what the machine lacks or refused, or None when ``error`` is a defect of ours."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        return MissingExtraError(f"the package '{package}'", EXTRA_OF[package]) if package in EXTRA_OF else None
    if isinstance(error, MemoryError):
        lacking = OmnicError("there is not enough memory", "take a smaller model, context or batch")
        lacking.exit_code = MissingExtraError.exit_code
        return lacking
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return InputError(f"{where}{os.strerror(error.errno)}", REFUSALS[error.errno])
    return None


def _reader_is_gone() -> bool:
    """Return whether nobody reads our stdout or stderr any more; if so, later writes to it go nowhere.

    Asked after a :class:`BrokenPipeError`, which may as well come from a pipe of the verb's own.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        if poll.poll(0):  # POLLERR on Linux, POLLHUP on macOS
            gone = True
            with open(os.devnull, "wb") as sink:
                os.dup2(sink.fileno(), stream.fileno())
    return gone


def _outcome(arguments: Sequence[str]) -> int:
    """Return the exit code of one command line, its error printed."""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except InternalError as error:
        return _report(_defect(error, arguments), arguments)
    except OmnicError as error:
        return _report(error, arguments)
    except Exception as error:  # the boundary to the user: no traceback passes it
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return BROKEN_PIPE
        return _report(_machine_error(error) or _defect(error, arguments), arguments)


def _open_missing_streams() -> None:
    """Give the null device to a standard stream that the shell closed (``omnic chat <&-``).

    Python leaves None there, and the next file opened would take its descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open until we end


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: the arguments without the program's name; ``sys.argv[1:]`` when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    try:
        return _outcome(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the pipe broke while an error was being reported
        return BROKEN_PIPE if _reader_is_gone() else InternalError.exit_code
