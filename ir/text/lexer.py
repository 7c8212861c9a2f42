"""Source text and its tokens, with the place of each."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import NamedTuple

from omnic.errors import Diagnostic, Span
from omnic.ir.types import DType

__all__ = ["PLAIN_VALUE", "PLAIN_WORD", "Source", "Token", "is_dim_name", "quote", "tokenise"]

# Names that need no quotes: after a sigil, and standing alone (operation, attribute, result of a function).
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.]+", re.ASCII)
PLAIN_WORD = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*", re.ASCII)

_DIM_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_RESERVED = frozenset(("true", "false", "inf", "nan", "min", "max", "floordiv", "ceildiv", *(d.value for d in DType)))
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_TOKEN = re.compile(
    rf"""
    [ \t\r\f\v\ufeff]*(?:
    (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<value>[%@](?:[A-Za-z0-9_.]+|{_STRING}))
  | (?P<element>[A-Za-z]\w*<[^<>\n"]*>)
  | (?P<word>[A-Za-z_]\w*(?:\.\w+)*)
  | (?P<float>\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+))
  | (?P<int>\d+)
  | (?P<string>{_STRING})
  | (?P<sign>->|\.\.|[(){{}}\[\]:,=+\-*])
  | (?P<end>\Z)
    )
    """,
    re.VERBOSE | re.ASCII,
)


_UNTERMINATED = "unterminated string"


class Source:
    """A text with a name; turns offsets into spans."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self._starts = [0]
        self._starts += [m.end() for m in re.finditer("\n", text)]

    def line_of(self, offset: int) -> int:
        """Return the 1-based line that ``offset`` lies on."""
        return bisect_right(self._starts, offset)

    def span(self, start: int, end: int) -> Span:
        """Return the span of ``text[start:end]``, cut at the end of its first line."""
        line = self.line_of(start)
        first = self._starts[line - 1]
        last = self._starts[line] if line < len(self._starts) else len(self.text)
        row = self.text[first:last].rstrip("\r\n")
        column = min(start - first, len(row))
        return Span(self.file, line, column + 1, max(1, min(end - start, len(row) - column)), row)


class Token(NamedTuple):
    """One token.

    ``kind`` is ``%`` or ``@`` (``text`` is the name without it), ``word int float string element``, the
    sign itself, or ``end``.  ``leads`` says whether it is the first of its line.
    """

    kind: str
    text: str
    start: int
    end: int
    leads: bool


def is_dim_name(text: str) -> bool:
    """Whether a dim may be called ``text``: a plain word that means nothing else in the text form."""
    return _DIM_NAME.fullmatch(text) is not None and text not in _RESERVED


def tokenise(source: Source) -> tuple[list[Token], list[Diagnostic]]:
    """Return the tokens of ``source``, ended by an ``end`` token, and what could not be read."""
    text, at, leads = source.text, 0, True
    tokens: list[Token] = []
    problems: list[Diagnostic] = []
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            at = _report(source, at, problems)
            continue
        kind = match.lastgroup or ""
        start, at = match.span(kind)
        if kind == "newline":
            leads = True
            continue
        if kind in ("comment", "end"):
            continue
        body = text[start:at]
        if kind == "sign":
            kind = body
        elif kind == "value":
            kind, body = body[0], body[1:]
        if body[0] == '"':
            decoded = _decode(body)
            if decoded is None:
                problems.append(Diagnostic("bad escape in a string", source.span(start, at),
                                           r'a string is written as in JSON: "\n", "\"", "\\", "\u00e9"'))
            body = decoded or ""
        tokens.append(Token(kind, body, start, at, leads))
        leads = False
    tokens.append(Token("end", "", len(text), len(text), True))
    return tokens, _worst(problems)


def _worst(problems: list[Diagnostic]) -> list[Diagnostic]:
    """Return one problem a line: an unterminated string explains the others, else the first stands for all."""
    out: dict[int, Diagnostic] = {}
    for problem in problems:
        line = problem.span.line if problem.span else 0
        if line not in out or problem.message == _UNTERMINATED:
            out[line] = problem
    return list(out.values())


def _report(source: Source, at: int, problems: list[Diagnostic]) -> int:
    """Note what cannot be read at ``at`` and return where to go on."""
    text = source.text
    while text[at] in " \t\r\f\v\ufeff":
        at += 1
    line_end = text.find("\n", at)
    line_end = len(text) if line_end < 0 else line_end
    quote_at = at + 1 if text[at] in "%@" and text[at + 1 : at + 2] == '"' else at
    if text[quote_at] == '"':
        problems.append(Diagnostic(_UNTERMINATED, source.span(quote_at, line_end), "a string ends on its line"))
        return line_end
    if text[at] in "%@":
        problems.append(Diagnostic(f"a name must follow '{text[at]}'", source.span(at, at + 1)))
    else:
        problems.append(Diagnostic(f"unexpected character {text[at]!r}", source.span(at, at + 1)))
    return at + 1


def _decode(body: str) -> str | None:
    if "\\" not in body:
        return body[1:-1]
    try:
        decoded: str = json.loads(body, strict=False)
    except json.JSONDecodeError:
        return None
    return decoded


def quote(text: str) -> str:
    """Return ``text`` as a JSON string on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())
