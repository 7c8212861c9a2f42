"""Writing one function of the IR as a MIL function: values, names, constants, weights."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError, InternalError
from omnic.ir.dims import Dim
from omnic.ir.graph import Module, Node, Value
from omnic.ir.op import find_op
from omnic.ir.types import DType, Storage
from omnic.targets.coreml.mil import Builder, Var
from omnic.targets.coreml.stored import WeightTable
from omnic.targets.refusals import refused

__all__ = ["MilWriter", "attrs_of", "refuse", "sanitised"]

_BAD = re.compile(r"[^A-Za-z0-9_]")
_WORDS: Mapping[DType, str] = {
    DType.I64: "int32", DType.I32: "int32", DType.I8: "int32", DType.U8: "int32", DType.BOOL: "bool",
}


def attrs_of(node: Node) -> dict[str, Any]:
    """Return every attribute of a node, defaults filled in."""
    return find_op(node.op).bind(node.attrs)


def refuse(node: Node, why: str, hint: str) -> InputError:
    """Return the error for a node that the target cannot honour: it names the op and the line of the spec."""
    return refused("coreml", node, why, hint)


def sanitised(name: str) -> str:
    """Return ``name`` as a MIL identifier."""
    return _BAD.sub("_", name)


class MilWriter:
    """Collects the MIL operations of one function; used inside its ``with Function(...)``.

    Args:
        module: the module of the function.
        weights: where weights become constants.
        half: whether floats are fp16.
        columns: whether products are 1x1 convolutions over [1, C, 1, T].
        length: of the call, for names of what depends on it; None when it is flexible.
    """

    def __init__(self, module: Module, weights: WeightTable, *, half: bool, columns: bool, length: int | None) -> None:
        self.module, self.weights, self.length = module, weights, length
        self.half, self.columnar = half, columns
        self.names: dict[str, str] = {}
        #: values whose name is that of [1, C, 1, T]
        self.laid_out: set[str] = set()
        self.ops: dict[str, list[str]] = {}
        self._env: dict[Value, Var] = {}
        self._columns: dict[Value, Var] = {}
        self._constants: dict[tuple[Any, ...], Var] = {}
        self._weights: dict[tuple[str, bool, bool], Var] = {}
        self._taken: set[str] = set()
        self._owner: dict[int, str] = {}
        self._count = 0
        self._node: Node | None = None
        self._single: list[Value] | None = None
        self.known: frozenset[Value] = frozenset()
        #: state -> the runtime's state; and what several nodes share, by what it was made of
        self.caches: dict[Any, Any] = {}

    # -- values ------------------------------------------------------------------------------------
    @property
    def float(self) -> str:
        """The word for floats: ``fp16`` or ``fp32``."""
        return "fp16" if self.half else "fp32"

    def word(self, dtype: DType) -> str:
        """Return MIL's word for an element type."""
        return self.float if dtype.is_float else _WORDS[dtype]

    def given(self, value: Value, var: Var) -> None:
        """Say that ``value`` is the function's input ``var``."""
        self._env[value] = var
        self._taken.add(var.name)
        self.names[value.name] = var.name
        self._owner[id(var)] = value.name

    def given_columns(self, value: Value, var: Var) -> None:
        """Say that ``value`` [1, T, D] is the function's input ``var`` [1, D, 1, T]."""
        self._columns[value] = var
        self._taken.add(var.name)
        self.names[value.name] = var.name
        self.laid_out.add(value.name)
        self._owner[id(var)] = value.name

    def need(self, value: Value | None) -> Var:
        """Return what holds ``value``, weights as constants."""
        if value is None:
            raise InternalError("an absent operand was asked for")
        if value.weight and value not in self._env:
            return self.weight(value)
        if value not in self._env and value in self._columns:
            shape = value.type.shape
            moved = self.op("transpose", x=self._columns[value], perm=[0, 3, 1, 2])
            self._env[value] = self.op("reshape", x=moved, shape=self.dims(shape))
        if value not in self._env:
            raise InternalError(f"%{value.name} is read before it is made")
        return self._env[value]

    def bound(self, value: Value) -> bool:
        """Whether an operation has made ``value`` already."""
        return value in self._env

    def has_columns(self, value: Value | None) -> bool:
        """Whether ``value`` [1, T, D] is there as [1, D, 1, T]."""
        return value is not None and value in self._columns

    def columns(self, value: Value) -> Var:
        """Return ``value`` [1, T, D] as [1, D, 1, T]."""
        if value not in self._columns:
            moved = self.op("transpose", x=self.need(value), perm=[0, 2, 1])
            self._columns[value] = self.op("expand_dims", x=moved, axes=[2])
        return self._columns[value]

    def bind(self, value: Value, var: Var) -> None:
        """Say that ``var`` holds ``value``, and give it its name."""
        self._env[value] = var
        if self._single is not None:
            self._single.append(value)
        else:
            self._name(value, var)

    def bind_columns(self, value: Value, var: Var) -> None:
        """Say that ``var`` holds ``value`` with its last dim first and its tokens last."""
        self._columns[value] = var
        self._name(value, var)
        if self.names.get(value.name) == var.name:
            self.laid_out.add(value.name)

    def _name(self, value: Value, var: Var) -> None:
        if value not in self.known:
            return
        if id(var) not in self._owner and var.op is not None and not var.op.op_type.startswith("const"):
            name = self.fresh(sanitised(value.name))
            if len(var.op.outputs) == 1:
                var.op.name = name
            var.name = name
            self._owner[id(var)] = value.name
        self.names.setdefault(value.name, var.name)

    def rename(self, var: Var, name: str) -> None:
        """Call ``var`` an output ``name``; the value of the IR that it holds is found under it."""
        old = var.name
        if old == name:
            return
        name = self.fresh(name if name not in self._taken else f"{name}_out")
        var.name = name
        if var.op is not None and len(var.op.outputs) == 1:
            var.op.name = name
        for value, known in self.names.items():
            if known == old:
                self.names[value] = name

    def held(self, value: Value, var: Var) -> None:
        """Say that the runtime holds the state ``value`` as ``var``."""
        self.caches[value] = var
        self.names[value.name] = var.name
        self._taken.add(var.name)

    def fresh(self, name: str) -> str:
        """Return an identifier that nothing else has."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    # -- operations -----------------------------------------------------------------------------------
    @contextmanager
    def at(self, node: Node) -> Generator[None]:
        """Attribute the operations made inside to ``node``."""
        before, self._node = self._node, self._node or node
        try:
            yield
        finally:
            self._node = before

    @contextmanager
    def single(self) -> Generator[None]:
        """Compute in fp32 inside, whatever the program's precision is."""
        if not self.half:
            yield
            return
        self.half, self._single = False, []
        try:
            yield
        finally:
            self.half, bound, self._single = True, self._single, None
        for value in bound:
            # What is bound inside stays fp32 for the nodes inside; the function's own values go on in fp16.
            if value in self.known:
                var = self._env[value]
                self.bind(value, self.cast(var, self.float) if value.type.is_float else var)

    def op(self, kind: str, **inputs: Any) -> Any:
        """Append one operation; arrays and lists among its inputs become constants."""
        self._count += 1
        name = f"_{kind}_{self._count}"
        made = getattr(Builder, kind)(name=name, **{k: v for k, v in inputs.items() if v is not None})
        if self._node is not None:
            self.ops.setdefault(self._node.name, []).append(kind)
        return made

    def const(self, value: Any, dtype: Any = None) -> Var:
        """Return a constant: a number or an array; floats get the program's precision."""
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = np.float16 if self.half else np.float32
        elif dtype is None and array.dtype.kind in "iu":
            dtype = np.int32
        array = array.astype(dtype if dtype is not None else array.dtype)
        if array.size > 64:
            return self._large(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._count += 1
            held = array if array.ndim else array[()]
            self._constants[key] = Builder.const(val=held, name=f"_const_{self._count}")
        return self._constants[key]

    def _large(self, array: NDArray[Any]) -> Var:
        key = (array.dtype.str, array.shape, hash(array.tobytes()))
        if key not in self._constants:
            self._count += 1
            self._constants[key] = self.weights.array(array, f"_const_{self._count}")
        return self._constants[key]

    def weight(self, value: Value, columns: bool = False) -> Var:
        """Return a weight as a constant in the program's precision; ``columns`` adds two dims of 1 at its end."""
        key = (value.name, self.half, columns)
        if key not in self._weights:
            self._count += 1
            name = self.fresh(f"w_{sanitised(value.name)}" + ("_conv" if columns else ""))
            self._weights[key] = self.weights.constant(self.module.weights[value.name], name, self.half, columns)
        return self._weights[key]

    # -- types ----------------------------------------------------------------------------------------
    def dims(self, shape: Sequence[Dim]) -> list[int]:
        """Return a shape for ``reshape``: at most one dim is not known, and is -1."""
        found = [d if isinstance(d, int) else -1 for d in shape]
        if found.count(-1) > 1:
            raise InternalError(f"a shape with two flexible dims: {', '.join(map(str, shape))}")
        return found

    def cast(self, var: Var, word: str) -> Var:
        """Return ``var`` as another type."""
        return var if word_of(var) == word else self.op("cast", x=var, dtype=word)

    def as_float(self, value: Value | None) -> Var:
        """Return a float value in the precision that is computed in."""
        return self.cast(self.need(value), self.float)


def word_of(var: Var) -> str:
    """Return MIL's word for the type of ``var``."""
    from omnic.targets.coreml.mil import type_word

    return type_word(var)


def is_stored(value: Value) -> bool:
    """Whether a value is a weight of codes."""
    return value.weight and isinstance(value.type.element, Storage)
