"""The DSL front end (``.omnic``): text to the same placed tree that YAML gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken
from lark.lark import PostLex

from omnic.errors import DiagnosticError, Span
from omnic.spec.tree import CONTROL, MAX_DEPTH, Node, Scalar, Text, read_scalar

__all__ = ["read_dsl"]

_WORDS = {
    "WORD": "a word",
    "STRING": "a text in quotes",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "COMMA": "','",
    "EQUAL": "'='",
    "_MODEL": "'model'",
    "BLOCK": "'block'",
    "_WITH": "'with'",
    "REPEAT": "'N x block'",
    "HEADS": "'heads'",
    "TARGET": "'target'",
    "BUDGET": "'budget'",
}


class _TooDeep(Exception):
    def __init__(self, token: Token) -> None:
        super().__init__()
        self.token = token


class _Layout(PostLex):
    """Keeps the newlines that end a statement: none inside brackets, after a comma or before ``with``."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Yield the tokens that count."""
        depth, comma = 0, False
        newline: Token | None = None
        for token in stream:
            if token.type == "_NL":
                newline = newline or token
                continue
            if newline is not None and not (depth or comma or token.type == "_WITH"):
                yield newline
            newline = None
            if token.type in ("LPAR", "LSQB"):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _TooDeep(token)
            elif token.type in ("RPAR", "RSQB"):
                depth = max(0, depth - 1)
            comma = token.type == "COMMA"
            yield token
        if newline is not None:
            yield newline


@cache
def _parser() -> Lark:
    grammar = (files("omnic.spec") / "spec.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", postlex=_Layout(), maybe_placeholders=False)


def read_dsl(source: Text) -> Node:
    """Return the tree of a DSL text.

    Raises:
        DiagnosticError: the text is not of the language.
    """
    control = CONTROL.search(source.text)
    if control is not None:
        message = f"the character U+{ord(control[0]):04X} is not allowed in a spec"
        raise source.error(message, source.at(control.start()))
    try:
        tree = _parser().parse(source.text)
    except _TooDeep as error:
        raise source.error(f"nested deeper than {MAX_DEPTH} levels", _Builder(source).span(error.token)) from None
    except UnexpectedInput as error:
        raise _syntax(source, error) from None
    return _Builder(source).model(tree)


def _syntax(source: Text, error: UnexpectedInput) -> DiagnosticError:
    end = source.at(max(0, len(source.text.rstrip()) - 1))
    if isinstance(error, UnexpectedCharacters):
        character = source.text[error.pos_in_stream]
        if character == '"':
            return source.error("the text in quotes does not end in its line", source.at(error.pos_in_stream))
        shown = f"'{character}'" if character.isprintable() else f"the character U+{ord(character):04X}"
        return source.error(f"{shown} does not fit here", source.at(error.pos_in_stream), _expected(error.allowed))
    if isinstance(error, UnexpectedToken):
        if error.token.type == "$END":
            return source.error("the text ends too early", end, _expected(error.accepts or error.expected))
        span = _Builder(source).span(error.token)
        shown = "the end of the line" if error.token.type == "_NL" else f"'{error.token.value}'"
        return source.error(f"{shown} does not fit here", span, _expected(error.accepts or error.expected))
    assert isinstance(error, UnexpectedEOF)
    return source.error("the text ends too early", end, _expected(error.expected))


def _expected(names: Iterable[str] | None) -> str | None:
    words = sorted({_WORDS[name] for name in names or () if name in _WORDS})
    return f"expected {', '.join(words)}" if words else None


class _Builder:
    """Turns lark's tree into nodes."""

    def __init__(self, source: Text) -> None:
        self.source = source

    def span(self, token: Token) -> Span:
        assert token.start_pos is not None
        return self.source.at(token.start_pos, len(token.value))

    def node(self, value: Scalar | list[Node] | dict[str, Node], span: Span, key: Span | None = None) -> Node:
        return Node(value, span, key, self.source)

    def model(self, start: Tree[Token]) -> Node:
        (model,) = _trees(start)
        (name,) = _tokens(model)
        root = self.node({}, self.span(name))
        self.put(root, "model", self.node(name.value, self.span(name), self.span(name)))
        for statement in _trees(model):
            self.statement(root, statement)
        return root

    def put(self, mapping: Node, key: str, value: Node) -> None:
        assert isinstance(mapping.value, dict)
        first = mapping.value.get(key)
        if first is not None:
            where = first.key or first.span
            hint = f"it is first written in line {where.line}"
            raise self.source.error(f"the key '{key}' is written twice", value.key or value.span, hint)
        mapping.value[key] = value

    def statement(self, root: Node, tree: Tree[Token]) -> None:
        if tree.data == "setting":
            self.setting(root, tree)
        elif tree.data == "block":
            self.block(root, tree)
        elif tree.data == "budget":
            (word,) = _tokens(tree)
            budget = self.node({}, self.span(word), self.span(word))
            for pair in _trees(tree):
                (key,) = _tokens(pair)
                self.put(budget, key.value, self.keyed(key, _trees(pair)[0]))
            self.put(root, "budget", budget)
        else:
            self.items(root, tree, {"heads": "heads", "targets": "targets"}[tree.data])

    def items(self, root: Node, tree: Tree[Token], name: str) -> None:
        (word,) = _tokens(tree)
        result = self.node({}, self.span(word), self.span(word))
        for item in _trees(tree):
            (key,) = _tokens(item)
            if _trees(item):
                value = self.keyed(key, _trees(item)[0])
            else:
                value = self.node(True if name == "heads" else {}, self.span(key), self.span(key))
            self.put(result, key.value, value)
        self.put(root, name, result)

    def setting(self, mapping: Node, tree: Tree[Token]) -> None:
        (key,) = _tokens(tree)
        value, *extra = _trees(tree)
        if key.value == "passes" and value.data == "list":
            span = self.span(key)
            node = self.node([self.one_pass(item, span) for item in _trees(value)], span, span)
        else:
            node = self.keyed(key, value)
        if key.value == "vocab" and not isinstance(node.value, dict):
            node = self.node({"size": self.node(node.value, node.span, self.span(key))}, node.span, self.span(key))
        for clause in extra:
            (inner,) = _tokens(clause)
            if not isinstance(node.value, dict):
                hint = f"write {key.value} KIND(...) with {inner.value}(...)"
                raise self.source.error(f"'{key.value}' has no keys to add to", self.span(inner), hint)
            self.put(node, inner.value, self.keyed(inner, _trees(clause)[0]))
        self.put(mapping, key.value, node)

    def one_pass(self, tree: Tree[Token], near: Span) -> Node:
        """Return a pass: its name, or {name: options} where it is called with options."""
        if tree.data != "call":
            return self.value(tree, near)
        (name,) = _tokens(tree)
        options = self.fill(self.node({}, self.span(name), self.span(name)), _trees(tree)[0])
        return self.node({name.value: options}, self.span(name))

    def block(self, root: Node, tree: Tree[Token]) -> None:
        assert isinstance(root.value, dict)
        parts = {part.data: part for part in _trees(tree)}
        *repeats, word = _tokens(tree)
        start = self.span(word)
        entry = self.node({}, start)
        for repeat in repeats:
            digits = repeat.value.rstrip("x \t")
            count = self.node(read_scalar(digits), self.span(repeat), self.span(repeat))
            self.put(entry, "repeat", count)
        if "group" in parts:
            self.fill(entry, parts["group"])
        for setting in _trees(parts["body"]) if "body" in parts else ():
            self.setting(entry, setting)
        blocks = root.value.get("blocks")
        if "index" in parts:
            (number,) = _tokens(parts["index"])
            entry.key = self.span(number)
            blocks = blocks or self.open(root, {}, start)
            if not isinstance(blocks.value, dict):
                raise self.source.error("a spec either lists its blocks or overrides those it extends", entry.key)
            self.put(blocks, number.value, entry)
            return
        blocks = blocks or self.open(root, [], start)
        if not isinstance(blocks.value, list):
            raise self.source.error("a spec either lists its blocks or overrides those it extends", start)
        blocks.value.append(entry)

    def open(self, root: Node, value: list[Node] | dict[str, Node], span: Span) -> Node:
        blocks = self.node(value, span, span)
        self.put(root, "blocks", blocks)
        return blocks

    def keyed(self, key: Token, tree: Tree[Token]) -> Node:
        node = self.value(tree, self.span(key))
        node.key = self.span(key)
        return node

    def value(self, tree: Tree[Token], near: Span) -> Node:
        if tree.data == "scalar":
            (token,) = _tokens(tree)
            return self.node(self.scalar(token), self.span(token))
        if tree.data == "list":
            return self.node([self.value(item, near) for item in _trees(tree)], near)
        if tree.data == "call":
            (kind,) = _tokens(tree)
            mapping = self.node({}, self.span(kind), None)
            self.put(mapping, "kind", self.node(kind.value, self.span(kind), self.span(kind)))
            return self.fill(mapping, _trees(tree)[0])
        assert tree.data == "group"
        return self.fill(self.node({}, near), tree)

    def fill(self, mapping: Node, group: Tree[Token]) -> Node:
        """Put the arguments of ``(...)`` into a mapping; a word alone is its kind."""
        for argument in _trees(group):
            (key,) = _tokens(argument)
            if argument.data == "positional":
                self.put(mapping, "kind", self.node(key.value, self.span(key), self.span(key)))
            else:
                self.put(mapping, key.value, self.keyed(key, _trees(argument)[0]))
        return mapping

    def scalar(self, token: Token) -> Scalar:
        if token.type == "WORD":
            return read_scalar(token.value)
        try:
            text = json.loads(token.value)
            text.encode("utf-8")
        except ValueError:
            hint = 'escapes are \\" \\\\ \\n \\t \\uXXXX'
            raise self.source.error("the text in quotes has a wrong escape", self.span(token), hint) from None
        return text


def _trees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]


def _tokens(tree: Tree[Token]) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token)]
