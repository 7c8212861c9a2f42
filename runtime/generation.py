"""What generation is asked for and what it gives: requests, pieces, results, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from omnic.errors import InputError
from omnic.runtime.sampling import Sampling

__all__ = ["Finish", "Generation", "Piece", "Request", "Stats"]

Finish = Literal["end", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What to generate for every row of a batch.

    Attributes:
        max_new: the most new tokens of a row.
        sampling: how tokens are chosen.
        stop: strings that end a row; the text ends before them.
        end_ids: ids that end a row; they are not part of the answer.
        rows: the number of each row in its random stream (0, 1, ... when None).
        keep: reuse the states of the longest common beginning with what the session still holds (one row).
    """

    max_new: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    rows: tuple[int, ...] | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if self.max_new < 1:
            raise InputError(f"max_new must be at least 1, not {self.max_new}")


@dataclass(frozen=True)
class Piece:
    """Something new of one row.

    Attributes:
        row: index in the batch.
        id: the new token; None when only held-back text is let go.
        text: text that is now certain; may be empty.
    """

    row: int
    id: int | None
    text: str


@dataclass(frozen=True)
class Stats:
    """Figures of one row; times are those of the batch it ran in.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: of them, how many the session still held.
        new_tokens: tokens of the answer.
        batch: rows that ran together.
        prefill_s: seconds from the first call to the prompt's last logits.
        prefill_tokens_per_s: prompt tokens of all rows that were computed, per second of prefill.
        ttft_s: seconds until this row's first token (time to first token).
        decode_s: seconds from the first token to this row's last.
        tokens_per_s: tokens after the first, per second of decoding; None when there is no second token.
        p50_ms: median milliseconds between two tokens; None as above.
        p95_ms: 95th percentile of the same.
        state_bytes: bytes of the states of all rows.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    batch: int
    prefill_s: float
    prefill_tokens_per_s: float
    ttft_s: float | None
    decode_s: float
    tokens_per_s: float | None
    p50_ms: float | None
    p95_ms: float | None
    state_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)

    def line(self) -> str:
        """Return the figures in one line for people."""
        reused = f" ({self.reused_tokens} reused)" if self.reused_tokens else ""
        words = [f"prompt {self.prompt_tokens} tokens{reused} in {self.prefill_s:.2f} s"]
        if self.ttft_s is not None:
            words.append(f"first token after {self.ttft_s:.2f} s")
        words.append(f"{self.new_tokens} new tokens")
        if self.tokens_per_s is not None and self.p50_ms is not None and self.p95_ms is not None:
            words.append(f"{self.tokens_per_s:.1f} tokens/s (p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms)")
        return ", ".join(words)


@dataclass(frozen=True)
class Generation:
    """The answer of one row.

    Attributes:
        ids: new tokens, without the token that ended it.
        text: their text, without the stop string; empty when the model has no tokenizer.
        finish: ``end`` (the model's own end token), ``stop`` (a stop string), ``length`` (max_new reached),
            ``context`` (the states are full), ``cancelled``.
        stop: the stop string that ended it, if one did.
        stats: figures.
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish
    stop: str | None
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        """Return the answer as a JSON object."""
        body: dict[str, Any] = {"text": self.text, "ids": list(self.ids), "finish": self.finish, "stop": self.stop}
        return {**body, "stats": self.stats.to_json()}


class Clock:
    """Collects the times of one run and makes the figures of each row."""

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.prefilled: float | None = None
        self.tokens: list[float] = []  # when each step's tokens were known, and passed on

    def stats(self, prompt: int, reused: int, computed: int, new: int, batch: int, state_bytes: int) -> Stats:
        """Return the figures of a row with ``new`` tokens; ``computed`` prompt tokens over all rows."""
        prefill = (self.prefilled or self.begin) - self.begin
        times = self.tokens[:new]
        gaps = np.diff(times) if len(times) > 1 else None
        decode = times[-1] - times[0] if times else 0.0
        return Stats(
            prompt_tokens=prompt,
            reused_tokens=reused,
            new_tokens=new,
            batch=batch,
            prefill_s=prefill,
            prefill_tokens_per_s=computed / prefill if prefill > 0 else 0.0,
            ttft_s=times[0] - self.begin if times else None,
            decode_s=decode,
            tokens_per_s=(len(times) - 1) / decode if decode > 0 else None,
            p50_ms=float(np.percentile(gaps, 50)) * 1e3 if gaps is not None else None,
            p95_ms=float(np.percentile(gaps, 95)) * 1e3 if gaps is not None else None,
            state_bytes=state_bytes,
        )


def check_prompts(prompts: Sequence[Sequence[int]], vocab: int, capacity: int) -> list[list[int]]:
    """Return the prompts as lists after checking that each can run.

    Raises:
        InputError: none, an empty one, an id outside the vocabulary, or more tokens than the states hold.
    """
    if not prompts:
        raise InputError("no prompt was given")
    out: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt]
        name = "the prompt" if len(prompts) == 1 else f"prompt {row}"
        if not ids:
            raise InputError(f"{name} has no tokens", "give some text, or a tokenizer with a token that starts a text")
        bad = next((token for token in ids if not 0 <= token < vocab), None)
        if bad is not None:
            raise InputError(f"{name}: token id {bad} is outside the vocabulary 0..{vocab - 1}")
        if len(ids) > capacity:
            raise InputError(
                f"{name} has {len(ids)} tokens; this program holds at most {capacity}",
                "shorten the prompt, or compile with a larger budget.context",
            )
        out.append(ids)
    return out
