"""Sizes as people write them: bytes (4GB, 512MiB) and tokens (32k)."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["BYTE_UNITS", "TOKEN_UNITS", "bytes_text", "parse_bytes", "parse_tokens", "tokens_text"]

BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
TOKEN_UNITS = {"k": 2**10, "M": 2**20}

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]+)\Z", re.ASCII)


def parse_bytes(text: str) -> int:
    """Return the bytes ``text`` names: ``4GB`` is 4e9, ``4GiB`` is 4 * 2**30.

    Raises:
        ValueError: it is not a number followed by a byte unit, or not a whole number of bytes.
    """
    return _parse(text, BYTE_UNITS, "bytes", "4GB or 512MiB")


def parse_tokens(text: str) -> int:
    """Return the tokens ``text`` names: ``32k`` is 32 * 1024.

    Raises:
        ValueError: it is not a number followed by k or M, or not a whole number of tokens.
    """
    return _parse(text, TOKEN_UNITS, "tokens", "8192 or 8k")


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    found = _SIZE.match(text)
    if not found:
        raise ValueError(f"must be a number of {what}, as {example}")
    if found[2] not in units:
        raise ValueError(f"has the unit {found[2]!r}; units of {what} are {', '.join(units)}")
    amount = Fraction(found[1]) * units[found[2]]
    if amount.denominator != 1:
        raise ValueError(f"is not a whole number of {what}")
    return int(amount)


def bytes_text(amount: int) -> str:
    """Return the shortest exact spelling of a number of bytes."""
    return _spell(amount, ("TB", "GB", "MB", "TiB", "GiB", "MiB", "KiB", "kB"), BYTE_UNITS)


def tokens_text(amount: int) -> str:
    """Return the shortest exact spelling of a number of tokens (``32k``; 1000 stays 1000)."""
    return _spell(amount, ("M", "k"), TOKEN_UNITS)


def _spell(amount: int, order: tuple[str, ...], units: dict[str, int]) -> str:
    for unit in order:
        if amount and amount % units[unit] == 0:
            return f"{amount // units[unit]}{unit}"
    return str(amount)
