"""The picture of a mixed-precision model: bits of every weight, by layer and part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Cell", "precision_picture"]

_WIDTH, _LEFT, _STEP = 920, 150, 26
#: bits a number up to -> colour; dark is many (readable without colour: the text says the type)
_SHADES = ((2.7, "#fde0c5"), (3.7, "#f8b58b"), (4.8, "#f2855d"), (5.8, "#d8574a"), (7.0, "#b13f64"), (10.0, "#70284a"))
_PLAIN = "#9aa5b1"


@dataclass(frozen=True)
class Cell:
    """One weight.

    Attributes:
        column: its layer, or ``ends`` for what is outside of the layers.
        part: its name inside the layer.
        bits: bits a number, scales included.
        element: its type.
        title: what a reader sees who points at it.
    """

    column: str
    part: str
    bits: float
    element: str
    title: str


def precision_picture(cells: Sequence[Cell]) -> str:
    """Return a grid of all weights: a column a layer, a line a part, coloured by bits."""
    inside = [c for c in cells if c.column != "ends"]
    columns = list(dict.fromkeys(c.column for c in inside))
    parts = list(dict.fromkeys(c.part for c in inside))
    width = (_WIDTH - _LEFT) / max(len(columns), 1)
    out: list[str] = []
    for index, column in enumerate(columns):
        if len(columns) <= 24 or index % 4 == 0:
            label = f"layer {column}" if column.isdigit() and len(columns) <= 10 else column
            out.append(_words(_LEFT + (index + 0.5) * width, 14, label, "dim", "middle"))
    for line, part in enumerate(parts):
        out.append(_words(_LEFT - 10, 24 + line * _STEP + 17, part, "words", "end"))
    for c in inside:
        x, y = _LEFT + columns.index(c.column) * width, 24 + parts.index(c.part) * _STEP
        out.append(_cell(c, x, y, width))
    y = 24 + len(parts) * _STEP + 14
    ends = [c for c in cells if c.column == "ends"]
    for c in ends:
        out.append(_words(_LEFT - 10, y + 17, c.part, "words", "end"))
        out.append(_cell(c, _LEFT, y, _WIDTH - _LEFT))
        y += _STEP
    return (
        f'<svg viewBox="0 0 {_WIDTH} {y + 6:.0f}" role="img" aria-label="bits of every weight">'
        + "".join(out) + "</svg>"
    )  # fmt: skip


def _words(x: float, y: float, text: str, css: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def _cell(c: Cell, x: float, y: float, width: float) -> str:
    colour = next((shade for most, shade in _SHADES if c.bits <= most), _PLAIN)
    ink = "#fff" if c.bits > 4.8 else "#1c2430"
    box = (
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{max(width - 2, 1):.1f}" height="{_STEP - 2}" rx="3" '
        f'fill="{colour}"><title>{escape(c.title)}</title></rect>'
    )
    text = c.element if 7.2 * len(c.element) < width - 8 else f"{c.bits:.1f}" if width > 32 else ""
    if not text:
        return box
    return box + (
        f'<text x="{x + width / 2:.1f}" y="{y + 17:.1f}" text-anchor="middle" style="fill:{ink}">{escape(text)}</text>'
    )
