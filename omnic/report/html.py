"""What every page of ours shares: the style, the frame and tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["page", "table"]

_STYLE = """
:root { --ink: #1c2430; --paper: #ffffff; --dim: #5b6675; --rule: #dfe4ea; --tile: #f5f7fa; --good: #0a7d55;
        --bad: #c62828; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --paper: #14181f; --dim: #97a3b4; --rule: #2c3440; --tile: #1c222c; --good: #4cc38a;
          --bad: #ff6b6b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15.5px; margin: 26px 0 8px; }
p.lead { color: var(--dim); margin: 4px 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.tile { background: var(--tile); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; } .tile span { color: var(--dim); font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font-size: 12.5px; }
svg .dim { fill: var(--dim); } svg .name { font-weight: 600; } svg .on { fill: #fff; font-weight: 600; }
svg .grid { stroke: var(--rule); } svg .bound { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 5 4; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--dim); font-weight: 500; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--tile); border-radius: 10px; padding: 14px 16px; overflow-x: auto; font-size: 12.5px;
      white-space: pre-wrap; }
details summary { cursor: pointer; color: var(--dim); }
.mono { font-family: ui-monospace, monospace; font-size: 12.5px; }
"""


def page(title: str, body: str) -> str:
    """Return a whole page around ``body`` (HTML)."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>\n'
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Return a table; columns of ``numbers`` are flush right, cells are escaped."""
    head = "".join(f"<th{' class=n' if i in numbers else ''}>{escape(h)}</th>" for i, h in enumerate(headings))
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if i in numbers else ''}>{escape(str(c))}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
