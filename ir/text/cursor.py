"""Reading tokens one after the other: expectations, values, types and recipes."""

from __future__ import annotations

import math

from omnic.errors import Diagnostic, InputError, nearest
from omnic.ir.dims import parse_dim
from omnic.ir.graph import AttrValue, Loc, Recipe
from omnic.ir.text.lexer import Source, Token
from omnic.ir.text.tree import Name, TypeTree
from omnic.ir.types import DType, TensorType, parse_element, parse_type

__all__ = ["MAX_DEPTH", "Bad", "Cursor"]

MAX_DEPTH = 32  # lists in lists, recipes in recipes
MAX_RANK = 8
_DTYPES = {d.value: d for d in DType}
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")


class Bad(Exception):
    """One thing that cannot be read; caught where reading can go on."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


class Cursor:
    """A position in the tokens of a source."""

    def __init__(self, source: Source, tokens: list[Token]) -> None:
        self.source = source
        self.tokens = tokens
        self.at = 0
        self._types: dict[str, TensorType] = {}

    # -- tokens -------------------------------------------------------------------------------------
    @property
    def here(self) -> Token:
        """The next token."""
        return self.tokens[self.at]

    @property
    def after(self) -> Token:
        """The token after the next one."""
        return self.tokens[min(self.at + 1, len(self.tokens) - 1)]

    def take(self) -> Token:
        """Return the next token and go past it (the last one stays)."""
        token = self.tokens[self.at]
        if self.at < len(self.tokens) - 1:
            self.at += 1
        return token

    def has(self, kind: str) -> bool:
        """Go past the next token if it is a ``kind``; return whether it was."""
        if self.tokens[self.at].kind != kind:
            return False
        self.at += 1
        return True

    def has_word(self, word: str) -> bool:
        """Go past the next token if it is this word; return whether it was."""
        token = self.tokens[self.at]
        if token.kind != "word" or token.text != word:
            return False
        self.at += 1
        return True

    def expect(self, kind: str, what: str = "") -> Token:
        """Return the next token, which must be a ``kind``.

        Raises:
            Bad: it is something else; ``what`` says what belongs here.
        """
        if self.tokens[self.at].kind != kind:
            raise self.unexpected(what or f"'{kind}'")
        return self.take()

    def unexpected(self, what: str) -> Bad:
        """Return the error that ``what`` belongs where the next token is."""
        token = self.here
        if token.leads and self.at:
            before = self.tokens[self.at - 1]
            where = "the end of the text" if token.kind == "end" else "the end of the line"
            return Bad(Diagnostic(f"expected {what} at {where}", self.source.span(before.end, before.end)))
        if token.kind == "end":
            return Bad(Diagnostic(f"the text is empty, expected {what}", self.source.span(0, 0)))
        return self.misplaced(what)

    def misplaced(self, what: str) -> Bad:
        """Return the error that the next token stands where ``what`` belongs."""
        token = self.here
        shown = f"{token.kind}{token.text}" if token.kind in "%@" else f"'{token.text}'"
        return Bad(Diagnostic(f"expected {what}, got {shown}", self.source.span(token.start, token.end)))

    def bad(self, message: str, start: int, end: int, hint: str | None = None) -> Bad:
        """Return an error about ``source.text[start:end]``."""
        return Bad(Diagnostic(message, self.source.span(start, end), hint))

    # -- names and numbers --------------------------------------------------------------------------
    def sigil_name(self, sigil: str, what: str) -> Name:
        """Read ``%name`` or ``@name``."""
        token = self.expect(sigil, what)
        return Name(token.start, token.end, token.text)

    def word(self, what: str) -> Name:
        """Read a plain or quoted word."""
        if self.here.kind not in ("word", "string"):
            raise self.unexpected(what)
        token = self.take()
        return Name(token.start, token.end, token.text)

    def integer(self, what: str) -> int:
        """Read a number, maybe negative."""
        negative = self.has("-")
        token = self.expect("int", what)
        return -self._number(token) if negative else self._number(token)

    def _number(self, token: Token) -> int:
        if len(token.text) > 20:
            raise self.bad("a number of at most 20 digits is wanted", token.start, token.end)
        return int(token.text)

    # -- values -------------------------------------------------------------------------------------
    def value(self, depth: int = 0) -> AttrValue:
        """Read an attribute value: number, string, ``true``/``false``, element type, dim, or list of them."""
        token = self.here
        if token.leads and depth == 0:
            raise self.unexpected("a value")
        if token.kind == "[":
            return self._list(depth)
        if token.kind == "string":
            return self.take().text
        if token.kind == "element" or (token.kind == "word" and token.text in _DTYPES):
            return self._element()
        negative = token.kind == "-"
        number = self.after if negative else token
        if number.kind == "float" or (number.kind == "word" and number.text in ("inf", "nan")):
            self.at += 2 if negative else 1
            found = float(number.text)
            if math.isinf(found) and number.kind == "float":
                raise self.bad(f"{number.text} is beyond 64-bit floating point", number.start, number.end)
            return -found if negative else found
        if token.kind == "word" and token.text in ("true", "false"):
            return self.take().text == "true"
        return self._dim()

    def _element(self) -> AttrValue:
        token = self.take()
        try:
            return parse_element(token.text)
        except InputError as error:
            raise self.bad(error.message, token.start, token.end, error.hint) from None

    def _list(self, depth: int) -> AttrValue:
        opening = self.expect("[")
        if depth >= MAX_DEPTH:
            raise self.bad(f"lists are nested deeper than {MAX_DEPTH}", opening.start, opening.end)
        items: list[AttrValue] = []
        while not self.has("]"):
            items.append(self.value(depth + 1))
            if self.here.kind != "]":
                self.expect(",", "',' or ']'")
        return tuple(items)

    def _dim(self) -> AttrValue:
        first = self.here
        depth, parts = 0, list[str]()
        while True:
            token = self.here
            closes = token.kind in (",", "]", "}", ")") or (token.leads and bool(parts))
            if token.kind == "end" or (depth == 0 and closes):
                break
            depth += (token.kind in _OPEN) - (token.kind in _CLOSE)
            parts.append(self._part(token))
            self.take()
        if not parts:
            raise self.unexpected("a value")
        text = " ".join(parts)
        try:
            return parse_dim(text)
        except InputError as error:
            raise self.bad(error.message, first.start, self.tokens[self.at - 1].end, error.hint) from None

    def _part(self, token: Token) -> str:
        if token.kind == "int":
            self._number(token)
        return f"{token.kind}{token.text}" if token.kind in "%@" else token.text

    # -- types --------------------------------------------------------------------------------------
    def type(self) -> TypeTree:
        """Read a tensor type such as ``f32[B, T, 256]``."""
        first = self.here
        if first.kind not in ("word", "element"):
            raise self.unexpected("a type such as f32[B, 16]")
        parts = [self.take().text]
        self.expect("[")
        parts.append("[")
        while self.here.kind != "]":
            token = self.here
            if token.kind in ("end", "{", "}", "=", ":", "->", "%", "@", "["):
                raise self.unexpected("']'")
            parts.append(self._part(token))
            self.take()
        end = self.take().end
        parts.append("]")
        text = " ".join(parts)
        known = self._types.get(text)
        if known is None:
            try:
                known = self._types[text] = parse_type(text)
            except InputError as error:
                raise self.bad(error.message, first.start, end, error.hint) from None
            if known.rank > MAX_RANK:
                raise self.bad(f"a tensor has at most {MAX_RANK} dims, this has {known.rank}", first.start, end)
        return TypeTree(first.start, end, known)

    # -- small forms --------------------------------------------------------------------------------
    def recipe(self, depth: int = 0) -> Recipe:
        """Read a recipe: ``kind(recipe, ..., name = value, ...)``."""
        kind = self.expect("word", "a recipe such as normal(std = 0.02)")
        if depth >= MAX_DEPTH:
            raise self.bad(f"recipes are nested deeper than {MAX_DEPTH}", kind.start, kind.end)
        self.expect("(")
        inputs: list[Recipe] = []
        args: dict[str, AttrValue] = {}
        while not self.has(")"):
            if self.here.kind == "word" and self.after.kind == "(":
                inputs.append(self.recipe(depth + 1))
            else:
                key = self.word("a recipe or an argument")
                if key.text in args:
                    raise self.bad(f"'{key.text}' is given twice", key.start, key.end)
                self.expect("=")
                args[key.text] = self.value()
            if self.here.kind != ")":
                self.expect(",", "',' or ')'")
        return Recipe(kind.text, args, tuple(inputs))

    def location(self) -> Loc:
        """Read ``("file":line:column)``."""
        self.expect("(")
        file = self.expect("string", "the name of a file").text
        self.expect(":")
        line = self.integer("a line")
        self.expect(":")
        column = self.integer("a column")
        self.expect(")")
        return Loc(file, line, column)

    def choice(self, known: tuple[str, ...], what: str) -> str:
        """Read one of the words ``known``."""
        token = self.expect("word", what)
        if token.text not in known:
            near = nearest(token.text, known)
            hint = f"did you mean '{near}'?" if near else f"one of: {', '.join(known)}"
            raise self.bad(f"'{token.text}' is not {what}", token.start, token.end, hint)
        return token.text
