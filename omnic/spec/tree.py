"""The tree both front ends produce: plain values, each with the place it was written at."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from omnic.errors import Diagnostic, DiagnosticError, Span

__all__ = ["CONTROL", "MAX_DEPTH", "MAX_TEXT", "Node", "Path", "Scalar", "Text", "path_text", "read_scalar", "shown"]

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]

MAX_TEXT = 1 << 20  # characters; the longest spec people write is a few kB
MAX_DEPTH = 32

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")
"""Characters that no spec has: a terminal would obey them, or no file can hold them."""

_INT = re.compile(r"[-+]?\d{1,3}(?:_?\d{1,3}){0,5}\Z", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d{1,3})?|\d+[eE][-+]?\d{1,3})\Z", re.ASCII)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None}


@dataclass
class Node:
    """A value of a spec text.

    Attributes:
        value: a scalar, a list of nodes or a mapping of nodes.
        span: where the value is written.
        key: where the key that led to it is written (None in a list and at the root).
        text: the text it was read from (None for a value that omnic made).
    """

    value: Scalar | list[Node] | dict[str, Node]
    span: Span
    key: Span | None = None
    text: Text | None = field(default=None, repr=False)

    @property
    def folder(self) -> FilePath | None:
        """The folder that relative file names of this value start from."""
        return self.text.folder if self.text is not None else None

    @property
    def place(self) -> Span:
        """The key's span for mappings and lists that have one, else the value's."""
        if self.key is not None and isinstance(self.value, dict | list):
            return self.key
        return self.span

    def plain(self) -> object:
        """Return the tree as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """Return the child under a key or an index, None when there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(step)) if isinstance(step, str) else None
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def find(self, path: Sequence[str | int]) -> Node | None:
        """Return the node at ``path``, None when a step is missing."""
        node: Node | None = self
        for step in path:
            node = node.child(step) if node is not None else None
        return node

    def nearest(self, path: Sequence[str | int]) -> Node:
        """Return the deepest node that exists along ``path``."""
        node = self
        for step in path:
            below = node.child(step)
            if below is None:
                return node
            node = below
        return node

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Yield every node below this one with its path, parents first."""
        yield path, self
        if isinstance(self.value, dict):
            for key, node in self.value.items():
                yield from node.walk((*path, key))
        elif isinstance(self.value, list):
            for index, node in enumerate(self.value):
                yield from node.walk((*path, index))


@dataclass
class Text:
    """A spec text and what makes spans of it.

    ``preset`` is the preset's name (None for a user's file); ``folder`` is where its relative file
    names start.

    Raises:
        DiagnosticError: the text is longer than ``MAX_TEXT`` characters.
    """

    file: str
    text: str
    preset: str | None = None
    folder: FilePath | None = None
    lines: list[str] = field(init=False)
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.text) > MAX_TEXT:
            message = f"{self.file}: the text has {len(self.text)} characters; a spec has at most {MAX_TEXT}"
            raise DiagnosticError([Diagnostic(message)])
        self.lines = [CONTROL.sub("\ufffd", line) for line in _BREAK.split(self.text)]
        self.starts = [0, *(found.end() for found in _BREAK.finditer(self.text))]

    def at(self, offset: int, width: int = 1) -> Span:
        """Return the span at a 0-based character offset."""
        line = bisect_right(self.starts, offset)
        return self.span(line, offset - self.starts[line - 1] + 1, width)

    def span(self, line: int, column: int, width: int = 1) -> Span:
        """Return the span at 1-based ``line`` and ``column``."""
        source = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return Span(self.file, line, column, max(1, width), source)

    def error(self, message: str, span: Span, hint: str | None = None) -> DiagnosticError:
        """Return a :class:`DiagnosticError` of one problem."""
        return DiagnosticError([Diagnostic(message, span, hint)])


def read_scalar(text: str) -> Scalar:
    """Return the value an unquoted word stands for.

    Both front ends read words alike: ``true``/``false``, ``none`` (also ``null``, ``~``), whole
    numbers up to 18 digits (``_`` may group them), decimal numbers, else the word itself.  YAML's
    old ``yes``/``off``/octal readings are not taken: they turn names into values.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text) and len(text) <= 40 and math.isfinite(float(text)):
        return float(text)
    return text


def shown(value: object) -> str:
    """Return a value as the person wrote it, for a message: shortened, control characters escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else "a list"
    return str(value)


def path_text(path: Sequence[str | int]) -> str:
    """Return ``blocks[0].attention.heads`` for the path of a value."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            word = step if step.isprintable() else repr(step)
            text += f".{word}" if text else word
    return text
