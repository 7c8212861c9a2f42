"""What a pass is, and the registry of all passes.

A pass is a frozen dataclass.  Its fields are its options (of the command line, ``NAME{option=value}``, and
of a spec's ``passes:`` list), its docstring gives its rules, numbered, and a Given/Result pair in text IR, and
``run`` returns a new module.  Other packages add theirs under the entry-point group ``omnic.passes``: an
entry point is called like the pass and refers to its class.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, runtime_checkable

from omnic.errors import DiagnosticError, InputError, InternalError, nearest
from omnic.ir.graph import Module
from omnic.ir.rewrite import Remark
from omnic.ir.verify import verify
from omnic.passes.context import PassContext
from omnic.passes.options import OptionError, check_options, option, read_options, split_call

__all__ = ["NOTHING", "STAGES", "OptionError", "Pass", "PassContext", "PassResult", "Remark", "Stage", "all_passes",
           "find_pass", "make_pass", "option", "parse_pass", "register_pass", "run_pass", "run_passes", "stage_of"]

ENTRY_POINTS = "omnic.passes"

#: in this order; what each may do stands in omnic.passes.pipelines
Stage = Literal["front", "lossy", "specialise", "legalise"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# The files of this package that register passes when imported.
_OURS = (
    "specialise",
    "split_at_host",
    "quantise",
    "kv_quant",
    "prefill_int8",
    "fast_head",
    "activations",
    "fusion",
    "dead_code",
    "cse",
    "constant_folding",
    "layout_cleaning",
    "qkv_merge",
    "gate_up_merge",
    "norm_residual",
    "rope_tables",
    "rope_rescale",
)


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
    """A frozen dataclass with a name and a ``run``.

    It may say its stage, ``stage: ClassVar[Stage] = "lossy"``; one that does not is of the front stage, where
    nothing changes a number.
    """

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
        InputError: there is no such pass.
        OptionError: an unknown or missing option, or a value that is no such thing or out of range.
    """
    cls: Any = find_pass(name)
    return cls(**read_options(name, cls, options))


def parse_pass(text: str) -> Pass:
    """Return the pass that ``NAME`` or ``NAME{option=value, ...}`` describes.

    Raises:
        InputError: the text has another form, or as :func:`make_pass`.
    """
    return make_pass(*split_call(text))


def stage_of(each: Pass | type[Pass]) -> Stage:
    """Return the stage of a pass.

    Raises:
        InputError: it says one that does not exist.
    """
    stage: str = getattr(each, "stage", "front")
    if stage not in STAGES:
        raise InputError(f"pass '{each.name}' says stage '{stage}'", f"stages: {', '.join(STAGES)}")
    return stage


def run_pass(module: Module, each: Pass, context: PassContext = NOTHING) -> PassResult:
    """Run one pass: check its options, run it, verify what it made.

    Raises:
        OptionError: an option out of range.
        InternalError: a pass of omnic made a module that does not verify.
        InputError: a pass of another package did.
    """
    check_options(each)
    result = each.run(module, context)
    if result.module is module:
        return result
    try:
        verify(result.module)
    except DiagnosticError as error:
        message = f"pass '{each.name}' made a module that is not valid\n{error.render()}"
        package = type(each).__module__.partition(".")[0]
        if package == "omnic":
            raise InternalError(message) from error
        raise InputError(message, f"this is a defect of the pass: report it to those who made {package}") from error
    return result


def run_passes(module: Module, passes: list[Pass], context: PassContext = NOTHING) -> PassResult:
    """Run ``passes`` in order, the module verified after each, and return the last module with every remark."""
    changed, remarks = False, list[Remark]()
    for each in passes:
        result = run_pass(module, each, context)
        module, changed = result.module, changed or result.changed
        remarks.extend(result.remarks)
    return PassResult(module, changed, tuple(remarks))
