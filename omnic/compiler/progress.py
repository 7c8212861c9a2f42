"""Progress of long work: a bar with an ETA on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TextIO

__all__ = ["Bar", "Progress", "silent"]

#: called with what is being done and the share of it that is done, 0..1
Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """Show nothing."""


class Bar(AbstractContextManager["Bar"]):
    """Shows steps on ``file`` (stderr by default); call it like a :data:`Progress`.

    On a terminal one line is redrawn with a bar, a rate and the time left.  Elsewhere a line is printed
    when a step begins and, for long steps, every ten seconds.
    """

    def __init__(self, title: str, file: TextIO | None = None) -> None:
        self.title, self.file = title, file or sys.stderr
        self.live = self.file.isatty()
        self.began = self.step_began = time.monotonic()
        self.step = ""
        self.shown = 0.0

    def __call__(self, what: str, share: float) -> None:
        """Report that ``share`` of the step ``what`` is done."""
        now = time.monotonic()
        new = what != self.step
        if new:
            self._finish_step(now)
            self.step, self.step_began = what, now
        if self.live and (new or now - self.shown > 0.1):
            self._redraw(share, now)
        elif not self.live and (new or now - self.shown > 10):
            left = self._left(share, now)
            print(
                f"{self.title}: {what}" + (f" {100 * share:.0f} %{left}" if share > 0 else ""),
                file=self.file,
                flush=True,
            )
            self.shown = now

    def _left(self, share: float, now: float) -> str:
        spent = now - self.step_began
        return f", {spent * (1 - share) / share:.0f} s left" if 0.02 < share < 1 and spent > 2 else ""

    def _redraw(self, share: float, now: float) -> None:
        filled = round(24 * min(max(share, 0.0), 1.0))
        bar = "━" * filled + "─" * (24 - filled)
        self.file.write(f"\r\x1b[2K{self.title}  {bar}  {self.step}{self._left(share, now)}")
        self.file.flush()
        self.shown = now

    def _finish_step(self, now: float) -> None:
        if self.live and self.step:
            self.file.write(f"\r\x1b[2K{self.title}  {self.step}  {now - self.step_began:.1f} s\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal clean."""
        if self.live and self.step:
            self.file.write("\r\x1b[2K")
            self.file.flush()
