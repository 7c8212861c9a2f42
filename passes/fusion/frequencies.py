"""Which rotary base and scaling a table of angles was made with.

The angles at position 1 are the inverse frequencies (:func:`omnic.ir.rope.rope_frequencies`).  Exporters compute them
in f32, so a base is looked for among round numbers first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.op import Array
from omnic.ir.rope import rope_frequencies

__all__ = ["Frequencies", "fit"]

# A frequency computed in f32 is off by a few units in the last place.
_CLOSE, _EXACT = 1e-6, 1e-12


@dataclass(frozen=True)
class Frequencies:
    """The attributes of ``rope`` that name a table."""

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    truncate: bool = True

    def attrs(self) -> dict[str, Any]:
        """Return them as attributes."""
        return {"base": self.base, "scaling": self.scaling, "factor": self.factor,
                "original_context": self.original_context, "attention_factor": self.attention_factor,
                "beta_fast": self.beta_fast, "truncate": self.truncate}

    def __str__(self) -> str:
        return f"base {self.base:g}" + (f", {self.scaling} by {self.factor:g}" if self.scaling != "none" else "")


def fit(table: tuple[Array, Array], context: int, exact: bool = False) -> Frequencies | None:
    """Return what a table was made with, None when no scaling gives it.

    Args:
        table: inverse frequencies [dims/2] (radians per position), and the magnitude of each pair [dims/2].
        context: of the model, in tokens: the first guess at what yarn was trained with.
        exact: whether frequencies that were computed in f32 are others.
    """
    theta, magnitude = table
    if np.ptp(magnitude) > _CLOSE * float(magnitude[0]) or float(theta.min()) <= 0:
        return None
    length = float(magnitude[0])
    for guess in _guesses(theta, length, context):
        try:
            wanted, gain = rope_frequencies(dims=2 * len(theta), **guess.attrs())
        except InputError:
            continue
        close = _EXACT if exact else _CLOSE
        if np.allclose(theta, wanted, rtol=close, atol=0) and math.isclose(gain, length, rel_tol=close):
            return guess
    return None


def _guesses(theta: Array, length: float, context: int) -> Iterator[Frequencies]:
    dims = 2 * len(theta)
    plain = abs(length - 1.0) < _CLOSE
    if len(theta) == 1:
        if plain and abs(float(theta[0]) - 1.0) < _CLOSE:
            yield Frequencies(10000.0)
        elif plain:
            yield Frequencies(10000.0, "linear", _rounded(1.0 / float(theta[0])))
        return
    factor = _rounded(1.0 / float(theta[0]))
    ratio = float(theta[-1] / theta[0])
    for base in _bases(ratio ** (-dims / (dims - 2.0))):
        if plain and factor == 1.0:
            yield Frequencies(base)
        elif plain and factor > 1.0:
            yield Frequencies(base, "linear", factor)
    yield from _yarns(theta, length, context)


def _yarns(theta: Array, length: float, context: int) -> Iterator[Frequencies]:
    """Yield mixtures: the base from the frequencies that yarn (or llama3) keeps, the factor from those it divides."""
    dims = 2 * len(theta)
    # The first frequencies are kept and the last ones all divided, so either end gives the base.
    ends = [float(theta[1] / theta[0]) ** (-dims / 2.0), float(theta[-1] / theta[-2]) ** (-dims / 2.0)]
    for base in dict.fromkeys(base for end in ends for base in _bases(end)):
        plain = np.power(base, -2.0 * np.arange(len(theta)) / dims)
        factor = _rounded(float(plain[-1] / theta[-1]))
        if factor <= 1.0:
            continue
        own = 0.1 * math.log(factor) + 1.0
        gain = None if math.isclose(own, length, rel_tol=_CLOSE) else length
        trained = [context, round(context / factor), *(2**i for i in range(4, 22)), *(3 * 2**i for i in range(4, 20))]
        for original in dict.fromkeys(c for c in trained if c > 0):
            yield Frequencies(base, "yarn", factor, original, gain)
            yield Frequencies(base, "yarn", factor, original, gain, truncate=False)
            if abs(length - 1.0) < _CLOSE:
                yield Frequencies(base, "llama3", factor, original, beta_fast=4.0)


def _bases(estimate: float) -> Iterator[float]:
    """Yield round numbers near an estimate, roundest first, then the estimate itself."""
    for digits in (1, 2, 3, 4, 6):
        yield _rounded(estimate, digits)
    yield float(estimate)


def _rounded(number: float, digits: int = 5) -> float:
    """Return a number to ``digits`` significant digits."""
    return float(f"{number:.{digits}g}")
