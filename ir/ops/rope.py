"""Rotary position embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.errors import InputError
from omnic.ir.op import Array, Attr, In, ShapeError, register
from omnic.ir.ops.composite import Composite, as_element, check_rank, check_shape, plain, scalar
from omnic.ir.rope import SCALINGS, rope_frequencies
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["rope_angles", "rope_tables", "rotate"]

# Bits kept in each leading part of a frequency when a decomposition splits it (see Rope.decompose).
_SPLIT_BITS = 8
_FREQUENCY_ATTRS = ("base", "dims", "scaling", "factor", "original_context", "beta_fast", "beta_slow",
                    "attention_factor", "truncate", "factors")


def frequencies_of(attrs: dict[str, Any]) -> tuple[tuple[float, ...], float]:
    """Return the inverse frequencies and the magnitude that the attributes of a ``rope`` node name."""
    return rope_frequencies(**{n: attrs[n] for n in _FREQUENCY_ATTRS})


def rope_tables(positions: Array, attrs: dict[str, Any]) -> tuple[Array, Array]:
    """Return cos and sin, each f64 [..., dims/2], of ``positions`` [...], the magnitude multiplied in."""
    inverse, magnitude = frequencies_of(attrs)
    angles = np.asarray(positions, np.float64)[..., None] * np.asarray(inverse, np.float64)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


@register
class Rope(Composite):
    """With (a, b) a pair of the first ``dims`` numbers of a head and t = position * theta_i:
    (a, b) -> m * (a cos t - b sin t, a sin t + b cos t); numbers beyond ``dims`` pass unchanged.

    Pair i is (x[i], x[i + dims/2]) (half-split, NeoX layout), or (x[2i], x[2i+1]) when ``interleaved``.
    theta_i = base^(-2i/dims), changed by ``scaling``: ``linear`` theta_i / s; ``ntk`` base * s^(dims/(dims-2));
    ``yarn`` theta_i (1 - r_i (1 - 1/s)), r_i a ramp from 0 at ``beta_fast`` turns within ``original_context`` to 1 at
    ``beta_slow`` turns, linear in i between bounds that ``truncate`` rounds outwards, and m = 0.1 ln s + 1 unless
    ``attention_factor`` is given (else m = 1); ``llama3`` the same with a ramp linear in turns, and m = 1;
    ``longrope`` theta_i / factors[i], m = sqrt(1 + ln s / ln original_context) unless given.  s = ``factor``.
    :func:`omnic.ir.rope.rope_frequencies` is the formula.
    """

    name = "rope"
    category = "position"
    source = (
        "RoPE arXiv:2104.09864; linear arXiv:2306.15595; ntk and yarn arXiv:2309.00071; "
        "llama3 arXiv:2407.21783; longrope arXiv:2402.13753"
    )
    inputs = (
        In("x", "float", doc="[B, H, T, R] or [B, T, R]"),
        In("positions", "index", doc="[B, T]"),
    )
    attrs = (
        Attr("base", "float", 10000.0, doc="rotary base"),
        Attr("dims", "int", doc="rotated leading dims of R, even"),
        Attr("interleaved", "bool", False, doc="pairs are neighbours instead of halves"),
        Attr("scaling", "str", "none", choices=SCALINGS, doc="context extension"),
        Attr("factor", "float", 1.0, doc="s of the scaling"),
        Attr("original_context", "int", 0, doc="trained context in tokens (yarn, llama3, longrope)"),
        Attr("beta_fast", "float", 32.0, doc="turns from which a frequency is kept (yarn, llama3)"),
        Attr("beta_slow", "float", 1.0, doc="turns up to which it is divided by s (yarn, llama3)"),
        Attr("attention_factor", "float", None, doc="m, instead of the scaling's own (yarn, longrope)"),
        Attr("truncate", "bool", True, doc="the ramp's bounds are whole frequencies (yarn)"),
        Attr("factors", "floats", (), doc="divisors of the frequencies, dims/2 of them (longrope)"),
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        x, positions = types
        check_rank("rope", "x", x, 3, 4)
        check_shape("rope", "positions", positions, x.shape[0], x.shape[-2])
        if not isinstance(x.shape[-1], int) or attrs["dims"] > x.shape[-1]:
            raise ShapeError(f"rope: dims = {attrs['dims']} is more than the {x.shape[-1]} numbers of a head")
        try:
            frequencies_of(attrs)
        except InputError as error:
            raise ShapeError(f"rope: {error.message}", error.hint) from error
        return x.with_element(plain(x))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """Angles in f64, then rounded to the working precision."""
        x, positions = arrays
        dims = attrs["dims"]
        cos, sin = (t.astype(x.dtype) for t in rope_tables(positions, attrs))
        if x.ndim == 4:
            cos, sin = cos[:, None], sin[:, None]
        y = x.copy()
        if attrs["interleaved"]:
            first, second = slice(0, dims, 2), slice(1, dims, 2)
        else:
            first, second = slice(0, dims // 2), slice(dims // 2, dims)
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        return y

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """Angles, cos, sin, and the rotation.

        Frequencies are taken in turns and split into two parts of 8 bits and a rest, and whole turns are
        removed after each product: products of the leading parts with positions below 65536 are exact
        in f32, so the angle's error does not grow with the position.
        """
        x, positions = values
        cos, sin = rope_angles(b, positions, attrs)
        return rotate(b, x, cos, sin, attrs["interleaved"])


def rotate(b: FunctionBuilder, x: Value, cos: Value, sin: Value, interleaved: bool = False) -> Value:
    """Build the rotation of the leading dims of x [B, H, T, R] or [B, T, R] by ``cos`` and ``sin`` [B, T, dims/2]."""
    element, half = plain(x.type), cos.type.shape[-1]
    assert isinstance(half, int)
    dims = 2 * half
    x = as_element(b, x, element)
    if x.type.rank == 4:
        batch, _, tokens, _ = x.type.shape
        cos, sin = (b.reshape(t, batch, 1, tokens, half) for t in (cos, sin))
    cos, sin = as_element(b, cos, element), as_element(b, sin, element)
    axis = x.type.rank - 1
    turned = b.op("slice", x, axis=axis, start=(0,), stop=(dims,)) if dims != x.type.shape[-1] else x
    lead = x.type.shape[:-1]
    if interleaved:
        pairs = b.reshape(turned, *lead, half, 2)
        first, second = (b.reshape(p, *lead, half) for p in b.emit("split", pairs, axis=axis + 1, sizes=(1, 1)))
    else:
        first, second = b.emit("split", turned, axis=axis, sizes=(half, half))
    left = b.op("sub", b.op("mul", first, cos), b.op("mul", second, sin))
    right = b.op("add", b.op("mul", first, sin), b.op("mul", second, cos))
    if interleaved:
        stacked = b.op("concat", b.reshape(left, *lead, half, 1), b.reshape(right, *lead, half, 1), axis=axis + 1)
        y = b.reshape(stacked, *lead, dims)
    else:
        y = b.op("concat", left, right, axis=axis)
    if dims == x.type.shape[-1]:
        return y
    rest = b.op("slice", x, axis=axis, start=(dims,), stop=(x.type.shape[-1],))
    return b.op("concat", y, rest, axis=axis)


def rope_angles(b: FunctionBuilder, positions: Value, attrs: dict[str, Any]) -> tuple[Value, Value]:
    """Build :func:`rope_tables` in f32 from core ops."""
    inverse, magnitude = frequencies_of(attrs)
    parts = [_split_turns(f / (2.0 * math.pi)) for f in inverse]
    batch, tokens = positions.type.shape
    where = b.op("cast", b.reshape(positions, batch, tokens, 1), to=DType.F32)
    turns: Value | None = None
    for index in range(3):
        part = b.op("mul", where, b.constant(tuple(p[index] for p in parts)))
        part = b.op("sub", part, b.op("round", part))
        turns = part if turns is None else b.op("add", turns, part)
    assert turns is not None
    angle = b.op("mul", turns, scalar(b, 2.0 * math.pi, turns))
    cos, sin = b.op("cos", angle), b.op("sin", angle)
    if magnitude == 1.0:
        return cos, sin
    return b.op("mul", cos, scalar(b, magnitude, cos)), b.op("mul", sin, scalar(b, magnitude, sin))


def _split_turns(turns: float) -> tuple[float, float, float]:
    """Return two parts of 8 significant bits and the rest; their sum is ``turns``."""
    parts: list[float] = []
    rest = turns
    for _ in range(2):
        mantissa, exponent = math.frexp(rest)
        head = math.ldexp(math.floor(mantissa * (1 << _SPLIT_BITS)), exponent - _SPLIT_BITS)
        parts.append(head)
        rest -= head
    return parts[0], parts[1], rest
