"""Reading a spec: text, extensions, schema, rules."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import ValidationError

from omnic.errors import Diagnostic, DiagnosticError, Span, nearest
from omnic.spec.extends import extend, merge_nodes
from omnic.spec.messages import Problem, diagnostic, flatten, problem_of
from omnic.spec.presets import preset_names, preset_text
from omnic.spec.rules import check_rules
from omnic.spec.salvage import patched
from omnic.spec.schema import Spec
from omnic.spec.tree import MAX_TEXT, Node, Path, Text, shown

__all__ = [
    "SUFFIXES",
    "Syntax",
    "load_spec",
    "parse_spec",
    "read_file",
    "read_tree",
    "spec_of",
    "syntax_of",
    "with_values",
]

Syntax = Literal["yaml", "dsl"]
_LACKING = object()
SUFFIXES: dict[str, Syntax] = {".yaml": "yaml", ".yml": "yaml", ".omnic": "dsl"}


def load_spec(name: str | FilePath) -> Spec:
    """Return the spec of a file (``.yaml``, ``.yml``, ``.omnic``) or of a preset's name.

    Raises:
        DiagnosticError: everything that is wrong with it, each with its place.
    """
    return _spec(_text_named(str(name)), drafts=True)


def parse_spec(text: str, file: str = "<spec>", syntax: Syntax | None = None, folder: FilePath | None = None) -> Spec:
    """Return the spec of a text.

    Args:
        text: the spec.
        file: the name messages give it.
        syntax: the language; unset: by the file's suffix, YAML for a name without one.
        folder: where relative file names start; unset: such files are not looked at.

    Raises:
        DiagnosticError: everything that is wrong with it, each with its place.
    """
    return _spec(Text(file, text, folder=folder), syntax, drafts=True)


def spec_of(data: dict[str, Any], like: Spec) -> Spec:
    """Return the spec of plain values; places are those of ``like``.

    Raises:
        DiagnosticError: the values are no valid spec.
    """
    tree = _planted(data, like.tree, like.tree)
    return _validated(tree, like.file, like.folder, drafts=False)


def with_values(spec: Spec, changes: Mapping[str, Any], origin: str) -> Spec:
    """Return ``spec`` with values laid over it, as ``extends`` lays a file over another.

    Args:
        spec: stays as it is.
        changes: plain values; mappings merge, lists and values replace.
        origin: what messages and ``explain`` name as the place of the new values, as ``--budget``.

    Raises:
        DiagnosticError: the values do not make a valid spec.
    """
    text = Text(origin, "", folder=spec.folder)
    over = _at(dict(changes), text)
    return _validated(merge_nodes(spec.tree, over), spec.file, spec.folder, drafts=False)


def _at(value: Any, text: Text) -> Node:
    """Return the tree of plain values that no file holds; a node that is a tree already stays one."""
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        value = {str(key): _at(item, text) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [_at(item, text) for item in value]
    return Node(value, text.span(1, 1), text.span(1, 1), text)


def syntax_of(file: str) -> Syntax:
    """Return the language of a file by its suffix; YAML for a name without one.

    Raises:
        DiagnosticError: the suffix is of neither language.
    """
    suffix = FilePath(file).suffix
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix == "" or file.startswith("<"):
        return "yaml"
    hint = f"spec files end in {', '.join(SUFFIXES)}"
    raise DiagnosticError([Diagnostic(f"{file}: '{suffix}' is not a spec", hint=hint)])


def read_file(path: FilePath) -> Text:
    """Return the text of a spec file.

    Raises:
        DiagnosticError: it cannot be read, or is not UTF-8.
    """
    file = path.as_posix()
    try:
        with path.open("rb") as stream:
            data = stream.read(4 * MAX_TEXT)  # UTF-8 has at most 4 bytes a character
    except OSError as error:
        raise DiagnosticError([Diagnostic(f"{file}: cannot be read: {error.strerror}")]) from None
    except ValueError:
        raise DiagnosticError([Diagnostic(f"{shown(file)} cannot be the name of a file")]) from None
    try:
        return Text(file, data.decode("utf-8-sig"), folder=path.parent)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DiagnosticError([Diagnostic("the file is not UTF-8 text", Span(file, line, 1))]) from None


def read_tree(text: Text, syntax: Syntax | None = None) -> Node:
    """Return the placed tree of a text, before extensions.

    Raises:
        DiagnosticError: the text is not of its language.
    """
    if (syntax or syntax_of(text.file)) == "dsl":
        from omnic.spec.dsl_front import read_dsl

        return read_dsl(text)
    from omnic.spec.yaml_front import read_yaml

    return read_yaml(text)


def _text_named(name: str) -> Text:
    """Return the text of a preset's name or of a file."""
    if name in preset_names():
        return preset_text(name)
    path = FilePath(name)
    if path.suffix == "" and not os.path.exists(path):
        guess = nearest(name, preset_names())
        hint = f"did you mean '{guess}'?" if guess else f"presets: {', '.join(preset_names())}"
        raise DiagnosticError([Diagnostic(f"there is no spec file or preset {shown(name)}", hint=hint)])
    return read_file(path)


def _spec(text: Text, syntax: Syntax | None = None, *, drafts: bool) -> Spec:
    tree = extend(read_tree(text, syntax), text, _base)
    return _validated(tree, text.file, text.folder, drafts=drafts)


def _base(name: str, folder: FilePath | None) -> tuple[Text, Node]:
    """Return the text and tree that ``extends: name`` means, seen from ``folder``."""
    text = _text_beside(name, folder)
    return text, read_tree(text)


def _text_beside(name: str, folder: FilePath | None) -> Text:
    if name in preset_names() or folder is None:
        return _text_named(name)
    path = folder / name
    return read_file(path) if path.suffix or os.path.exists(path) else _text_named(name)


def _draft(name: str, folder: FilePath | None) -> Spec | None:
    if folder is None and name not in preset_names():
        return None
    return _spec(_text_beside(name, folder), drafts=False)


def _validated(tree: Node, file: str, folder: FilePath | None, *, drafts: bool) -> Spec:
    spec, problems = _schema(tree)
    whole = spec is not None
    dropped = tuple(problem.drop for problem in problems if problem.drop is not None)
    if spec is None:
        spec = _rest(tree, dropped)
    if spec is not None:
        _bind(spec, tree, file, folder)
        found = check_rules(spec, whole, _draft if drafts and whole else None)
        problems += [item for item in found if not any(_touches(path, dropped) for path in (item.path, *item.reads))]
    if problems:
        raise DiagnosticError(_in_order(tree, problems))
    assert spec is not None
    return spec


def _schema(tree: Node) -> tuple[Spec | None, list[Problem]]:
    try:
        return Spec.model_validate(tree.plain()), []
    except ValidationError as error:
        found = flatten(error.errors(include_url=False))
        return None, [problem_of(Spec, tree, path, item) for path, item in found if not _echo(item)]


def _echo(error: Mapping[str, Any]) -> bool:
    """Return whether an error only follows from others.

    Pydantic counts the right entries of a list alone, and computes no default from wrong values.
    """
    if error["type"] == "too_short":
        return len(error["input"]) >= error["ctx"]["min_length"]
    return error["type"] == "default_factory_not_called"


def _rest(tree: Node, wrong: Sequence[Path]) -> Spec | None:
    """Return the spec with harmless values in place of the wrong ones, so that rules can look at the others."""
    data = patched(tree.plain(), wrong)
    for _ in range(3):  # leaving a key out may show that its mapping needs it
        try:
            return Spec.model_validate(data)
        except ValidationError as error:
            found = [path for path, item in flatten(error.errors(include_url=False)) if not _echo(item)]
            missing = [path[:-1] if _lacks(data, path) else path for path in found]
            data = patched(data, missing)
    return None


def _lacks(data: Any, path: Path) -> bool:
    """Return whether the plain data has no value at ``path``."""
    here = data
    for step in path:
        if isinstance(here, dict):
            here = here.get(step, _LACKING)
        elif isinstance(here, list):
            here = here[step] if isinstance(step, int) and step < len(here) else _LACKING
        else:
            return True
    return here is _LACKING


def _touches(path: Path, dropped: Sequence[Path]) -> bool:
    return any(path[: len(other)] == other or other[: len(path)] == path for other in dropped)


def _in_order(tree: Node, problems: Sequence[Problem]) -> list[Diagnostic]:
    """Return the diagnostics in the order of the text, each once."""
    found = dict.fromkeys(diagnostic(tree, problem) for problem in problems)
    files: dict[str, int] = {}
    for item in found:
        files.setdefault(item.span.file if item.span else "", len(files))

    def order(item: Diagnostic) -> tuple[int, int, int]:
        span = item.span
        return (files[span.file], span.line, span.column) if span else (files[""], 0, 0)

    return sorted(found, key=order)


def _bind(spec: Spec, tree: Node, file: str, folder: FilePath | None) -> None:
    spec._tree, spec._file, spec._folder = tree, file, folder


def _planted(value: Any, near: Node, like: Node) -> Node:
    """Return a tree of plain values, placed where ``like`` has the same path, else at the nearest value above."""
    here = like if like is not near else near
    if isinstance(value, dict):
        made = {key: _planted(item, here, here.child(key) or here) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        made = [_planted(item, here, here.child(index) or here) for index, item in enumerate(value)]
    else:
        made = value
    return Node(made, here.span, here.key, here.text)
