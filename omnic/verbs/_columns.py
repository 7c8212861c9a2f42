"""Plain aligned columns: what a terminal shows and what a pipe gets are the same text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns"]


def columns(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return one line a row, each column as wide as its widest cell (the last one is not padded).

    Args:
        rows: cells, the heading first if there is one; all rows have as many.
        right: which columns are flush right (the left ones of a shorter list).
    """
    if not rows:
        return []
    flags = [*right, *([False] * (len(rows[0]) - len(right)))]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, flags, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
