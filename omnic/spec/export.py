"""Writing a spec: as YAML, as DSL, as JSON.  Reading what is written gives the same spec again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from omnic.spec.tree import read_scalar
from omnic.spec.units import bytes_text

if TYPE_CHECKING:
    from omnic.spec.schema import Spec

__all__ = ["to_dsl", "to_json", "to_yaml"]

LINE = 120

_DSL_WORD = re.compile(r"[^\s(){}\[\],=#\"\x00-\x1f\x7f]+\Z")
_YAML_WORD = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*\Z", re.ASCII)


def to_json(spec: Spec) -> str:
    """Return the written values as JSON; what the spec extends is merged in, sizes are numbers."""
    return json.dumps(spec.given(), indent=2) + "\n"


def to_yaml(spec: Spec) -> str:
    """Return the spec as YAML; what it extends is merged in."""
    lines: list[str] = []
    for key, value in _readable(spec).items():
        lines += _yaml_entry(key, value)
    return "\n".join(lines) + "\n"


def to_dsl(spec: Spec) -> str:
    """Return the spec in the DSL; what it extends is merged in."""
    data = _readable(spec)
    lines = [f"model {data.pop('model')} {{"]
    for key, value in data.items():
        lines += [f"  {line}" for line in _statement(key, value)]
    return "\n".join([*lines, "}"]) + "\n"


def _readable(spec: Spec) -> dict[str, Any]:
    """Return the written values, byte budgets with their units."""
    data = {key: value if key in ("targets", "passes") else _short(value) for key, value in spec.given().items()}
    budget = data.get("budget")
    for key in ("memory", "disk"):
        if budget and budget.get(key) is not None:
            text = bytes_text(budget[key])
            budget[key] = int(text) if text.isdigit() else text
    return data


def _short(value: Any) -> Any:
    """Return the value with whole floats as integers (10000.0 as 10000): number keys read both alike."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _number(value: float | bool) -> str:
    """Return a number or flag; 1e-06 as 1.0e-06, which every version of YAML takes for a number."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


# -- YAML ---------------------------------------------------------------------------------


def _yaml_entry(key: str, value: Any) -> list[str]:
    if key == "blocks":
        return ["blocks:", *(line for block in value for line in _yaml_block(block))]
    flow = f"{key}: {_flow(value)}"
    if not isinstance(value, dict) or not value or len(flow) <= LINE:
        return [flow]
    return [f"{key}:", *(f"  {inner}: {_flow(item)}" for inner, item in value.items())]


def _yaml_block(block: dict[str, Any]) -> list[str]:
    lines = [f"{key}: {_flow(value)}" for key, value in block.items()]
    return [f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])]


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml_word(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if value is None:
        return "null"
    return _yaml_word(value) if isinstance(value, str) else _number(value)


def _yaml_word(text: str) -> str:
    if _YAML_WORD.match(text) and read_scalar(text) == text:
        return text
    return '"' + "".join(_yaml_escaped(character) for character in text) + '"'


def _yaml_escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


# -- DSL ----------------------------------------------------------------------------------


def _statement(key: str, value: Any) -> list[str]:
    match key:
        case "omnic":
            return [] if value == 1 else [f"omnic {value}"]
        case "blocks":
            return [line for block in value for line in _dsl_block(block)]
        case "vocab" if set(value) == {"size"}:
            return [f"vocab {value['size']}"]
        case "budget" if value:
            return [" ".join(["budget", *(f"{inner} {_value(item)}" for inner, item in value.items())])]
        case "heads" if value:
            return ["heads " + ", ".join(_item(inner, item, True) for inner, item in value.items())]
        case "targets" if value:
            return ["target " + ", ".join(_item(inner, item, {}) for inner, item in value.items())]
        case "heads" | "budget" | "targets":
            return []  # an empty mapping says no more than none
        case "passes" if isinstance(value, list | tuple):
            return ["passes [" + ", ".join(_pass(item) for item in value) + "]"]
    return [_clause(key, value)]


def _dsl_block(block: dict[str, Any]) -> list[str]:
    block = dict(block)
    repeat = block.pop("repeat", None)
    head = "block" if repeat is None else f"{repeat} x block"
    lines = [f"{head}(width = {block.pop('width')}) {{"]
    lines += [f"  {line}" for key, value in block.items() for line in _part(key, value)]
    return [*lines, "}"]


def _part(key: str, value: dict[str, Any]) -> list[str]:
    """Return an attention or ffn; its mappings follow as ``with``."""
    flat = {name: item for name, item in value.items() if not isinstance(item, dict)}
    nested = [f"with {_clause(name, item)}" for name, item in value.items() if isinstance(item, dict)]
    line = " ".join([_clause(key, flat), *nested])
    return [line] if len(line) <= LINE - 4 or not nested else [_clause(key, flat), *(f"  {item}" for item in nested)]


def _clause(key: str, value: Any) -> str:
    """Return ``key value``, ``key KIND(...)`` or ``key(...)``."""
    text = _value(value)
    return f"{key}{text}" if text.startswith("(") else f"{key} {text}"


def _item(key: str, value: Any, plain: Any) -> str:
    """Return a head or target: its name alone for ``plain``, else ``name(KIND, ...)``, or ``name VALUE``."""
    if value == plain:
        return key
    if not isinstance(value, dict):
        return f"{key} {_value(value)}"
    pairs = [f"{inner} = {_value(item)}" for inner, item in value.items()]
    if isinstance(value.get("kind"), str) and _bare(value["kind"]):
        pairs = [value["kind"], *(pair for pair in pairs if not pair.startswith("kind = "))]
    return f"{key}({', '.join(pairs)})"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        kind = value.get("kind")
        called = isinstance(kind, str) and _bare(kind)
        pairs = ", ".join(f"{key} = {_value(item)}" for key, item in value.items() if not (called and key == "kind"))
        return f"{kind if called else ''}({pairs})"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if value is None:
        return "none"
    if isinstance(value, str):
        return value if _bare(value) else json.dumps(value)
    return _number(value)


def _pass(item: str | dict[str, Any]) -> str:
    if isinstance(item, str):
        return item
    ((name, options),) = item.items()
    return f"{name}({', '.join(f'{key} = {_value(option)}' for key, option in options.items())})"


def _bare(text: str) -> bool:
    return bool(_DSL_WORD.match(text)) and read_scalar(text) == text
