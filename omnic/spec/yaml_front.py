"""The YAML front end: text to a placed tree.

The tree is built from PyYAML's event stream, not by its constructors: events carry line and column,
nothing recursive runs on foreign text, and the parts of YAML that a spec has no use for (anchors,
aliases, tags, merge keys, several documents) are refused where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml
from yaml import events

from omnic.errors import DiagnosticError, Span
from omnic.spec.tree import MAX_DEPTH, Node, Text, read_scalar, shown

__all__ = ["read_yaml"]


@dataclass
class _Open:
    """A mapping or list whose end has not been read yet."""

    node: Node
    key: str | None = None
    key_span: Span | None = None
    firsts: dict[str, int] = field(default_factory=dict)


def read_yaml(source: Text) -> Node:
    """Return the tree of a YAML text.

    Raises:
        DiagnosticError: the text is not YAML, or uses what a spec does not have.
    """
    try:
        return _build(source, list(yaml.parse(source.text, Loader=yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        end = len(source.text.rstrip())  # an error past the end shows on the last line
        span = source.at(min(mark.index, max(0, end - 1))) if mark else source.span(1, 1)
        raise source.error(f"not YAML: {said}", span) from None
    except yaml.reader.ReaderError as error:
        code = ord(error.character) if isinstance(error.character, str) else error.character
        message = f"the character U+{code:04X} is not allowed in a spec"
        raise source.error(message, source.at(error.position)) from None


def _build(source: Text, stream: list[events.Event]) -> Node:
    stack: list[_Open] = []
    root: Node | None = None
    documents = 0
    for event in stream:
        if isinstance(event, events.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise source.error("a spec file holds one document", _span(source, event), "write one file a model")
        elif isinstance(event, events.AliasEvent):
            raise _no_anchor(source, event)
        elif isinstance(event, events.ScalarEvent | events.MappingStartEvent | events.SequenceStartEvent):
            _refuse_extras(source, event)
            root = _place(source, stack, event, root)
        elif isinstance(event, events.MappingEndEvent | events.SequenceEndEvent):
            stack.pop()
    if root is None or root.value is None:
        raise source.error("the spec is empty", source.span(1, 1), "a spec starts with 'model: NAME'")
    if not isinstance(root.value, dict):
        raise source.error("a spec is a mapping of keys to values", root.span, "a spec starts with 'model: NAME'")
    return root


def _place(source: Text, stack: list[_Open], event: events.NodeEvent, root: Node | None) -> Node | None:
    """Put the event's value where it belongs; return the root."""
    top = stack[-1] if stack else None
    if top is not None and isinstance(top.node.value, dict) and top.key is None:
        _start_entry(source, top, event)
        return root
    node = _node(source, event)
    node.key = top.key_span if top else None
    if not isinstance(event, events.ScalarEvent):
        if len(stack) >= MAX_DEPTH:
            raise source.error(f"nested deeper than {MAX_DEPTH} levels", node.span)
        stack.append(_Open(node))
    if top is None:
        return node
    if isinstance(top.node.value, dict):
        assert top.key is not None
        top.node.value[top.key] = node
        top.key = top.key_span = None
    else:
        assert isinstance(top.node.value, list)
        top.node.value.append(node)
    return root


def _start_entry(source: Text, top: _Open, event: events.NodeEvent) -> None:
    span = _span(source, event)
    if not isinstance(event, events.ScalarEvent):
        raise source.error("a key must be a word", span)
    key = _text(source, event)
    if key == "<<":
        raise source.error("merge keys are not part of the spec language", span, "use 'extends: FILE'")
    if key in top.firsts:
        raise source.error(
            f"the key {shown(key)} is written twice", span, f"it is first written in line {top.firsts[key]}"
        )
    top.firsts[key] = span.line
    top.key, top.key_span = key, span


def _node(source: Text, event: events.NodeEvent) -> Node:
    span = _span(source, event)
    if isinstance(event, events.MappingStartEvent):
        return Node({}, span, text=source)
    if isinstance(event, events.SequenceStartEvent):
        return Node([], span, text=source)
    assert isinstance(event, events.ScalarEvent)
    text = _text(source, event)
    return Node(read_scalar(text) if event.style is None else text, span, text=source)


def _text(source: Text, event: events.ScalarEvent) -> str:
    """Return the scalar's text; a double-quoted escape may name half a character pair, which is no text."""
    if any("\ud800" <= character <= "\udfff" for character in event.value):
        raise source.error("the escape names no character", _span(source, event))
    return event.value


def _refuse_extras(source: Text, event: events.NodeEvent) -> None:
    if event.anchor is not None:
        raise _no_anchor(source, event)
    tag = getattr(event, "tag", None)
    if tag is not None:
        message = f"the tag '{tag}' is not part of the spec language"
        raise source.error(message, _span(source, event), "write the plain value")


def _no_anchor(source: Text, event: events.NodeEvent) -> DiagnosticError:
    message = "anchors and aliases are not part of the spec language"
    return source.error(message, _span(source, event), "use 'repeat', 'pattern' or 'extends: FILE'")


def _span(source: Text, event: events.Event) -> Span:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return source.span(start.line + 1, start.column + 1, width)
