"""Pictures of the report as inline SVG: no scripts, no fonts, no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from omnic.report.facts import LayerRow
from omnic.runtime.files import human_bytes

__all__ = ["PALETTE", "byte_bar", "layer_picture", "parity_picture", "time_picture"]

#: colour of each kind; chosen to stay apart for colour-blind readers (Okabe and Ito)
PALETTE = {
    "attention": "#0072b2",
    "feed-forward": "#e69f00",
    "experts": "#d55e00",
    "shared experts": "#f0c26b",
    "embedding": "#009e73",
    "head": "#56b4e9",
    "mtp": "#cc79a7",
    "verifier": "#a89cc8",
    "norms": "#8c8c8c",
    "routers": "#7f5539",
    "other": "#b0b0b0",
    "state": "#4d9078",
}
_WIDTH = 920


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(words)}</text>'


def _box(x: float, y: float, w: float, h: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 1):.1f}" height="{h:.1f}" rx="3" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )


def layer_picture(rows: Sequence[LayerRow]) -> str:
    """One line a layer: what it is, and bars of its weight bytes and its cache bytes on one scale each."""
    parts: list[str] = []
    widest = max((r.attention_bytes + r.ffn_bytes for r in rows), default=1) or 1
    deepest = max((r.state_bytes for r in rows), default=0) or 1
    step, left, room, cache_at = 42, 330, 400, 775
    parts += [
        _text(40, 14, "what it is", "dim"),
        _text(left, 14, f"weights (full bar: {human_bytes(widest)})", "dim"),
        _text(cache_at, 14, f"cache ({human_bytes(deepest)})", "dim"),
    ]
    for index, row in enumerate(rows):
        y = 24 + index * step
        kind = {"embed": "embedding"}.get(row.name, row.name)
        colour = PALETTE.get(kind, PALETTE["attention"])
        parts.append(_text(30, y + 16, row.name if row.name.isdigit() else "", "name", "end"))
        parts.append(_text(40, y + (16 if row.ffn else 22), row.attention, "words"))
        parts.append(_text(40, y + 32, row.ffn, "dim"))
        first = room * row.attention_bytes / widest
        parts.append(
            _box(left, y + 6, first, step - 18, colour, f"{row.attention}: {human_bytes(row.attention_bytes)}")
        )
        if row.ffn_bytes:
            parts.append(_expert_boxes(row, left + first + 2, y + 6, room * row.ffn_bytes / widest, step - 18))
        if row.state_bytes:
            parts.append(
                _box(
                    cache_at,
                    y + 6,
                    135 * row.state_bytes / deepest,
                    step - 18,
                    PALETTE["state"],
                    f"cache of layer {row.name}: {human_bytes(row.state_bytes)}",
                )
            )
    return _svg(30 + len(rows) * step, parts, "the model layer by layer")


def _expert_boxes(row: LayerRow, x: float, y: float, width: float, height: float) -> str:
    """A dense feed-forward is one box; experts are cells, the number chosen a token drawn solid."""
    title = f"{row.ffn}: {human_bytes(row.ffn_bytes)}"
    if row.experts is None:
        return _box(x, y, width, height, PALETTE["feed-forward"], title)
    count, chosen = row.experts
    cell = width / count
    gap = min(1.5, cell / 3)
    cells = [
        f'<rect x="{x + i * cell:.1f}" y="{y:.1f}" width="{max(cell - gap, 0.6):.1f}" height="{height}" rx="1.5" '
        f'fill="{PALETTE["experts"]}" opacity="{1 if i < chosen else 0.35}">'
        f"<title>{escape(title)}; a token uses {chosen} of {count}</title></rect>"
        for i in range(count)
    ]
    return "".join(cells)


def byte_bar(kinds: Sequence[tuple[str, int, int]]) -> str:
    """One bar of all weight bytes, cut by kind, with a key below."""
    total = sum(size for _, _, size in kinds) or 1
    parts: list[str] = []
    x = 0.0
    for name, count, size in kinds:
        width = _WIDTH * size / total
        parts.append(
            _box(
                x,
                4,
                width - 1.5,
                40,
                PALETTE.get(name, PALETTE["other"]),
                f"{name}: {human_bytes(size)}, {count:,} numbers",
            )
        )
        if width > 8 * len(f"{name} 100 %") + 12:
            parts.append(_text(x + 8, 29, f"{name} {100 * size / total:.0f} %", "on"))
        x += width
    column, line = _WIDTH / 3, 0
    for index, (name, _, size) in enumerate(kinds):
        line = index // 3
        at, y = (index % 3) * column, 66 + line * 22
        parts.append(_box(at, y - 10, 12, 12, PALETTE.get(name, PALETTE["other"]), name))
        parts.append(_text(at + 18, y, f"{name}: {human_bytes(size)} ({100 * size / total:.1f} %)", "words"))
    return _svg(80 + line * 22, parts, "where the bytes are")


def time_picture(profile: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """One bar a phase (prefill, decode): milliseconds by part of the model."""
    parts: list[str] = []
    y = 4.0
    for phase, shares in profile:
        total = sum(seconds for _, seconds in shares) or 1e-12
        parts.append(_text(0, y + 12, f"{phase}: {1e3 * total:,.2f} ms", "name"))
        x = 0.0
        for name, seconds in shares:
            width = _WIDTH * seconds / total
            parts.append(
                _box(
                    x,
                    y + 20,
                    width - 1.5,
                    34,
                    PALETTE.get(name, PALETTE["other"]),
                    f"{name}: {1e3 * seconds:.3f} ms, {100 * seconds / total:.1f} %",
                )
            )
            if width > 8 * len(f"{name} 100 %") + 12:
                parts.append(_text(x + 8, y + 42, f"{name} {100 * seconds / total:.0f} %", "on"))
            x += width
        small = [f"{n} {100 * s / total:.1f} %" for n, s in shares if _WIDTH * s / total <= 8 * len(f"{n} 100 %") + 12]
        if small:
            parts.append(_text(0, y + 70, ", ".join(small), "dim"))
        y += 88
    return _svg(max(y, 1), parts, "where the time goes")


def parity_picture(cases: Sequence[tuple[str, float, bool]], bound: float) -> str:
    """Every case's error on a logarithmic line, with the bound."""
    low, high = -9.0, max(-1.0, math.log10(bound) + 1)
    left, room, step = 250.0, _WIDTH - 270.0, 24

    def at(ratio: float) -> float:
        return left + room * (min(max(math.log10(max(ratio, 1e-12)), low), high) - low) / (high - low)

    height = 34 + step * len(cases)
    parts = [
        f'<line x1="{at(bound):.1f}" y1="18" x2="{at(bound):.1f}" y2="{height - 6}" class="bound"/>',
        _text(at(bound), 12, f"bound {bound:.0e}", "dim", "middle"),
    ]
    for power in range(int(low), int(high) + 1, 2):
        x = at(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{height - 6}" class="grid"/>')
        if abs(x - at(bound)) > 60:
            parts.append(_text(x, 12, f"1e{power}", "dim", "middle"))
    for index, (name, ratio, ok) in enumerate(cases):
        y = 34 + index * step
        parts.append(_text(left - 12, y + 4, name, "words", "end"))
        colour = "#009e73" if ok else "#d33"
        parts.append(
            f'<circle cx="{at(ratio):.1f}" cy="{y}" r="5.5" fill="{colour}">'
            f"<title>{escape(name)}: {ratio:.2e}</title></circle>"
        )
    return _svg(height, parts, "parity of every case against its bound")
