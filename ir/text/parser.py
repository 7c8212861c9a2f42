"""From the text form to a module."""

from __future__ import annotations

from omnic.errors import Diagnostic, DiagnosticError
from omnic.ir.graph import Module
from omnic.ir.text.lexer import Source
from omnic.ir.text.reader import read_tree
from omnic.ir.text.resolve import resolve
from omnic.ir.text.tree import ModuleTree

__all__ = ["MAX_PROBLEMS", "parse_module", "parse_with_tree", "raise_problems"]

MAX_PROBLEMS = 20


def parse_module(text: str, file: str = "<string>") -> Module:
    """Return the module that ``text`` describes.

    Names, attributes, operands and types are checked here; what else a module must hold, by
    :func:`omnic.ir.verify.verify`.

    Args:
        text: the text form (see :mod:`omnic.ir.text.printer`).
        file: the name that errors give to the text.

    Raises:
        DiagnosticError: everything that is wrong with the text, each with its place; at most 20.
    """
    return parse_with_tree(Source(text, file))[0]


def parse_with_tree(source: Source) -> tuple[Module, ModuleTree]:
    """Return the module and the syntax tree it was made from.

    Raises:
        DiagnosticError: as :func:`parse_module`.
    """
    tree, problems = read_tree(source)
    module, more = resolve(tree, source)
    raise_problems(problems + more)
    return module, tree


def raise_problems(problems: list[Diagnostic]) -> None:
    """Raise the problems, if any, in the order of the text.

    Raises:
        DiagnosticError: there are some; the first 20 and how many there are beside them.
    """
    if not problems:
        return
    ordered = sorted(dict.fromkeys(problems), key=lambda d: (d.span.line, d.span.column) if d.span else (0, 0))
    shown = ordered[:MAX_PROBLEMS]
    if len(ordered) > MAX_PROBLEMS:
        more = len(ordered) - MAX_PROBLEMS
        shown.append(Diagnostic(f"{more} more {'error is' if more == 1 else 'errors are'} not shown"))
    raise DiagnosticError(shown)
