"""Lowering of core ops to torch expressions, for both emitted modules.

A lowering takes a pen and a step and returns the expression of its result (a tuple expression for several).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from omnic.errors import InputError
from omnic.ir.dims import Dim
from omnic.ir.graph import Value
from omnic.ir.ops.composite import GATE_ATTRS
from omnic.ir.types import DType, ElementType
from omnic.targets.torch.text.steps import Step

__all__ = ["CORE", "Code", "Lowering", "Pen", "TORCH_DTYPES", "call", "gate_numbers", "literal", "torch_dtype"]

TORCH_DTYPES = {
    DType.F32: "torch.float32",
    DType.F16: "torch.float16",
    DType.BF16: "torch.bfloat16",
    DType.I64: "torch.int64",
    DType.I32: "torch.int32",
    DType.I8: "torch.int8",
    DType.U8: "torch.uint8",
    DType.BOOL: "torch.bool",
}


@dataclass(frozen=True)
class Code:
    """A Python expression; ``atomic`` if a method call or an operator may follow it without parentheses."""

    text: str
    atomic: bool = True


class Pen(Protocol):
    """What a lowering may ask of the writer."""

    def arg(self, value: Value | None) -> str:
        """Return ``value`` as an argument (``None`` where absent)."""
        ...

    def atom(self, value: Value | None) -> str:
        """Return ``value`` so that an operator or a method may follow it."""
        ...

    def number(self, name: str, value: float | int) -> str:
        """Return a number; where the same class is used with several, it becomes the class's argument ``name``."""
        ...

    def dims(self, dims: tuple[Dim, ...]) -> str:
        """Return dims separated by commas."""
        ...

    def helper(self, name: str) -> str:
        """Return the name of a library function, which the text will define."""
        ...

    def buffers(self, names: tuple[str, ...], source: str) -> list[str]:
        """Return what the buffers made once by the expression ``source`` are called (``{limit}``: the longest T)."""
        ...

    def constant(self, name: str, text: str) -> str:
        """Return the name of a constant of the file that is the expression ``text``."""
        ...

    def like(self) -> str:
        """Return an expression of the device that new tensors belong on."""
        ...


Lowering = Callable[[Pen, Step], Code]


def torch_dtype(element: ElementType) -> str:
    """Return the torch dtype of a plain element type.

    Raises:
        InputError: it is a storage type.
    """
    if not isinstance(element, DType):
        raise InputError(f"torch has no dtype for {element}; dequantise it first")
    return TORCH_DTYPES[element]


def call(function: str, *arguments: str) -> Code:
    """Return the call of ``function``; empty arguments are left out."""
    return Code(f"{function}({', '.join(a for a in arguments if a)})")


def gate_numbers(step: Step) -> list[str]:
    """Return the numbers of a gated activation that are not at their defaults, as arguments by name."""
    return [f"{a.name}={step.attrs[a.name]!r}" for a in GATE_ATTRS if step.attrs[a.name] != a.default]


def _infix(sign: str) -> Lowering:
    return lambda pen, step: Code(f"{pen.atom(step.operands[0])} {sign} {pen.atom(step.operands[1])}", False)


def _function(name: str) -> Lowering:
    return lambda pen, step: call(name, *(pen.arg(v) for v in step.operands))


def _method(name: str) -> Lowering:
    return lambda pen, step: call(f"{pen.atom(step.operands[0])}.{name}")


def literal(value: Any, kind: DType) -> str:
    """Return a number as Python writes it; torch refuses one that its type cannot hold, and Python knows no inf."""
    if kind == DType.BOOL:
        return repr(bool(value))
    if not kind.is_float:
        return repr(int(value))
    number = float(value)
    # Beyond what the type holds, rounding decides between its largest number and infinity.
    if abs(number) > float(ml_dtypes.finfo(kind.numpy).max):
        number = float(np.float64(number).astype(kind.numpy))
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def _constant(pen: Pen, step: Step) -> Code:
    values: tuple[Any, ...] = step.attrs["values"]
    kind: DType = step.attrs["type"]
    whole = [literal(v, kind) for v in values]
    shape = step.results[0].type.shape
    options = f"dtype={torch_dtype(kind)}, device={pen.like()}"
    if not shape:
        return Code(f"torch.tensor({whole[0]}, {options})")
    if len(whole) == 1:
        return Code(f"torch.full(({pen.dims(shape)},), {whole[0]}, {options})")
    flat = Code(f"torch.tensor([{', '.join(whole)}], {options})")
    return flat if len(shape) == 1 else Code(f"{flat.text}.reshape({pen.dims(shape)})")


def _clamp(pen: Pen, step: Step) -> Code:
    return call(
        f"{pen.atom(step.operands[0])}.clamp",
        *(f"{n}={pen.number(n, step.attrs[n])}" for n in ("min", "max") if step.attrs[n] is not None),
    )


def _cast(pen: Pen, step: Step) -> Code:
    return call(f"{pen.atom(step.operands[0])}.to", torch_dtype(step.attrs["to"]))


def _reduce(name: str) -> Lowering:
    def lower(pen: Pen, step: Step) -> Code:
        axes = step.attrs["axes"]
        dim = str(axes[0]) if len(axes) == 1 else str(tuple(axes))
        return call(f"{pen.atom(step.operands[0])}.{name}", dim, "keepdim=True" if step.attrs["keepdims"] else "")

    return lower


def _along(function: str) -> Lowering:
    return lambda pen, step: call(function, *(pen.arg(v) for v in step.operands), str(step.attrs["axis"]))


def _matmul(pen: Pen, step: Step) -> Code:
    def side(value: Value | None, swapped: bool) -> str:
        return f"{pen.atom(value)}.transpose(-1, -2)" if swapped else pen.atom(value)

    return Code(f"{side(step.operands[0], step.attrs['ta'])} @ {side(step.operands[1], step.attrs['tb'])}", False)


def _reshape(pen: Pen, step: Step) -> Code:
    return Code(f"{pen.atom(step.operands[0])}.reshape({pen.dims(step.attrs['shape']) or '()'})")


def _transpose(pen: Pen, step: Step) -> Code:
    perm = tuple(step.attrs["perm"])
    moved = [i for i, p in enumerate(perm) if p != i]
    if not moved:
        return Code(pen.atom(step.operands[0]))
    if len(moved) == 2:
        return call(f"{pen.atom(step.operands[0])}.transpose", str(moved[0]), str(moved[1]))
    return call(f"{pen.atom(step.operands[0])}.permute", *(str(p) for p in perm))


def _broadcast(pen: Pen, step: Step) -> Code:
    return Code(f"{pen.atom(step.operands[0])}.expand({pen.dims(step.attrs['shape']) or '()'})")


def _slice(pen: Pen, step: Step) -> Code:
    x = step.operands[0]
    assert x is not None
    axis = step.attrs["axis"] % x.type.rank
    start, stop = pen.dims(step.attrs["start"]), pen.dims(step.attrs["stop"])
    part = f"{'' if step.attrs['start'] == (0,) else start}:{stop}"
    return Code(f"{pen.atom(x)}[{', '.join([*[':'] * axis, part])}]")


def _concat(pen: Pen, step: Step) -> Code:
    return call("torch.cat", f"[{', '.join(pen.arg(v) for v in step.operands)}]", f"dim={step.attrs['axis']}")


def _split(pen: Pen, step: Step) -> Code:
    sizes, axis = pen.dims(step.attrs["sizes"]), f"dim={step.attrs['axis']}"
    code = call(f"{pen.atom(step.operands[0])}.split", f"[{sizes}]", axis)
    return code if len(step.results) > 1 else Code(f"{code.text}[0]")


def _pad(pen: Pen, step: Step) -> Code:
    x = step.operands[0]
    assert x is not None
    behind = x.type.rank - 1 - step.attrs["axis"] % x.type.rank
    around = [0, 0] * behind + [step.attrs["before"], step.attrs["after"]]
    return call(
        "F.pad", pen.arg(x), str(tuple(around)), f"value={step.attrs['value']!r}" if step.attrs["value"] else ""
    )


def _iota(pen: Pen, step: Step) -> Code:
    kind = step.attrs["type"]
    return call(
        "torch.arange",
        pen.dims(step.attrs["size"]),
        f"dtype={torch_dtype(kind)}" if kind != DType.I64 else "",
        f"device={pen.like()}",
    )


def _helper(name: str, *attrs: str) -> Lowering:
    return lambda pen, step: call(
        pen.helper(name), *(pen.arg(v) for v in step.operands), *(f"{a}={step.attrs[a]!r}" for a in attrs)
    )


def _index_select(pen: Pen, step: Step) -> Code:
    if step.attrs["axis"] == 0:
        return Code(f"{pen.atom(step.operands[0])}[{pen.arg(step.operands[1])}]")
    x = step.operands[0]
    assert x is not None
    axis = step.attrs["axis"] % x.type.rank
    return Code(f"{pen.atom(x)}[{', '.join([*[':'] * axis, pen.arg(step.operands[1])])}]")


#: op -> how it is written; composites are in the tables of the two emitters.
CORE: dict[str, Lowering] = {
    "constant": _constant,
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _infix("/"),
    "pow": _infix("**"),
    "minimum": _function("torch.minimum"),
    "maximum": _function("torch.maximum"),
    "floordiv": _function("torch.floor_divide"),
    "mod": _function("torch.remainder"),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "and": _infix("&"),
    "or": _infix("|"),
    "not": lambda pen, step: Code(f"~{pen.atom(step.operands[0])}", False),
    "neg": lambda pen, step: Code(f"-{pen.atom(step.operands[0])}", False),
    "abs": _method("abs"),
    "exp": _method("exp"),
    "log": _method("log"),
    "sqrt": _method("sqrt"),
    "rsqrt": _method("rsqrt"),
    "sin": _method("sin"),
    "cos": _method("cos"),
    "tanh": _method("tanh"),
    "sigmoid": _method("sigmoid"),
    "erf": _method("erf"),
    "round": _method("round"),
    "relu": _method("relu"),
    "clamp": _clamp,
    "where": _function("torch.where"),
    "cast": _cast,
    "sum": _reduce("sum"),
    "max": _reduce("amax"),
    "mean": _reduce("mean"),
    "argmax": _along("torch.argmax"),
    "cumsum": _along("torch.cumsum"),
    "softmax": _helper("softmax", "axis"),
    "matmul": _matmul,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "split": _split,
    "pad": _pad,
    "iota": _iota,
    "gather": _helper("gather", "axis"),
    "index_select": _index_select,
    "scatter": _helper("scatter", "axis", "reduce"),
    "topk": _helper("topk", "k", "axis"),
    "sort": _helper("sort", "axis", "descending"),
    "depthwise_conv1d": _helper("depthwise_conv1d"),
}
