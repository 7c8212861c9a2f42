"""The options of a pass: declared as fields, read from text or YAML, checked against their range.

    group: int = option(64, choices=(32, 64, 128), doc="numbers that share a scale")
    share: float = option(0.01, low=0.0, high=1.0)

A field needs no :func:`option`; with it, a value out of range is an error that names the range, and ``omnic list
passes`` and the pass's page show it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from omnic.errors import InputError, nearest

__all__ = ["OptionError", "check_options", "describe_options", "option", "range_text", "read_options", "split_call"]


class OptionError(InputError):
    """An option of a pass that cannot be; ``option`` is its name, so that a spec's line can be shown."""

    def __init__(self, message: str, hint: str | None = None, option: str | None = None) -> None:
        super().__init__(message, hint)
        self.option = option


def option(
    default: Any = dataclasses.MISSING,
    *,
    choices: Sequence[Any] = (),
    low: float | None = None,
    high: float | None = None,
    doc: str = "",
) -> Any:
    """Return a dataclass field that is an option with a range.

    Args:
        default: its value when it is not given; without one the option must be given.
        choices: the values it may have.
        low: its least value.
        high: its greatest value.
        doc: one line for tables, when the ``Attributes:`` of the docstring say too much.
    """
    facts = {"choices": tuple(choices), "low": low, "high": high, "doc": doc}
    return dataclasses.field(default=default, metadata=facts)


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _kind(field: dataclasses.Field[Any]) -> tuple[str, bool]:
    """Return the type of a field as it is written, and whether it may be absent."""
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return text.removesuffix("| None").strip(), text.endswith("| None")


def range_text(field: dataclasses.Field[Any]) -> str:
    """Return the range of an option in words, or nothing."""
    facts = field.metadata
    if facts.get("choices"):
        return "one of " + ", ".join(_shown(c) for c in facts["choices"])
    low, high = facts.get("low"), facts.get("high")
    if low is not None and high is not None:
        return f"{_shown(low)}..{_shown(high)}"
    if low is not None:
        return f"at least {_shown(low)}"
    return f"at most {_shown(high)}" if high is not None else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_options(cls: Any) -> list[dict[str, Any]]:
    """Return name, type, default (absent when it must be given), range and meaning of each option of a pass."""
    described = _attributes(cls.__doc__ or "")
    rows: list[dict[str, Any]] = []
    for name, field in _fields(cls).items():
        kind, absent = _kind(field)
        row: dict[str, Any] = {"name": name, "type": kind + (" | none" if absent else "")}
        if not _is_required(field):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            row["default"] = default
        row["range"] = range_text(field)
        row["about"] = field.metadata.get("doc") or described.get(name, "")
        rows.append(row)
    return rows


def _attributes(doc: str) -> dict[str, str]:
    """Return the ``Attributes:`` of a docstring by name, each as one line."""
    _, _, listed = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        match = re.match(r"\s{4,8}(\w+): (.*)", line)
        if match:
            name = match.group(1)
            found[name] = match.group(2).strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def read_options(name: str, cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` as the fields of the pass class ``cls`` take them: texts are read as the field's type.

    Raises:
        OptionError: an unknown option, a missing one, or a value that the field cannot take.
    """
    fields = _fields(cls)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            near = nearest(key, list(fields))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(fields) or 'none'}"
            raise OptionError(f"pass '{name}' has no option '{key}'", hint, key)
        values[key] = _read(name, fields[key], value)
        _check(name, fields[key], values[key])
    missing = [f.name for f in fields.values() if f.name not in values and _is_required(f)]
    if missing:
        raise OptionError(f"pass '{name}' needs the option '{missing[0]}'", f"write {name}{{{missing[0]}=...}}")
    return values


def check_options(made: Any) -> None:
    """Check the options of a pass that was made in Python.

    Raises:
        OptionError: a value out of its range.
    """
    for field in _fields(made).values():
        _check(str(made.name), field, getattr(made, field.name))


def _check(name: str, field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and _kind(field)[1]:
        return
    said = range_text(field)
    low, high = field.metadata.get("low"), field.metadata.get("high")
    choices = field.metadata.get("choices", ())
    for item in cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,):
        wrong = bool(choices) and item not in choices
        wrong = wrong or (low is not None and not item >= low) or (high is not None and not item <= high)
        if wrong or (isinstance(item, float) and not math.isfinite(item)):
            must = f"must be {said}" if said else "must be a finite number"
            near = nearest(str(item), [str(c) for c in choices])
            hint = f"did you mean '{near}'?" if near else None
            raise OptionError(f"option '{field.name}' of pass '{name}' {must}, got {_shown(item)}", hint, field.name)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def _read(name: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """Return ``value`` as the type of ``field`` (written as text by ``from __future__ import annotations``)."""
    kind, absent = _kind(field)
    if absent and (value is None or value == "none"):
        return None
    many = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", kind)
    if many:
        items: Any = value
        if isinstance(value, str):
            items = _split(value.removeprefix("[").removesuffix("]"))
        elif not isinstance(value, (list, tuple)):
            items = (value,)
        return tuple(_read_one(name, field.name, many.group(1), v) for v in items)
    return _read_one(name, field.name, kind, value)


def _read_one(name: str, field: str, kind: str, value: Any) -> Any:
    if kind == "bool":
        known = {"true": True, "false": False, "True": True, "False": False}
        if str(value) in known:
            return known[str(value)]
        raise OptionError(f"option '{field}' of pass '{name}' must be true or false, got '{value}'", None, field)
    if kind == "str" and value is None:  # a spec reads the bare word none so
        return "none"
    if kind in _READERS:
        try:
            if isinstance(value, (list, tuple, dict)) or (isinstance(value, bool) and kind != "str"):
                raise TypeError
            return _READERS[kind](str(value))
        except (TypeError, ValueError):
            wanted = {"int": "int", "float": "a number", "str": "a text"}[kind]
            message = f"option '{field}' of pass '{name}' must be {wanted}, got '{value}'"
            raise OptionError(message, None, field) from None
    return value


_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\{(.*)\})?\s*", re.S)


def split_call(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the option texts of ``NAME`` or ``NAME{option=value, ...}``.

    A comma inside ``<>``, ``[]`` or ``()`` belongs to the value: ``int4-packing{type=i4<g32, s4>}``.

    Raises:
        InputError: the text has another form, or names an option twice.
    """
    match = _CALL.fullmatch(text)
    if not match:
        raise InputError(f"'{text}' is not a pass", "write NAME or NAME{option=value, ...}")
    name: str = match.group(1)
    listed: str = match.group(2) or ""
    options: dict[str, str] = {}
    for part in _split(listed):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"'{part}' is not an option of pass '{name}'", "write option=value")
        if key in options:
            raise OptionError(f"option '{key}' of pass '{name}' is given twice", "give it once", key)
        options[key] = value.strip()
    return name, options


def _split(text: str) -> list[str]:
    """Return the parts between commas that stand in no bracket, stripped, the empty ones dropped."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"<": 1, "[": 1, "(": 1, ">": -1, "]": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
