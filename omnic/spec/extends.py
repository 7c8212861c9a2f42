"""``extends``: the values of another spec, with single ones overridden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath

from omnic.errors import Diagnostic, DiagnosticError, InputError
from omnic.spec.tree import Node, Text, shown

__all__ = ["extend", "merge_nodes"]

MAX_CHAIN = 16

Reader = Callable[[str, FilePath | None], tuple[Text, Node]]


def extend(tree: Node, text: Text, read: Reader) -> Node:
    """Return ``tree`` laid over the specs it extends, nearest first.

    Args:
        tree: the tree of ``text``.
        text: the spec that may say ``extends``.
        read: gives the text and tree of a name, seen from a folder.

    Raises:
        DiagnosticError: a spec that is extended is missing, wrong, or extends itself.
    """
    chain = [(tree, _identity(text))]
    while (link := _extends(chain[-1][0])) is not None:
        name, node = link
        base_text, base = _read(name, node, read)
        identity = _identity(base_text)
        if identity in [seen for _, seen in chain]:
            raise DiagnosticError([Diagnostic(f"{shown(name)} extends itself", node.span, _circle(chain, identity))])
        chain.append((base, identity))
        if len(chain) > MAX_CHAIN:
            raise DiagnosticError([Diagnostic(f"more than {MAX_CHAIN} specs extend each other", node.span)])
    result = chain[-1][0]
    for over, _ in reversed(chain[:-1]):
        result = merge_nodes(result, over)
    return result


def merge_nodes(base: Node, over: Node) -> Node:
    """Return ``base`` with the values of ``over``.

    Mappings merge key by key, unless ``over`` names another ``kind``; a mapping of numbers over a
    list overrides these entries; anything else is replaced.

    Raises:
        DiagnosticError: a number names no entry of the list.
    """
    if isinstance(over.value, dict) and isinstance(base.value, dict):
        if "kind" in over.value and over.value["kind"].value != getattr(base.child("kind"), "value", None):
            return over
        merged = dict(base.value)
        for key, node in over.value.items():
            merged[key] = merge_nodes(merged[key], node) if key in merged else node
        return Node(merged, over.span, over.key, over.text)
    if isinstance(over.value, dict) and isinstance(base.value, list):
        entries = list(base.value)
        for key, node in over.value.items():
            if not (key.isascii() and key.isdigit() and int(key) < len(entries)):
                known = ", ".join(str(i) for i in range(len(entries)))
                raise DiagnosticError(
                    [Diagnostic(f"{shown(key)} is no entry to override", node.key, f"entries: {known}")]
                )
            entries[int(key)] = merge_nodes(entries[int(key)], node)
        return Node(entries, over.span, over.key, over.text)
    return over


def _extends(tree: Node) -> tuple[str, Node] | None:
    node = tree.child("extends")
    if node is None or not isinstance(node.value, str):
        return None
    return node.value, node


def _read(name: str, node: Node, read: Reader) -> tuple[Text, Node]:
    try:
        return read(name, node.folder)
    except DiagnosticError as error:
        if any(item.span is not None for item in error.diagnostics):
            raise
        (first, *_) = error.diagnostics
        raise DiagnosticError([Diagnostic(first.message, node.span, first.hint)]) from None
    except InputError as error:
        raise DiagnosticError([Diagnostic(error.message, node.span, error.hint)]) from None


def _identity(text: Text) -> str:
    if text.preset is not None or text.folder is None:
        return text.file
    return str((text.folder / FilePath(text.file).name).resolve())


def _circle(chain: list[tuple[Node, str]], identity: str) -> str:
    names = [seen for _, seen in chain]
    around = [*names[names.index(identity) :], identity]
    return " -> ".join(FilePath(name).name for name in around)
