"""Bytes against quality as SVG: both models beside each other, log axes, one colour and mark a family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Point", "picture"]

WIDTH, PANEL_HEIGHT, GAP = 1080, 430, 74
_LEFT, _TOP = 76, 86
_INK, _DIM, _RULE = "#1c2430", "#5b6675", "#e3e8ee"

#: colour and mark of each family (Okabe and Ito's palette; llama.cpp in black, dashed)
STYLES: dict[str, tuple[str, str]] = {
    "llama.cpp": ("#111111", "square"),
    "round to nearest": ("#8c8c8c", "circle"),
    "HQQ": ("#e69f00", "circle"),
    "AWQ": ("#56b4e9", "circle"),
    "GPTQ": ("#0072b2", "circle"),
    "nf4, fp4": ("#cc79a7", "diamond"),
    "mixed": ("#009e73", "diamond"),
    "ternary": ("#d55e00", "triangle"),
    "per token": ("#8c8c8c", "circle"),
    "newest in f16": ("#56b4e9", "circle"),
    "per channel": ("#0072b2", "circle"),
    "static": ("#e69f00", "diamond"),
    "latent": ("#009e73", "triangle"),
    "mixed bits": ("#cc79a7", "diamond"),
}
#: families whose points are joined from left to right
JOINED = ("llama.cpp", "GPTQ", "mixed", "newest in f16")


@dataclass(frozen=True)
class Point:
    """One changed model in a picture; ``label`` is written beside it unless empty."""

    x: float
    y: float
    family: str
    name: str
    label: str = ""


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, and whether it is logarithmic."""

    title: str
    log: bool = False
    unit: float = 1.0


def picture(title: str, panels: Mapping[str, Sequence[Point]], x: Axis, y: Axis) -> str:
    """Return an SVG with a panel for each model; every point says its numbers when pointed at."""
    families = [f for f in STYLES if any(p.family == f for points in panels.values() for p in points)]
    height = _TOP + PANEL_HEIGHT + 62
    width = (WIDTH - _LEFT - 24 - GAP * (len(panels) - 1)) / len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, -apple-system, Segoe UI, sans-serif" font-size="12.5">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _words(24, 28, title, size=16, weight=600),
        *_legend(families),
    ]
    for index, (name, points) in enumerate(panels.items()):
        parts.append(_panel(_LEFT + index * (width + GAP), width, name, points, x, y))
    return "".join(parts) + "</svg>\n"


def _words(x: float, y: float, text: str, anchor: str = "start", size: float = 12.5, colour: str = _INK,
           weight: int = 400, turn: bool = False) -> str:  # fmt: skip
    spin = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}"{spin}>{escape(text)}</text>'
    )


def _mark(x: float, y: float, family: str, title: str = "", r: float = 5) -> str:
    colour, shape = STYLES[family]
    hover = f"<title>{escape(title)}</title>" if title else ""
    look = f'fill="{colour}" stroke="#ffffff" stroke-width="1"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {look}>{hover}</circle>'
    if shape == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" {look}>{hover}</rect>'
    corners = [(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)] if shape == "diamond" else [
        (0, -r - 1), (r + 1, r), (-r - 1, r)
    ]  # fmt: skip
    dots = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{dots}" {look}>{hover}</polygon>'


def _legend(families: Sequence[str]) -> list[str]:
    parts, at = list[str](), 24.0
    for family in families:
        parts += [_mark(at + 6, 51, family), _words(at + 18, 55, family)]
        at += 40 + 7.2 * len(family)
    return parts


def _panel(left: float, width: float, name: str, points: Sequence[Point], x: Axis, y: Axis) -> str:
    bottom = _TOP + PANEL_HEIGHT
    xs, ys = _Scale([p.x / x.unit for p in points], x.log), _Scale([p.y / y.unit for p in points], y.log)

    def place(p: Point) -> tuple[float, float]:
        return left + xs.share(p.x / x.unit) * width, bottom - ys.share(p.y / y.unit) * PANEL_HEIGHT

    parts = [_words(left, _TOP - 10, name, weight=600, size=14)]
    for tick in ys.ticks():
        at = bottom - ys.share(tick) * PANEL_HEIGHT
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{left + width:.1f}" stroke="{_RULE}"/>')
        parts.append(_words(left - 8, at + 4, _number(tick), "end", colour=_DIM))
    for tick in xs.ticks():
        at = left + xs.share(tick) * width
        parts.append(f'<path d="M{at:.1f} {_TOP}V{bottom}" stroke="{_RULE}"/>')
        parts.append(_words(at, bottom + 18, _number(tick), "middle", colour=_DIM))
    parts.append(_words(left + width / 2, bottom + 42, x.title, "middle", colour=_DIM))
    parts.append(_words(left - 54, _TOP + PANEL_HEIGHT / 2, y.title, "middle", colour=_DIM, turn=True))
    for family in JOINED:
        line = _lower_steps([place(p) for p in points if p.family == family])
        if len(line) > 1:
            dash = ' stroke-dasharray="6 4"' if family == "llama.cpp" else ""
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in line)
            parts.append(f'<path d="M{path}" fill="none" stroke="{STYLES[family][0]}" stroke-width="1.6"{dash}/>')
    taken: list[tuple[float, float, float, float]] = [(px - 6, py - 6, px + 6, py + 6) for px, py in map(place, points)]
    for p in sorted(points, key=lambda p: p.family == "llama.cpp"):
        px, py = place(p)
        parts.append(_mark(px, py, p.family, f"{p.name}: {p.x:,.0f} bytes, {_number(p.y)}"))
    for p in points:
        if p.label:
            parts.append(_label(p, place(p), taken, (left, left + width)))
    return "".join(parts)


def _lower_steps(dots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both directions (lower in a picture is larger y)."""
    best, kept = -math.inf, list[tuple[float, float]]()
    for px, py in sorted(dots, key=lambda d: (d[0], -d[1])):
        if py > best:
            best = py
            kept.append((px, py))
    return kept


def _label(p: Point, at: tuple[float, float], taken: list[tuple[float, float, float, float]],
           edges: tuple[float, float]) -> str:  # fmt: skip
    """Place a label where it covers least of what is drawn: one of eight places around its point."""
    wide, high = 6.4 * len(p.label), 13.0
    best: tuple[float, float, float, str] | None = None
    for dx, dy, anchor in ((9, 4, "start"), (-9, 4, "end"), (0, 19, "middle"), (0, -10, "middle"),
                           (8, 16, "start"), (-8, 16, "end"), (8, -8, "start"), (-8, -8, "end")):  # fmt: skip
        x0 = at[0] + dx - (0 if anchor == "start" else wide if anchor == "end" else wide / 2)
        box = (x0, at[1] + dy - high + 3, x0 + wide, at[1] + dy + 3)
        cost = sum(
            max(0.0, min(box[2], o[2]) - max(box[0], o[0])) * max(0.0, min(box[3], o[3]) - max(box[1], o[1]))
            for o in taken
        )
        cost += 1e3 * (max(0.0, edges[0] - box[0]) + max(0.0, box[2] - edges[1]))
        if best is None or cost < best[0]:
            best = (cost, at[0] + dx, at[1] + dy, anchor)
    assert best is not None
    _, x, y, anchor = best
    x0 = x - (0 if anchor == "start" else wide if anchor == "end" else wide / 2)
    taken.append((x0, y - high + 3, x0 + wide, y + 3))
    colour = STYLES[p.family][0]
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11.5" fill="{colour}" '
        f'paint-order="stroke" stroke="#ffffff" stroke-width="3">{escape(p.label)}</text>'
    )


class _Scale:
    """Numbers to shares of an axis, with a margin."""

    def __init__(self, numbers: Sequence[float], log: bool) -> None:
        self.log = log
        low, high = (min(numbers), max(numbers)) if numbers else (1.0, 2.0)
        self.low, self.high = self._of(low), self._of(high)
        room = (self.high - self.low) * 0.06 or 0.1
        self.low, self.high = self.low - room, self.high + room

    def _of(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def share(self, number: float) -> float:
        return (self._of(number) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            low, high = math.floor(self.low), math.ceil(self.high)
            steps = (1, 2, 5) if self.high - self.low > 0.8 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
            if self.high - self.low > 3.5:
                steps = (1,)
            every = [s * 10.0**k for k in range(low, high + 1) for s in steps]
        else:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
            step = next(s * step for s in (1, 2, 5, 10) if (self.high - self.low) / (s * step) <= 7)
            first = math.ceil(self.low / step)
            every = [k * step for k in range(first, math.floor(self.high / step) + 1)]
        return [t for t in every if self.low <= self._of(t) <= self.high]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        mantissa, power = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.4g}"
