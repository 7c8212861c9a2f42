"""Dims, numbers and names as C writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.types import DType

__all__ = ["C_TYPES", "dim", "f32", "f64", "ident", "wrapped"]

C_TYPES = {
    DType.F32: "float", DType.F16: "uint16_t", DType.BF16: "uint16_t", DType.I64: "int64_t", DType.I32: "int32_t",
    DType.I8: "int8_t", DType.U8: "uint8_t", DType.BOOL: "uint8_t",
}
_RESERVED = frozenset((
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while",
    "r", "c", "i", "K", "W", "P", "A", "B", "T", "R",
))


def ident(name: str) -> str:
    """Return ``name`` as a C identifier."""
    found = re.sub(r"\W", "_", name)
    return f"{found}_" if found in _RESERVED or found[:1].isdigit() else found


def dim(value: Dim) -> str:
    """Return a dim as a C expression of the int64_t variables B, T and R, in parentheses where it is a sum."""
    if isinstance(value, int):
        return str(value)
    terms: list[str] = []
    for monomial, coefficient in value.terms:
        factors = [_atom(a.kind, a.name, a.args) for a in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.append(str(abs(coefficient)))
        terms.append(("- " if coefficient < 0 else "+ ") + " * ".join(factors))
    text = " ".join(terms)
    text = text[2:] if text.startswith("+ ") else f"-{text[2:]}"
    return f"({text})" if len(terms) > 1 or text.startswith("-") else text


def _atom(kind: str, name: str, args: Sequence[Dim]) -> str:
    if kind == "sym":
        return name
    words = [dim(a) for a in args]
    if kind in ("floordiv", "ceildiv"):
        above, below = words
        return f"({above} / {below})" if kind == "floordiv" else f"(({above} + {below} - 1) / {below})"
    found = words[0]
    for word in words[1:]:
        found = f"omnic_{kind}({found}, {word})"
    return found


def f32(value: float) -> str:
    """Return a number as a float of C, exactly."""
    found = _decimal(float(str(np.float32(value))))
    return found if "INFINITY" in found or found == "NAN" else f"{found}f"


def f64(value: float) -> str:
    """Return a number as a double of C, exactly."""
    return _decimal(value)


def _decimal(value: float) -> str:
    if math.isinf(value) or math.isnan(value):
        return "NAN" if math.isnan(value) else "-INFINITY" if value < 0 else "INFINITY"
    text = repr(value)
    return text if any(ch in text for ch in ".e") else f"{text}.0"


def wrapped(items: Sequence[str], width: int = 112, indent: str = "    ") -> str:
    """Return the items, separated by commas, in lines of at most ``width``."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) + 2 > width and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip()])
