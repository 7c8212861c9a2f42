"""Progress of long work: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress", "clock"]


def clock(seconds: float) -> str:
    """Return ``1:02:03`` or ``02:03``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Progress:
    """Where a run is, with its rate and when it ends.

    Args:
        stream: where to write; standard error by default.
        every: seconds between plain lines when the stream is no terminal.
        quiet: write nothing.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 20.0, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._every = 0.5 if self._moving else every
        self._quiet = quiet
        self._last = 0.0
        self._width = 0

    def say(self, text: str) -> None:
        """Write a line that stays."""
        if self._quiet:
            return
        self._clear()
        print(text, file=self._stream, flush=True)

    def step(self, phase: str, step: int, steps: int, figures: str, seconds_left: float) -> None:
        """Show that ``step`` of ``steps`` is done; drops most calls."""
        now = time.monotonic()
        if self._quiet or (now - self._last < self._every and step < steps):
            return
        self._last = now
        line = f"{phase} {step}/{steps} ({100 * step // steps} %)  {figures}  ETA {clock(seconds_left)}"
        if not self._moving:
            print(line, file=self._stream, flush=True)
            return
        self._clear()
        self._stream.write(line)
        self._stream.flush()
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
