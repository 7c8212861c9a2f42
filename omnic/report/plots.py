"""Line plots as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["plot"]

#: chosen to stay apart for colour-blind readers (Okabe and Ito)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_WIDTH, _HEIGHT = 920.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 210.0, 16.0, 44.0


def plot(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    """Return a picture of named lines of (x, y) with y from 0; the names stand at the right, in the lines' order.

    Args:
        lines: name -> points; a line of one point is a dot.
        across: what x is, with its unit.
        up: what y is, with its unit.
    """
    points = [p for line in lines.values() for p in line]
    if not points:
        return ""
    ticks = _ticks(max(y for _, y in points))
    top = ticks[-1]
    xs = sorted({x for x, _ in points})
    low, high = xs[0], xs[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - low) / (high - low) if high > low else 0.5
        return (_LEFT + share * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM))

    parts: list[str] = []
    for tick in ticks:
        x, y = place(low, tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:,g}", "dim", "end"))
    for x in xs if len(xs) <= 12 else xs[:: math.ceil(len(xs) / 12)]:
        parts.append(_text(place(x, 0)[0], _HEIGHT - _BOTTOM + 18, f"{x:,g}", "dim", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "dim", "middle"))
    parts.append(_text(_LEFT, 10, up, "dim"))
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ends = [place(x, y) for x, y in line]
        if len(ends) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for (x, y), (at, value) in zip(ends, line, strict=True):
            title = f"{name}: {value:.4g} at {at:g}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"><title>{escape(title)}</title>'
                         "</circle>")
        y = _TOP + 14 + 22 * number
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 20}" y="{y - 10:.1f}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 40, y, name, "words"))
    label = f"{up} by {across}: {', '.join(lines)}"
    return (f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">'
            + "".join(parts) + "</svg>")


def _ticks(most: float) -> list[float]:
    """Return round numbers from 0 to at least ``most``, four to six of them."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    return [step * i for i in range(math.ceil(most / step) + 1)]


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(words)}</text>'
