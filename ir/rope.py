"""Rotary position frequencies and their scalings to longer contexts.

Sources: RoPE, arXiv:2104.09864; linear (position interpolation), arXiv:2306.15595; NTK-aware base,
discussed and defined in section 3.1 of YaRN, arXiv:2309.00071; YaRN, the same paper; llama3, the released
code of Llama 3.1 (arXiv:2407.21783); LongRoPE, arXiv:2402.13753.
"""

from __future__ import annotations

import math

from omnic.errors import InputError

__all__ = ["SCALINGS", "rope_frequencies"]

SCALINGS = ("none", "linear", "ntk", "yarn", "llama3", "longrope")


def rope_frequencies(
    base: float,
    dims: int,
    scaling: str = "none",
    factor: float = 1.0,
    original_context: int = 0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    truncate: bool = True,
    factors: tuple[float, ...] = (),
) -> tuple[tuple[float, ...], float]:
    """Return the inverse frequencies (radians per position, ``dims/2`` of them) and the magnitude.

    With ``theta_i = base^(-2i/dims)`` and ``s = factor``:

    * ``none``: ``theta_i``;
    * ``linear``: ``theta_i / s``;
    * ``ntk``: ``base`` becomes ``base * s^(dims/(dims-2))``, which leaves the highest frequency alone and
      divides the lowest by exactly ``s``;
    * ``yarn``: ``theta_i / s`` mixed with ``theta_i`` by a ramp over the frequencies.  A frequency that turns
      ``beta_fast`` times or more within ``original_context`` stays, one that turns ``beta_slow`` times or fewer
      is divided by ``s``; between them the mix is linear in i, as the paper's released code has it
      (bounds rounded outwards to whole frequencies, unless ``truncate`` is off as in gpt-oss).  Cosines and sines
      are multiplied by the magnitude ``0.1 ln(s) + 1`` (unless ``attention_factor`` says otherwise),
      so logits are multiplied by its square (the paper's attention temperature ``1/sqrt(t)``);
    * ``llama3``: as ``yarn``, but between the two bounds the mix is linear in the turns a frequency makes within
      ``original_context`` (``beta_fast`` is the released code's high_freq_factor, 4, and ``beta_slow`` its
      low_freq_factor, 1), and the magnitude is 1;
    * ``longrope``: ``theta_i / factors[i]``, factors found by search; the magnitude is
      ``sqrt(1 + ln(s) / ln(original_context))`` unless ``attention_factor`` says otherwise.

    Args:
        base: the rotary base.
        dims: rotated dims of a head, even.
        scaling: one of ``SCALINGS``.
        factor: s, how many times longer than trained; at least 1.
        original_context: trained context in tokens (``yarn``, ``llama3`` and ``longrope``).
        beta_fast: turns within the trained context from which a frequency is kept.
        beta_slow: turns up to which a frequency is interpolated.
        attention_factor: magnitude to use instead of the scaling's own (``yarn`` and ``longrope``).
        truncate: yarn's ramp begins and ends at whole frequencies.
        factors: divisors of the frequencies, dims/2 of them (``longrope``).

    Raises:
        InputError: an odd ``dims``, an unknown scaling, a factor below 1, a scaling without its context, or factors
            that are not dims/2 positive numbers.
    """
    if dims <= 0 or dims % 2:
        raise InputError(f"rotated dims come in pairs: {dims} is not a positive even number")
    if scaling not in SCALINGS:
        raise InputError(f"unknown rope scaling '{scaling}'", f"known: {', '.join(SCALINGS)}")
    if factor < 1:
        raise InputError(f"rope scaling factor must be at least 1, got {factor:g}")
    if scaling == "ntk" and dims > 2:
        base = base * factor ** (dims / (dims - 2))
    inverse = tuple(base ** (-2.0 * i / dims) for i in range(dims // 2))
    if scaling == "linear":
        return tuple(f / factor for f in inverse), 1.0
    if scaling in ("none", "ntk"):
        return inverse, 1.0
    if original_context <= 0:
        raise InputError(f"{scaling} needs the context the model was trained with", "set rope scaling original_context")
    if scaling == "longrope":
        return _longrope(inverse, factors), _longrope_magnitude(factor, original_context, attention_factor)
    if scaling == "llama3":
        turns = [original_context * f / (2.0 * math.pi) for f in inverse]
        kept = [min(max((t - beta_slow) / (beta_fast - beta_slow), 0.0), 1.0) for t in turns]
        return tuple(f / factor * (1.0 - k) + f * k for f, k in zip(inverse, kept, strict=True)), 1.0
    low, high = (_index_of(turns, base, dims, original_context) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low if high > low else 0.001
    ramps = [min(max((i - low) / width, 0.0), 1.0) for i in range(dims // 2)]
    mixed = [f / factor * ramp + f * (1.0 - ramp) for f, ramp in zip(inverse, ramps, strict=True)]
    magnitude = 0.1 * math.log(factor) + 1.0 if attention_factor is None else attention_factor
    return tuple(mixed), magnitude


def _index_of(turns: float, base: float, dims: int, context: int) -> float:
    """Return the (real) index of the frequency that makes ``turns`` turns within ``context`` tokens."""
    return dims * math.log(context / (turns * 2.0 * math.pi)) / (2.0 * math.log(base))


def _longrope(inverse: tuple[float, ...], factors: tuple[float, ...]) -> tuple[float, ...]:
    if len(factors) != len(inverse):
        raise InputError(f"longrope wants a factor for each of the {len(inverse)} frequencies, got {len(factors)}")
    if min(factors) <= 0:
        raise InputError(f"the factors of longrope are positive, got {min(factors):g}")
    return tuple(f / by for f, by in zip(inverse, factors, strict=True))


def _longrope_magnitude(factor: float, context: int, given: float | None) -> float:
    if given is not None:
        return given
    return 1.0 if factor <= 1 else math.sqrt(1.0 + math.log(factor) / math.log(context))
