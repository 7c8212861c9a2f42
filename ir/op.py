"""What an op is: one class that says everything about it, and the registry of all of them.

A class gives the signature (``inputs``, ``attrs``, ``outputs``), the shape rule (:meth:`Op.infer`), the
meaning in numpy (:meth:`Op.reference`), for a composite its decomposition into core ops
(:meth:`Op.decompose`), its arithmetic (:meth:`Op.flops`), and, as its docstring, the formula and its source.
``docs/ir.md`` is made from these classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError, InternalError, nearest
from omnic.ir.dims import Dim
from omnic.ir.graph import AttrValue
from omnic.ir.types import DType, Storage, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["Array", "Attr", "In", "Op", "ShapeError", "all_ops", "broadcast_shapes", "find_op", "register"]

Array = NDArray[Any]

Domain = Literal["float", "integer", "index", "bool", "number", "any"]


class ShapeError(InputError):
    """Types or attributes that an op cannot take; the verifier adds the place."""


@dataclass(frozen=True)
class In:
    """One input: its name, the element types it takes, and whether it may be absent.

    Attributes:
        name: keyword of the input; an absent optional input leaves the later ones named in the text form.
        domain: ``float`` (storage types included), ``integer``, ``index`` (i64), ``bool``, ``number``, ``any``.
        optional: may be absent.
        variadic: takes any number of operands; only the last input may.
        state: takes the value of a state as stored (a storage type is not decoded for the reference).
        doc: shape and meaning.
    """

    name: str
    domain: Domain = "float"
    optional: bool = False
    variadic: bool = False
    state: bool = False
    doc: str = ""

    def accepts(self, type: TensorType) -> bool:
        """Whether an operand of this type is in the domain."""
        element = type.element
        if self.domain == "any":
            return True
        if isinstance(element, Storage):
            return self.domain == "float"
        if self.domain == "float":
            return element.is_float
        if self.domain == "index":
            return element == DType.I64
        if self.domain == "integer":
            return element.is_integer
        if self.domain == "bool":
            return element == DType.BOOL
        return element != DType.BOOL


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()

AttrKind = Literal["int", "float", "bool", "str", "element", "dims", "ints", "floats"]


@dataclass(frozen=True)
class Attr:
    """One attribute: its name, kind, default and choices.

    ``dims`` is a tuple of dim expressions; ``floats`` a tuple of numbers; a default of None means absent.
    """

    name: str
    kind: AttrKind
    default: AttrValue | _Required | None = REQUIRED
    choices: tuple[AttrValue, ...] = ()
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether a node must give it."""
        return isinstance(self.default, _Required)

    def check(self, value: AttrValue | None) -> str | None:
        """Return what is wrong with ``value``, or None."""
        if value is None:
            return None if self.default is None else "is absent"
        if not _is_kind(self.kind, value):
            return f"must be {self.kind}, got {value!r}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(str(c) for c in self.choices)}, got {value}"
        return None

    def is_default(self, value: AttrValue) -> bool:
        """Whether ``value`` is the default, in kind and sign too (1 is not 1.0, -0.0 is not 0.0)."""
        return type(value) is type(self.default) and repr(value) == repr(self.default)


def _is_kind(kind: AttrKind, value: AttrValue) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "int":
        return isinstance(value, int)
    if kind == "float":
        return isinstance(value, (int, float))
    if kind == "str":
        return isinstance(value, str)
    if kind == "element":
        return isinstance(value, (DType, Storage))
    if not isinstance(value, tuple):
        return False
    if kind == "floats":
        return all(isinstance(v, (int, float)) for v in value)
    if kind == "ints":
        return all(isinstance(v, int) for v in value)
    return all(not isinstance(v, (str, bool, float, tuple, DType, Storage)) for v in value)


class Op:
    """Base of all ops; a subclass is registered with :func:`register`.

    ``updates`` maps an input that takes a state to the output that is its next version: after the op, the
    old version must not be read, so that a target may write in place.

    ``infer``, ``reference`` and ``decompose`` take the inputs by position (None = absent optional, a list
    for the variadic one) and every attribute by keyword, defaults filled in.
    """

    name: ClassVar[str]
    composite: ClassVar[bool] = False
    category: ClassVar[str] = "core"
    inputs: ClassVar[tuple[In, ...]] = ()
    attrs: ClassVar[tuple[Attr, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("y",)
    updates: ClassVar[Mapping[str, str]] = {}
    source: ClassVar[str] = ""

    def infer(self, *types: Any, **attrs: Any) -> TensorType | tuple[TensorType, ...]:
        """Return the types of the results.

        Raises:
            ShapeError: the operands or attributes do not fit.
        """
        raise InternalError(f"op {self.name} has no shape rule")

    def reference(self, *arrays: Any, **attrs: Any) -> Array | tuple[Array, ...]:
        """Return the results in numpy: floats in the dtype of the inputs (f64 or f32), dims as numbers."""
        raise InternalError(f"op {self.name} has no reference")

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value | tuple[Value, ...]:
        """Build the same result from core ops (composites only)."""
        raise InternalError(f"op {self.name} is not a composite")

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """Return floating point operations: 2 per multiply-add of its products, else 0."""
        return 0

    def output(self, index: int) -> str:
        """Return the name of the ``index``-th result (the last name stands for all further ones)."""
        return self.outputs[min(index, len(self.outputs) - 1)]

    def bind(self, attrs: Mapping[str, AttrValue]) -> dict[str, AttrValue | None]:
        """Return every attribute of the op, given or default.

        Raises:
            ShapeError: an unknown, missing or wrong attribute.
        """
        known = {a.name: a for a in self.attrs}
        for name in attrs:
            if name not in known:
                near = nearest(name, list(known))
                raise ShapeError(f"{self.name} has no attribute '{name}'",
                                 f"did you mean '{near}'?" if near else f"it has: {', '.join(known) or 'none'}")
        full: dict[str, AttrValue | None] = {}
        for name, attr in known.items():
            if name in attrs:
                full[name] = attrs[name]
            elif isinstance(attr.default, _Required):
                raise ShapeError(f"{self.name} needs the attribute '{name}'")
            else:
                full[name] = attr.default
            problem = attr.check(full[name])
            if problem:
                raise ShapeError(f"{self.name}: attribute '{name}' {problem}")
        return full

    def arrange(self, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return ``operands`` as the methods take them: one per input, the variadic tail as a list."""
        if self.inputs and self.inputs[-1].variadic:
            fixed = len(self.inputs) - 1
            return (*operands[:fixed], list(operands[fixed:]))
        return operands

    def infer_results(
        self, types: tuple[TensorType | None, ...], attrs: Mapping[str, AttrValue]
    ) -> tuple[TensorType, ...]:
        """Check operands against the signature and return the types of the results.

        Args:
            types: the type of each operand, None where absent.
            attrs: the attributes given (defaults are filled in here).

        Raises:
            ShapeError: wrong number, domain, attribute or shape.
        """
        variadic = bool(self.inputs) and self.inputs[-1].variadic
        fixed = len(self.inputs) - (1 if variadic else 0)
        if len(types) < fixed or (len(types) > fixed and not variadic):
            raise ShapeError(f"{self.name} takes {fixed}{'+' if variadic else ''} operands, got {len(types)}")
        for index, type in enumerate(types):
            spec = self.inputs[min(index, len(self.inputs) - 1)]
            if type is None:
                if not spec.optional:
                    raise ShapeError(f"{self.name}: input '{spec.name}' is missing")
            elif not spec.accepts(type):
                raise ShapeError(f"{self.name}: input '{spec.name}' takes {spec.domain}, got {type}")
        found = self.infer(*self.arrange(types), **self.bind(attrs))
        return found if isinstance(found, tuple) else (found,)


OpT = TypeVar("OpT", bound=Op)

_REGISTRY: dict[str, Op] = {}


def register(cls: type[OpT]) -> type[OpT]:
    """Add an op class to the registry (class decorator).

    Raises:
        InternalError: the name is taken.
    """
    if cls.name in _REGISTRY:
        raise InternalError(f"op {cls.name} is registered twice")
    _REGISTRY[cls.name] = cls()
    return cls


def all_ops() -> dict[str, Op]:
    """Return every registered op by name."""
    importlib.import_module("omnic.ir.ops")  # registers the ops; here because they import this module

    return dict(_REGISTRY)


def find_op(name: str) -> Op:
    """Return the op called ``name``.

    Raises:
        ShapeError: there is none; the nearest name is suggested.
    """
    if name not in _REGISTRY:
        all_ops()
    if name not in _REGISTRY:
        near = nearest(name, list(_REGISTRY))
        raise ShapeError(f"unknown op '{name}'", f"did you mean '{near}'?" if near else None)
    return _REGISTRY[name]


def broadcast_shapes(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the shape numpy broadcasting gives; symbolic dims must be equal or 1.

    Raises:
        ShapeError: the shapes do not broadcast.
    """
    rank = max(len(s) for s in shapes)
    out: list[Dim] = []
    for axis in range(-rank, 0):
        dims = [s[axis] for s in shapes if len(s) >= -axis]
        wide = [d for d in dims if d != 1]
        if any(d != wide[0] for d in wide):
            raise ShapeError(f"shapes {' and '.join(_shape(s) for s in shapes)} do not broadcast: {wide[0]} against "
                             f"{next(d for d in wide if d != wide[0])}")
        out.append(wide[0] if wide else 1)
    return tuple(out)


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(str(d) for d in shape)}]"


def as_tensor(value: Any) -> Array:
    """Return ``value`` as a numpy array (for references that may get python scalars)."""
    return np.asarray(value)
