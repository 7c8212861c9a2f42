"""From pydantic's errors to diagnostics: what is wrong in the words of the spec, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from omnic.errors import Diagnostic, nearest
from omnic.spec.keys import kind_first, model_at
from omnic.spec.kinds import known_kinds
from omnic.spec.tree import Node, Path, path_text, shown

__all__ = ["Problem", "diagnostic", "flatten", "one_of", "problem_of"]


@dataclass(frozen=True)
class Problem:
    """A thing wrong at a path of the spec.

    ``at_key`` puts the caret under the key instead of the value.  ``drop`` is the path to leave out
    so that the rest can still be checked.  ``reads`` are other paths the problem depends on: where
    one of them is wrong itself, this problem is not reported.
    """

    path: Path
    message: str
    hint: str | None = None
    at_key: bool = False
    drop: Path | None = None
    reads: tuple[Path, ...] = ()


def diagnostic(tree: Node, problem: Problem) -> Diagnostic:
    """Place a problem in the text."""
    node = tree.nearest(problem.path)
    span = node.key if problem.at_key and node.key is not None else node.place
    return Diagnostic(problem.message, span, problem.hint)


def one_of(value: object, known: Sequence[str], what: str = "known") -> str:
    """Return the hint that names the nearest of ``known``, or all of them."""
    guess = nearest(str(value), known)
    if guess is not None and guess != str(value):
        return f"did you mean '{guess}'? {what}: {', '.join(known)}"
    return f"{what}: {', '.join(known)}"


def flatten(errors: Iterable[Mapping[str, Any]], above: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield each error with its full path; the errors of a kind's own model lie inside one of its field's."""
    for error in errors:
        path = (*above, *error["loc"])
        if error["type"] == "nested":
            yield from flatten(error["ctx"]["errors"], path)
        else:
            yield path, error


def problem_of(root: type[BaseModel], tree: Node, path: Path, error: Mapping[str, Any], above: Path = ()) -> Problem:
    """Return the problem that a flattened pydantic error stands for.

    Args:
        root: the model that was validated.
        tree: what it was validated from.
        path: the flattened path below ``tree``.
        error: the error.
        above: where ``tree`` lies in the spec, for the words of the message.
    """
    kind, value, ctx = error["type"], error.get("input"), error.get("ctx", {})
    name = str(path[-1]) if path else "the spec"
    what = path_text((*above, *path)) or "the spec"
    parent = path_text((*above, *path)[:-1]) or "the spec"
    match kind:
        case "extra_forbidden":
            keys = _keys(root, tree, path[:-1])
            guess = nearest(name, keys)
            hint = f"did you mean '{guess}'?" if guess else f"keys: {', '.join(keys)}"
            return Problem(path, f"unknown key {shown(name)} in {parent}", hint, True, path)
        case "missing":
            return Problem(path[:-1], f"'{name}' is missing in {parent}", None, True, path[:-1])
        case "kind_missing":
            known = ", ".join(known_kinds(ctx["family"]))
            return Problem(path, f"'kind' is missing in {what}", f"kinds: {known}", True, path)
        case "kind_unknown":
            wrong = shown(_get(value, "kind"))
            hint = one_of(_get(value, "kind"), ctx["known"], f"kinds of {ctx['family']}")
            return Problem((*path, "kind"), f"{wrong} is not a kind of {ctx['family']}", hint, drop=path)
        case "literal_error":
            if path == ("omnic",):
                return Problem(path, f"this omnic reads version 1 of the spec language, not {shown(value)}", drop=path)
            return Problem(path, f"{shown(value)} is not a value of {what}", _choices(ctx, value), drop=path)
        case "bad_size":
            tail = f", not {shown(value)}" if ctx["said"].startswith("must") else f": {shown(value)}"
            return Problem(path, f"{what} {ctx['said']}{tail}", drop=path)
        case "bad_value":
            return Problem(path, f"{what} {ctx['said']}", drop=path)
        case "too_short":
            return Problem(path, f"{what} must have at least {ctx['min_length']} entry", drop=path)
        case "too_long":
            return Problem(path, f"{what} must have at most {ctx['max_length']} entries", drop=path)
        case "passes":
            return Problem(path, "passes must be 'auto' or a list of NAME or {NAME: options}", drop=path)
    return Problem(path, f"{what} {_must(kind, ctx, name)}, not {shown(value)}", drop=path)


def _must(kind: str, ctx: Mapping[str, Any], name: str) -> str:
    """Return what a value of a built-in type must be."""
    match kind:
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "finite_number":
            return "must be a number"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be a text"
        case "string_pattern_mismatch":
            return "must be letters, digits, '_', '-' and '.', at most 64, the first a letter or digit"
        case "string_too_short" | "string_too_long":
            return "must be a text of at least one character and not a page"
        case "greater_than_equal":
            return f"must be at least {_number(ctx['ge'])}"
        case "greater_than":
            return f"must be more than {_number(ctx['gt'])}"
        case "less_than":
            return f"must be less than {_number(ctx['lt'])}"
        case "less_than_equal":
            return f"must be at most {_number(ctx['le'])}"
        case "tuple_type" | "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "not_a_mapping" | "model_attributes_type":
            return "must be a mapping of keys to values"
    raise AssertionError(f"no words for the pydantic error {kind!r} at {name}")


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(ctx: Mapping[str, Any], value: object) -> str | None:
    known = [part.strip("'") for part in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
    return one_of(value, known, "values")


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _keys(root: type[BaseModel], tree: Node, path: Path) -> tuple[str, ...]:
    """Return the keys of the mapping at ``path``: of the model class that reads it."""
    model = model_at(root, tree, path)
    return tuple(field.alias or name for name, field in kind_first(model))
