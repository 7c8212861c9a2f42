"""The engine: generation over any session.

One loop serves one row and many.  The prompt goes through in chunks of at most T_max tokens and only the
logits of wanted rows are computed; then every row that is not finished gets one token a step.  A finished
row stays in the batch with length 0, which by the meaning of ``forward`` touches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.runtime.generation import Clock, Finish, Generation, Piece, Request, check_prompts
from omnic.runtime.sampling import History, choose, not_finite
from omnic.runtime.session import Session, last_rows
from omnic.runtime.stopping import StopMatcher

__all__ = ["Engine", "Run", "TextStream"]

Floats = npt.NDArray[np.floating[Any]]


class TextStream(Protocol):
    """Text from ids as they arrive, never half a character."""

    def push(self, identity: int, /) -> str:
        """Take one id and return the text that is now certain."""
        ...

    def finish(self) -> str:
        """Return what was held back."""
        ...


class _Row:
    """One row while it runs."""

    __slots__ = ("finish", "history", "ids", "matcher", "number", "shown", "stop", "stream")

    def __init__(self, number: int, stream: TextStream | None, matcher: StopMatcher, history: History | None) -> None:
        self.number, self.stream, self.matcher, self.history = number, stream, matcher, history
        self.ids: list[int] = []
        self.shown: list[str] = []
        self.finish: Finish | None = None
        self.stop: str | None = None

    def push(self, token: int) -> str:
        """Take a token of the answer and return the text to show."""
        self.ids.append(token)
        if self.history is not None:
            self.history.push(token)
        if self.stream is None:
            return ""
        return self._show(self.matcher.push(self.stream.push(token)))

    def close(self, finish: Finish) -> str:
        """End the row and return the text that was held back."""
        self.finish = finish
        if self.stream is None or self.matcher.found is not None:
            return ""
        return self._show(self.matcher.push(self.stream.finish()) + self.matcher.finish())

    def _show(self, text: str) -> str:
        if text:
            self.shown.append(text)
        if self.matcher.found is not None and self.stop is None:
            self.stop, self.finish = self.matcher.found, "stop"
        return text


class Engine:
    """Generates with one session.

    Args:
        session: what computes; the engine owns its states.
        text_stream: makes a decoder of ids for a row; None when there is no tokenizer.
        clock: seconds, for the figures.
    """

    def __init__(
        self,
        session: Session,
        text_stream: Callable[[], TextStream] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.session = session
        self.text_stream = text_stream
        self.clock = clock
        self._held: list[int] | None = None  # the tokens of a single row that the states hold
        self._owner: object = None  # the run whose tokens the states hold

    def generate(
        self, prompts: Sequence[Sequence[int]], request: Request, cancelled: Callable[[], bool] = lambda: False
    ) -> Run:
        """Start a run; iterate over it for pieces, or call ``results()``.

        Args:
            prompts: ids of each row; lengths may differ.
            request: what to do with them.
            cancelled: asked before every call of the program; true ends all rows with what they have.

        Raises:
            InputError: at once, for prompts or options that cannot run.
        """
        info = self.session.info
        checked = check_prompts(prompts, info.vocab, info.capacity)
        if len(checked) > info.max_batch:
            raise InputError(f"{len(checked)} prompts; this program takes at most {info.max_batch} rows at once")
        if request.rows is not None and len(request.rows) != len(checked):
            raise InputError(f"{len(request.rows)} row numbers for {len(checked)} prompts")
        if request.stop and self.text_stream is None:
            raise InputError("stop strings need a tokenizer, and this model has none", "end with ids instead")
        request.sampling.check_vocabulary(info.vocab)
        return Run(self, checked, request, cancelled)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after each of ``ids``: f32[T, V], computed from empty states."""
        prompt = check_prompts([ids], self.session.info.vocab, self.session.info.capacity)[0]
        self._forget(1)
        chunk = self.session.info.chunk
        out = np.empty((len(prompt), self.session.info.vocab), np.float32)
        for at in range(0, len(prompt), chunk):
            part = np.asarray([prompt[at : at + chunk]], np.int64)
            out[at : at + chunk] = self.session.forward(part).logits[0]
        return out

    def begin(self, owner: object, prompts: list[list[int]], keep: bool) -> int:
        """Give the states to a run and return how many tokens of its (single) prompt they hold already."""
        held, self._held, self._owner = self._held, None, owner
        if not keep or held is None or len(prompts) != 1 or self.session.start.tolist() != [len(held)]:
            self.session.reset(len(prompts))
            return 0
        # At least one token must run, for its logits.
        common = min(_common_prefix(held, prompts[0]), len(prompts[0]) - 1)
        try:
            self.session.rollback([common])
        except InputError:  # further back than a sliding window or a snapshot reaches: the session says so
            self.session.reset(1)
            return 0
        return common

    def owned_by(self, run: object) -> bool:
        """Return whether the states are still those of ``run``."""
        return self._owner is run

    def end(self, run: object, tokens: list[int]) -> None:
        """Note what the states of a single row hold after ``run``."""
        if self._owner is run:
            self._held = tokens[: int(self.session.start[0])]

    def _forget(self, batch: int) -> None:
        self._held = self._owner = None
        self.session.reset(batch)


class Run:
    """One generation: an iterator of :class:`Piece`, then ``results()``.

    ``close()`` ends it early; ``results()`` then has what there was.  Without it ``results()`` runs to the end.
    """

    def __init__(
        self, engine: Engine, prompts: list[list[int]], request: Request, cancelled: Callable[[], bool]
    ) -> None:
        self._engine, self._prompts, self._request, self._cancelled = engine, prompts, request, cancelled
        numbers = request.rows or tuple(range(len(prompts)))
        vocab = engine.session.info.vocab
        self._rows = [
            _Row(
                number,
                engine.text_stream() if engine.text_stream else None,
                StopMatcher(request.stop),
                History(request.sampling, prompt, vocab) if request.sampling.edits else None,
            )
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        self._reused = 0
        self._clock: Clock | None = None
        self._pieces = self._steps()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def close(self) -> None:
        """End the run now."""
        self._pieces.close()

    def results(self) -> list[Generation]:
        """Finish the run and return the answer of every row."""
        for _ in self._pieces:
            pass
        clock = self._clock or Clock(0.0)
        size = self._engine.session.state_bytes()
        total = sum(len(prompt) for prompt in self._prompts) - self._reused
        return [
            Generation(
                ids=tuple(row.ids),
                text="".join(row.shown),
                finish=row.finish or "cancelled",
                stop=row.stop,
                stats=clock.stats(len(prompt), self._reused, total, len(row.ids), len(self._rows), size),
            )
            for row, prompt in zip(self._rows, self._prompts, strict=True)
        ]

    def _steps(self) -> Generator[Piece, None, None]:
        engine = self._engine
        self._clock = clock = Clock(engine.clock())
        self._reused = engine.begin(self, self._prompts, self._request.keep)
        try:
            logits = self._prefill()
            if logits is None:
                yield from self._end_all("cancelled")
                return
            clock.prefilled = engine.clock()
            active = list(range(len(self._rows)))
            tokens = self._choose(logits, active)
            while True:
                now = engine.clock()
                clock.tokens.append(now)
                active = yield from self._pass_on(tokens, active)
                if not active:
                    return
                if self._cancelled():
                    yield from self._end_all("cancelled")
                    return
                if not engine.owned_by(self):
                    raise InputError("another generation has started on this model", "finish one before the next")
                tokens = self._next(active)
        finally:
            # Also after an interruption: what the session committed is what it holds.
            if len(self._rows) == 1:
                engine.end(self, self._prompts[0] + self._rows[0].ids)

    def _prefill(self) -> Floats | None:
        """Run the prompts and return the logits after each row's last token, [B, V]; None if cancelled."""
        session, batch = self._engine.session, len(self._prompts)
        at = np.full(batch, self._reused, np.int64)
        goal = np.array([len(prompt) for prompt in self._prompts], np.int64)
        last = np.empty((batch, session.info.vocab), np.float32)
        while (at < goal).any():
            if self._cancelled():
                return None
            length = np.minimum(goal - at, session.info.chunk)
            tokens = np.zeros((batch, int(length.max())), np.int64)
            for row, prompt in enumerate(self._prompts):
                tokens[row, : length[row]] = prompt[at[row] : at[row] + length[row]]
            logits = session.forward(tokens, length=length, rows=last_rows(length)).logits
            ended = (length > 0) & (at + length == goal)
            last[ended] = logits[ended, 0]
            at += length
        return last

    def _next(self, active: list[int]) -> list[int]:
        """Feed each active row its newest token and return the next one of each."""
        session, batch = self._engine.session, len(self._rows)
        tokens = np.zeros((batch, 1), np.int64)
        for row in active:
            tokens[row, 0] = self._rows[row].ids[-1]
        length: npt.NDArray[np.int64] | None = None
        if len(active) < batch:
            length = np.zeros(batch, np.int64)
            length[active] = 1
        sampling = self._request.sampling
        if not session.info.greedy or sampling.temperature or sampling.edits:
            return self._choose(session.forward(tokens, length=length).logits[:, 0], active)
        found = session.greedy(tokens, length)[active]
        if (found < 0).any():
            raise not_finite()
        return [int(token) for token in found]

    def _choose(self, logits: Floats, active: list[int]) -> list[int]:
        sampling = self._request.sampling
        return [
            choose(logits[row], sampling, self._rows[row].history, self._rows[row].number, len(self._rows[row].ids))
            for row in active
        ]

    def _pass_on(self, tokens: list[int], active: list[int]) -> Generator[Piece, None, list[int]]:
        """Yield the pieces of one step and return the rows that go on (a generator's return value)."""
        request, info = self._request, self._engine.session.info
        going: list[int] = []
        for index, token in zip(active, tokens, strict=True):
            row = self._rows[index]
            if token in request.end_ids:
                text = row.close("end")
                if text:
                    yield Piece(index, None, text)
                continue
            text = row.push(token)
            if row.finish is None and len(row.ids) >= request.max_new:
                text += row.close("length")
            # The newest token is not in the states yet; it needs one more place.
            if row.finish is None and len(self._prompts[index]) + len(row.ids) > info.capacity:
                text += row.close("context")
            yield Piece(index, token, text)
            if row.finish is None:
                going.append(index)
        return going

    def _end_all(self, finish: Finish) -> Iterator[Piece]:
        for index, row in enumerate(self._rows):
            if row.finish is None:
                text = row.close(finish)
                if text:
                    yield Piece(index, None, text)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
