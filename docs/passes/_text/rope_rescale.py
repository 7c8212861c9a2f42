"""Draws docs/passes/rope-rescale.svg: how far each pair of a head turns, by kind of scaling.

python docs/passes/_text/rope_rescale.py
"""

from __future__ import annotations

import math
from pathlib import Path

from omnic.ir.rope import rope_frequencies

FILE = Path(__file__).resolve().parents[1] / "rope-rescale.svg"
DIMS, TRAINED, CONTEXT = 64, 4096, 32768
KINDS = {"none": "#8a8f98", "linear": "#c2571a", "ntk": "#2f6fb0", "yarn": "#2a8a4a"}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 340, 60, 20, 90, 50


def shares(kind: str) -> list[float]:
    """Return, for each pair, its turns over the long context divided by its turns over the trained one."""
    factor = CONTEXT / TRAINED
    known, _ = rope_frequencies(10000.0, DIMS)
    if kind == "none":
        return [factor] * len(known)
    now, _ = rope_frequencies(10000.0, DIMS, kind, factor, TRAINED)
    return [factor * n / k for n, k in zip(now, known, strict=True)]


def text() -> str:
    """Return the picture."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    top = math.log2(CONTEXT / TRAINED)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for step in range(int(top) + 1):
        y = TOP + high * (1 - step / top)
        out.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{2**step}x</text>')
    ends: list[float] = []
    for kind, colour in KINDS.items():
        found = shares(kind)
        points = [
            (LEFT + wide * i / (len(found) - 1), TOP + high * (1 - math.log2(s) / top)) for i, s in enumerate(found)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = points[-1][1]
        while any(abs(y - e) < 14 for e in ends):
            y -= 14
        ends.append(y)
        out.append(f'<text x="{LEFT + wide + 8}" y="{y + 4:.1f}" fill="{colour}">{kind}</text>')
    for pair in range(0, DIMS // 2, 5):
        x = LEFT + wide * pair / (DIMS // 2 - 1)
        out.append(f'<text x="{x:.1f}" y="{TOP + high + 18}" text-anchor="middle">{pair}</text>')
    label = f"pair of a {DIMS}-wide head (fast to slow): turns over {CONTEXT:,} positions / turns over {TRAINED:,}"
    out.append(f'<text x="{LEFT + wide / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{label}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE.name}: written")
