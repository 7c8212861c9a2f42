"""The errors of omnic: typed, placed, with a remedy and the exit code of the command line.

A leaf module: every room may import it and it imports none of them.  Wrong input is always an
:class:`OmnicError`; anything else that escapes is a defect of ours and the command line reports it
as one (exit code 4).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "BundleError",
    "CheckFailed",
    "DiagnosticError",
    "Diagnostic",
    "InputError",
    "InternalError",
    "MissingDeviceError",
    "MissingExtraError",
    "OmnicError",
    "Span",
    "nearest",
]


@dataclass(frozen=True)
class Span:
    """A place in a text file: 1-based line and column, the width of the offending text.

    ``source`` is the whole line the span lies on, kept so that a caret can be drawn without
    reading the file again (it may be standard input, or gone).
    """

    file: str
    line: int
    column: int
    width: int = 1
    source: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Diagnostic:
    """One thing that is wrong: what, where, and what to do about it."""

    message: str
    span: Span | None = None
    hint: str | None = None

    def render(self) -> str:
        """Return ``file:line:col: error: what``, the line with its caret, and the hint."""
        where = f"{self.span}: " if self.span else ""
        lines = [f"{where}error: {self.message}"]
        if self.span and self.span.source:
            source = self.span.source.rstrip("\n").replace("\t", " ")
            width = max(1, min(self.span.width, len(source) - self.span.column + 1))
            lines.append(f"  {source}")
            lines.append("  " + " " * (self.span.column - 1) + "^" * width)
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class OmnicError(Exception):
    """Base of every error a user may see.

    Args:
        message: what went wrong, with the place when there is no :class:`Span`.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def render(self) -> str:
        """Return the text for a terminal."""
        return Diagnostic(self.message, hint=self.hint).render()


class InputError(OmnicError):
    """A value, file or combination that omnic cannot take (exit code 2)."""


class DiagnosticError(InputError):
    """Several placed problems of one text, reported together (exit code 2)."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(d.message for d in self.diagnostics))

    def render(self) -> str:
        """Return every diagnostic, one after the other."""
        return "\n".join(d.render() for d in self.diagnostics)


class BundleError(InputError):
    """A bundle, checkpoint or weight file that is damaged, of another version, or incomplete."""


class CheckFailed(OmnicError):
    """A check ran and found a difference, or a threshold was missed (exit code 1)."""

    exit_code = 1


class MissingExtraError(OmnicError):
    """A package or a device that this machine does not have (exit code 3)."""

    exit_code = 3

    def __init__(self, what: str, extra: str | None = None) -> None:
        hint = f"install it: pip install 'omnic[{extra}]'" if extra else None
        super().__init__(f"{what} is not available here", hint)


class MissingDeviceError(OmnicError):
    """A program that only another device runs (exit code 3).

    Args:
        what: the program.
        device: where it runs.
    """

    exit_code = 3

    def __init__(self, what: str, device: str) -> None:
        super().__init__(f"{what}, which does not run here", f"it needs {device}")


class InternalError(OmnicError):
    """A broken promise of omnic's own code (exit code 4)."""

    exit_code = 4

    def __init__(self, message: str) -> None:
        super().__init__(
            f"internal error: {message}",
            "this is a defect of omnic, not of your input: please report it with the command you ran",
        )


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the entry of ``known`` closest to ``name``, or None when none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None
