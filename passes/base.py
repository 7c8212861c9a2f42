"""What a pass is, and the registry of all passes.

A pass is a frozen dataclass.  Its fields are its options (of the command line, ``NAME{option=value}``, and
of a spec's ``passes:`` list), its docstring gives its rules, numbered, and a Given/Result pair in text IR, and
``run`` returns a new module.  Other packages add theirs under the entry-point group ``omnic.passes``: an
entry point is called like the pass and refers to its class.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from omnic.errors import InputError, nearest
from omnic.ir.graph import Module
from omnic.ir.rewrite import Remark
from omnic.passes.context import PassContext

__all__ = ["Pass", "PassResult", "Remark", "all_passes", "find_pass", "make_pass", "parse_pass", "register_pass",
           "run_passes", "NOTHING", "PassContext"]

ENTRY_POINTS = "omnic.passes"

# The files of this package that register passes when imported.
_OURS = ("specialise", "split_at_host")


@dataclass(frozen=True)
class PassResult:
    """What a pass gives back.

    Attributes:
        module: the new module (the given one when nothing changed).
        changed: whether anything did.
        remarks: what was done, and what nearly was and why not.
    """

    module: Module
    changed: bool
    remarks: tuple[Remark, ...] = ()


#: the context of a pass that is run by itself
NOTHING = PassContext()


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass with a name and a ``run``."""

    name: ClassVar[str]

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the changed module; the given one is not touched."""
        ...


PassT = TypeVar("PassT", bound=Pass)
_REGISTRY: dict[str, type[Pass]] = {}


def register_pass(cls: type[PassT]) -> type[PassT]:
    """Add a pass of this package to the registry (class decorator).

    Raises:
        InputError: the name is taken, or the class is not a frozen dataclass.
    """
    _check_class(cls, cls.name)
    if _REGISTRY.get(cls.name, cls) is not cls:
        raise InputError(f"pass '{cls.name}' is registered twice")
    _REGISTRY[cls.name] = cls
    return cls


def _check_class(cls: Any, name: str) -> None:
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise InputError(f"pass '{name}' is not a frozen dataclass", "put @dataclass(frozen=True) over its class")


def all_passes() -> dict[str, type[Pass]]:
    """Return every pass by name: ours, then those that installed packages bring.

    Raises:
        InputError: a package brings a class that is no pass, or one with a name that is taken.
    """
    for room in _OURS:
        importlib.import_module(f"omnic.passes.{room}")
    found = dict(_REGISTRY)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name in found:
            raise InputError(f"the pass '{entry.name}' of {entry.value} has the name of another pass")
        loaded: Any = entry.load()
        _check_class(loaded, entry.name)
        found[entry.name] = loaded
    return found


def find_pass(name: str) -> type[Pass]:
    """Return the pass called ``name``.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    passes = all_passes()
    if name in passes:
        return passes[name]
    near = nearest(name, list(passes))
    raise InputError(f"unknown pass '{name}'", f"did you mean '{near}'?" if near else f"known: {', '.join(passes)}")


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """Return the pass ``name`` with ``options`` (texts are read as the field's type).

    Raises:
        InputError: an unknown pass or option, a missing option, or a value that the field cannot take.
    """
    cls: Any = find_pass(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in fields:
            near = nearest(key, list(fields))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(fields) or 'none'}"
            raise InputError(f"pass '{name}' has no option '{key}'", hint)
        values[key] = _read(name, fields[key], value)
    missing = [f.name for f in fields.values() if f.name not in values and _is_required(f)]
    if missing:
        raise InputError(f"pass '{name}' needs the option '{missing[0]}'", f"write {name}{{{missing[0]}=...}}")
    return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def _read(name: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """Return ``value`` as the type of ``field`` (written as text by ``from __future__ import annotations``)."""
    kind = str(field.type).removesuffix(" | None").strip()
    if value is None and str(field.type).endswith("| None"):
        return None
    if kind == "bool":
        known = {"true": True, "false": False, "True": True, "False": False}
        if str(value) in known:
            return known[str(value)]
        raise InputError(f"option '{field.name}' of pass '{name}' must be true or false, got '{value}'")
    if kind in _READERS:
        try:
            return _READERS[kind](str(value))
        except (TypeError, ValueError):
            raise InputError(f"option '{field.name}' of pass '{name}' must be {kind}, got '{value}'") from None
    return value


_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\{(.*)\})?\s*", re.S)


def parse_pass(text: str) -> Pass:
    """Return the pass that ``NAME`` or ``NAME{option=value, ...}`` describes.

    Raises:
        InputError: the text has another form, or as :func:`make_pass`.
    """
    match = _CALL.fullmatch(text)
    if not match:
        raise InputError(f"'{text}' is not a pass", "write NAME or NAME{option=value, ...}")
    name: str = match.group(1)
    listed: str = match.group(2) or ""
    options: dict[str, str] = {}
    for part in listed.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"'{part.strip()}' is not an option of pass '{name}'", "write option=value")
        options[key.strip()] = value.strip()
    return make_pass(name, options)


def run_passes(module: Module, passes: list[Pass], context: PassContext = NOTHING) -> PassResult:
    """Run ``passes`` in order and return the last module with every remark."""
    changed, remarks = False, list[Remark]()
    for each in passes:
        result = each.run(module, context)
        module, changed = result.module, changed or result.changed
        remarks.extend(result.remarks)
    return PassResult(module, changed, tuple(remarks))
