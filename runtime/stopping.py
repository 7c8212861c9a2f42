"""Stop strings in streamed text: found across token boundaries, with the least text held back."""

from __future__ import annotations

from collections.abc import Sequence

from omnic.errors import InputError

__all__ = ["StopMatcher"]


class StopMatcher:
    """Passes text on until a stop string appears; the stop string itself is never passed on.

    Text is held back only while its end could still become a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise InputError("a stop string is empty", "leave it out, or give the text to stop at")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take new text and return what may be shown; ``found`` tells when a stop string appeared.

        The stop string that is complete first counts (of several, the longest), so the result does not depend on
        how the text was cut.
        """
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return what was held back: no stop string will come."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the held text begin ``stop``."""
        most = min(len(stop) - 1, len(self._held))
        return next((size for size in range(most, 0, -1) if self._held.endswith(stop[:size])), 0)
