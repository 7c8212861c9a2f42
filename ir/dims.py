"""Dim expressions: the integers and symbols that shapes are made of.

A dim is a plain ``int`` or an :class:`Expr`: a polynomial with integer coefficients over *atoms*
(symbols, ``floordiv``, ``ceildiv``, ``min``, ``max``).  Expressions are kept in one canonical form, so
two dims are equal exactly when ``==`` says so, and constants fold to ``int``.  Polynomials (not only
affine forms) are needed because ``[B, T, D]`` is flattened to ``[B*T, D]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from omnic.errors import InputError

__all__ = ["Dim", "DimRange", "Expr", "bounds", "ceildiv", "evaluate", "floordiv", "maximum", "minimum",
           "parse_dim", "product", "substitute", "symbol", "symbols"]


@dataclass(frozen=True, order=True)
class Atom:
    """One factor of a monomial: a symbol (``kind`` 'sym') or a call of floordiv/ceildiv/min/max."""

    kind: str
    name: str = ""
    args: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        if self.kind == "sym":
            return self.name
        return f"{self.kind}({', '.join(str(a) for a in self.args)})"


Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Expr:
    """A canonical polynomial: sorted ``(monomial, coefficient)`` pairs, no zero coefficient."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(_negate(self), other, 1)

    def __neg__(self) -> Dim:
        return _negate(self)

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                key = tuple(sorted(left + right, key=str))
                out[key] = out.get(key, 0) + a * b
        return _canonical(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Dim:
        return floordiv(self, other)

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            sign = "-" if coefficient < 0 else "+"
            size = abs(coefficient)
            factors = [str(a) for a in monomial]
            if size != 1 or not factors:
                factors.insert(0, str(size))
            body = "*".join(factors)
            if not text:
                text = body if sign == "+" else f"-{body}"
            else:
                text += f" {sign} {body}"
        return text

    __repr__ = __str__


Dim = int | Expr


@dataclass(frozen=True)
class DimRange:
    """The values a symbol may take: ``low..high``, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


def symbol(name: str) -> Expr:
    """Return the dim that is the symbol ``name``."""
    return Expr((((Atom("sym", name),), 1),))


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, int):
        return (((), dim),)
    return dim.terms


def _canonical(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    order = sorted(kept.items(), key=lambda item: (item[0] == (), -len(item[0]), [str(a) for a in item[0]]))
    return Expr(tuple(order))


def _sum(left: Dim, right: Dim, sign: int) -> Dim:
    out: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(left):
        out[monomial] = out.get(monomial, 0) + coefficient
    for monomial, coefficient in _terms(right):
        out[monomial] = out.get(monomial, 0) + sign * coefficient
    return _canonical(out)


def _negate(dim: Expr) -> Dim:
    return Expr(tuple((m, -c) for m, c in dim.terms))


def floordiv(dim: Dim, by: int) -> Dim:
    """Return ``floor(dim / by)``; folds when every coefficient is a multiple of ``by``."""
    if by <= 0:
        raise InputError(f"floordiv by {by}: the divisor of a dim must be positive")
    if isinstance(dim, int):
        return dim // by
    if all(c % by == 0 for _, c in dim.terms):
        return _canonical({m: c // by for m, c in dim.terms})
    return Expr((((Atom("floordiv", args=(dim, by)),), 1),))


def ceildiv(dim: Dim, by: int) -> Dim:
    """Return ``ceil(dim / by)``; folds when every coefficient is a multiple of ``by``."""
    if by <= 0:
        raise InputError(f"ceildiv by {by}: the divisor of a dim must be positive")
    if isinstance(dim, int):
        return -(-dim // by)
    if all(c % by == 0 for _, c in dim.terms):
        return _canonical({m: c // by for m, c in dim.terms})
    return Expr((((Atom("ceildiv", args=(dim, by)),), 1),))


def _extreme(kind: str, fold: Callable[[int, int], int], dims: tuple[Dim, ...]) -> Dim:
    flat: list[Dim] = []
    for dim in dims:
        single = dim.terms[0] if isinstance(dim, Expr) and len(dim.terms) == 1 else None
        if single and single[1] == 1 and len(single[0]) == 1 and single[0][0].kind == kind:
            flat.extend(single[0][0].args)
        else:
            flat.append(dim)
    numbers = [d for d in flat if isinstance(d, int)]
    others = sorted({d for d in flat if isinstance(d, Expr)}, key=str)
    args: list[Dim] = list(others)
    if numbers:
        args.append(reduce(fold, numbers))
    if len(args) == 1:
        return args[0]
    return Expr((((Atom(kind, args=tuple(args)),), 1),))


def minimum(*dims: Dim) -> Dim:
    """Return the least of ``dims``."""
    return _extreme("min", min, dims)


def maximum(*dims: Dim) -> Dim:
    """Return the greatest of ``dims``."""
    return _extreme("max", max, dims)


def product(dims: tuple[Dim, ...]) -> Dim:
    """Return the product of ``dims`` (1 for none)."""
    out: Dim = 1
    for dim in dims:
        out = out * dim
    return out


def symbols(dim: Dim) -> frozenset[str]:
    """Return the names of the symbols in ``dim``."""
    if isinstance(dim, int):
        return frozenset()
    found: set[str] = set()
    for monomial, _ in dim.terms:
        for atom in monomial:
            if atom.kind == "sym":
                found.add(atom.name)
            for arg in atom.args:
                found |= symbols(arg)
    return frozenset(found)


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """Return ``dim`` with the symbols in ``values`` replaced; other symbols stay."""
    if isinstance(dim, int):
        return dim
    out: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, values)
        out = out + term
    return out


def _substitute_atom(atom: Atom, values: Mapping[str, Dim]) -> Dim:
    if atom.kind == "sym":
        return values.get(atom.name, symbol(atom.name))
    args = tuple(substitute(a, values) for a in atom.args)
    if atom.kind in ("floordiv", "ceildiv"):
        by = args[1]
        assert isinstance(by, int)
        return floordiv(args[0], by) if atom.kind == "floordiv" else ceildiv(args[0], by)
    return minimum(*args) if atom.kind == "min" else maximum(*args)


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """Return the number ``dim`` is under ``values``.

    Raises:
        InputError: a symbol of ``dim`` has no value.
    """
    result = substitute(dim, values)
    if isinstance(result, int):
        return result
    raise InputError(f"dim {dim} has no value: {', '.join(sorted(symbols(result)))} unknown")


def bounds(dim: Dim, ranges: Mapping[str, DimRange]) -> tuple[int, int]:
    """Return an interval that holds every value of ``dim`` (interval arithmetic, so maybe wide).

    Raises:
        InputError: a symbol of ``dim`` has no range.
    """
    if isinstance(dim, int):
        return dim, dim
    low = high = 0
    for monomial, coefficient in dim.terms:
        a, b = coefficient, coefficient
        for atom in monomial:
            c, d = _atom_bounds(atom, ranges)
            corners = (a * c, a * d, b * c, b * d)
            a, b = min(corners), max(corners)
        low, high = low + a, high + b
    return low, high


def _atom_bounds(atom: Atom, ranges: Mapping[str, DimRange]) -> tuple[int, int]:
    if atom.kind == "sym":
        if atom.name not in ranges:
            raise InputError(f"dim symbol {atom.name} is not declared", f"declare it: dim {atom.name} in 1..N")
        return ranges[atom.name].low, ranges[atom.name].high
    pairs = [bounds(a, ranges) for a in atom.args]
    if atom.kind == "min":
        return min(p[0] for p in pairs), min(p[1] for p in pairs)
    if atom.kind == "max":
        return max(p[0] for p in pairs), max(p[1] for p in pairs)
    by = pairs[1][0]
    if atom.kind == "floordiv":
        return pairs[0][0] // by, pairs[0][1] // by
    return -(-pairs[0][0] // by), -(-pairs[0][1] // by)


_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(\*|\+|-|\(|\)|,))", re.ASCII)
# What a text may ask for; far beyond any model, and small enough to be quick.
_MAX_DEPTH, _MAX_TERMS, _MAX_NUMBER = 32, 64, 2**64


def parse_dim(text: str) -> Dim:
    """Parse the text form of a dim, such as ``B*T + 1`` or ``min(T, 4)``.

    Raises:
        InputError: the text is not a dim expression.
    """
    tokens: list[str] = []
    at = 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if not match:
            raise InputError(f"'{text}' is not a dim expression")
        tokens.append(match.group().strip())
        at = match.end()
    parser = _DimParser(tokens, text)
    dim = parser.sum()
    if parser.at != len(tokens):
        raise InputError(f"'{text}' is not a dim expression: unexpected '{tokens[parser.at]}'")
    return dim


class _DimParser:
    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self.text, self.at, self.depth = tokens, text, 0, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise InputError(f"'{self.text}' is not a dim expression: it ends too early")
        self.at += 1
        return token

    def sum(self) -> Dim:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise InputError(f"a dim expression is nested deeper than {_MAX_DEPTH}")
        negative = self.peek() == "-" and bool(self.take())
        dim = self.term()
        if negative:
            dim = -dim
        while self.peek() in ("+", "-"):
            sign = self.take()
            right = self.term()
            dim = self.checked(dim + right if sign == "+" else dim - right)
        self.depth -= 1
        return dim

    def term(self) -> Dim:
        dim = self.factor()
        while self.peek() == "*":
            self.take()
            dim = self.checked(dim * self.factor())
        return dim

    def checked(self, dim: Dim) -> Dim:
        terms = _terms(dim)
        if len(terms) > _MAX_TERMS or any(len(m) > _MAX_TERMS or abs(c) >= _MAX_NUMBER for m, c in terms):
            raise InputError("a dim expression is too large")
        return dim

    def factor(self) -> Dim:
        token = self.take()
        if token.isdigit():
            if len(token) > 20:
                raise InputError("a dim expression is too large")
            return self.checked(int(token))
        if token == "(":
            dim = self.sum()
            self.expect(")")
            return dim
        if not (token[0].isalpha() or token[0] == "_"):
            raise InputError(f"'{self.text}' is not a dim expression: unexpected '{token}'")
        if self.peek() == "(":
            return self.call(token)
        return symbol(token)

    def call(self, name: str) -> Dim:
        self.take()
        args = [self.sum()]
        while self.peek() == ",":
            self.take()
            args.append(self.sum())
        self.expect(")")
        if name == "min":
            return minimum(*args)
        if name == "max":
            return maximum(*args)
        if name in ("floordiv", "ceildiv") and len(args) == 2 and isinstance(args[1], int):
            return floordiv(args[0], args[1]) if name == "floordiv" else ceildiv(args[0], args[1])
        raise InputError(f"'{name}' is not a function of dims", "known: floordiv(d, n), ceildiv(d, n), min, max")

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise InputError(f"'{self.text}' is not a dim expression: expected '{token}'")
        self.take()
