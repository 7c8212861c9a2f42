"""Sampling: from the logits of one position to one token id.

The order is fixed, and each step is off at its default except ``temperature`` and ``top_p``:

1. ``repetition_penalty`` θ: a logit l of a token seen in the prompt or the answer becomes l/θ if l > 0,
   else l·θ (CTRL, arXiv:1909.05858, section 4.1; the sign rule is Hugging Face's).
2. ``frequency_penalty`` f and ``presence_penalty`` p: l - f·count - p·[count > 0], the count over the answer only
   (OpenAI API reference, "frequency and presence penalties").
3. ``bias``: l + bias[id] (OpenAI API reference, ``logit_bias``; -100 is "never" in practice).
4. bans, l = -inf: outside ``allow``; the last token (``ban_last``); a token that would follow itself more than
   ``max_run`` times in all; a token that would complete an n-gram already seen (``no_repeat_ngram``, Paulus et
   al., arXiv:1705.04304, section 2.5), looking back ``ngram_window`` tokens.
5. ``temperature`` 0: the largest logit, ties to the lowest id.  Otherwise l / temperature.
6. ``top_k``: the k largest (Fan et al., arXiv:1805.04833).
7. ``top_p``: the smallest set of most probable tokens, of what is left, whose mass reaches top_p
   (nucleus sampling, Holtzman et al., arXiv:1904.09751).
8. ``min_p``: tokens at least min_p times as probable as the most probable one (Nguyen et al., arXiv:2407.01082).
9. One uniform number u picks from the renormalised rest by its inverse distribution function, in the order of ids.

Of equal logits the lower id is kept first, so k means exactly k.  u is a hash of (seed, row, step): what a
row samples does not depend on which other rows are in the batch, nor on the machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError

__all__ = ["Distribution", "History", "Sampling", "choose", "distribution", "not_finite", "uniform"]

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the module's docstring says what each option does and in which order.

    Attributes:
        temperature: 0 = greedy.
        top_k: 0 = off.
        top_p: in (0, 1]; 1 = off.
        min_p: in [0, 1]; 0 = off.
        repetition_penalty: > 0; 1 = off.
        repetition_window: only the last so many tokens count as seen; 0 = all of them.
        frequency_penalty: subtracted per occurrence in the answer.
        presence_penalty: subtracted once for a token that occurs in the answer.
        ban_last: never the same token twice running.
        max_run: a token may stand at most so many times running; 0 = off.
        no_repeat_ngram: no n-gram of this size twice; 0 = off.
        ngram_window: the last so many tokens are searched for the n-gram; 0 = all of them.
        allow: ids ``start <= id < stop`` only, such as the text slice of a multimodal vocabulary.
        bias: id -> number added to its logit.
        seed: of the uniform numbers.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ban_last: bool = False
    max_run: int = 0
    no_repeat_ngram: int = 0
    ngram_window: int = 0
    allow: tuple[int, int] | None = None
    bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6, "temperature", "0 or in 1e-6..1e6"),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]"),
            (0 <= self.min_p <= 1, "min_p", "in [0, 1]"),
            (self.repetition_penalty > 0 and np.isfinite(self.repetition_penalty), "repetition_penalty", "> 0"),
            (np.isfinite(self.frequency_penalty), "frequency_penalty", "a finite number"),
            (np.isfinite(self.presence_penalty), "presence_penalty", "a finite number"),
        )
        for good, name, rule in checks:
            if not good:
                raise InputError(f"sampling: {name} must be {rule}, not {getattr(self, name)}")
        for name in ("top_k", "repetition_window", "max_run", "no_repeat_ngram", "ngram_window"):
            if getattr(self, name) < 0:
                raise InputError(f"sampling: {name} must be >= 0, not {getattr(self, name)}")
        if self.allow is not None and not 0 <= self.allow[0] < self.allow[1]:
            raise InputError(f"sampling: allow must be a slice start:stop of ids, not {self.allow[0]}:{self.allow[1]}")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"sampling: seed must be in 0..2**64-1, not {self.seed}")

    @staticmethod
    def greedy(**options: Any) -> Sampling:
        """Return options that always take the most probable token."""
        return Sampling(**{**options, "temperature": 0.0})

    @property
    def edits(self) -> bool:
        """Whether steps 1 to 4 do anything."""
        return bool(
            self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.bias
            or self.allow
            or self.ban_last
            or self.max_run
            or self.no_repeat_ngram
        )

    def check_vocabulary(self, vocab: int) -> None:
        """Raise when an id of the options is not in a vocabulary of ``vocab`` tokens."""
        for token in self.bias:
            if not 0 <= token < vocab:
                raise InputError(f"sampling: bias names id {token}; the vocabulary is 0..{vocab - 1}")
        if self.allow and self.allow[1] > vocab:
            raise InputError(f"sampling: allow ends at {self.allow[1]}; the vocabulary has {vocab} tokens")


class History:
    """What one row has seen: the prompt, and the answer so far."""

    def __init__(self, options: Sampling, prompt: Sequence[int], vocab: int) -> None:
        self._options = options
        self.tokens: list[int] = list(prompt)
        self._counts: npt.NDArray[np.int32] | None = None
        if options.frequency_penalty or options.presence_penalty:
            self._counts = np.zeros(vocab, np.int32)
        self._seen: npt.NDArray[np.bool_] | None = None
        if options.repetition_penalty != 1 and not options.repetition_window:
            self._seen = np.zeros(vocab, np.bool_)
            self._seen[self.tokens] = True
        # (n-1)-gram -> where it ends, plus one: the places of the tokens that followed it.
        self._followers: dict[tuple[int, ...], list[int]] = {}
        for end in range(len(self.tokens) + 1):
            self._note_gram(end)

    def push(self, token: int) -> None:
        """Add a token of the answer."""
        self.tokens.append(token)
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        self._note_gram(len(self.tokens))

    def _note_gram(self, end: int) -> None:
        size = self._options.no_repeat_ngram - 1
        if size >= 0 and end >= size:
            self._followers.setdefault(tuple(self.tokens[end - size : end]), []).append(end)

    @property
    def counts(self) -> npt.NDArray[np.int32] | None:
        """Occurrences of each id in the answer, when a penalty needs them."""
        return self._counts

    def seen(self) -> Ints:
        """Return the ids that the repetition penalty applies to."""
        if self._seen is not None:
            return np.flatnonzero(self._seen)
        return np.unique(np.asarray(self.tokens[-self._options.repetition_window :], np.int64))

    def banned(self) -> set[int]:
        """Return the ids that may not come next."""
        options, tokens = self._options, self.tokens
        banned: set[int] = set()
        if not tokens:
            return banned
        last, run = tokens[-1], 1 if options.ban_last else options.max_run
        if run and len(tokens) >= run and all(token == last for token in tokens[-run:]):
            banned.add(last)
        if options.no_repeat_ngram:
            banned |= self._repeats(options.no_repeat_ngram)
        return banned

    def _repeats(self, size: int) -> set[int]:
        """Return the ids that would complete an n-gram which the window already holds."""
        tokens, window = self.tokens, self._options.ngram_window
        if len(tokens) < size:
            return set()
        first = len(tokens) - window if window else 0
        gram = tuple(tokens[len(tokens) - size + 1 :])
        ends = self._followers.get(gram, ())
        return {tokens[end] for end in ends if end < len(tokens) and end - size + 1 >= first}


@dataclass(frozen=True)
class Distribution:
    """What one position may become.

    Attributes:
        ids: i64[N], the candidates, ascending.
        probabilities: f64[N], they sum to 1.
    """

    ids: Ints
    probabilities: npt.NDArray[np.float64]

    def pick(self, u: float) -> int:
        """Return the id whose slice of the cumulative distribution holds ``u`` in [0, 1)."""
        cumulative = np.cumsum(self.probabilities)
        # The last sum may fall short of 1 by rounding; a candidate of probability 0 is never picked.
        at = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
        return int(self.ids[min(at, len(self.ids) - 1)])


def uniform(seed: int, row: int, step: int) -> float:
    """Return a number in [0, 1) with 53 random bits: BLAKE2b of (seed, row, step)."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, row, step), digest_size=8, person=b"omnic.sampling").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose(logits: Floats, options: Sampling, history: History | None, row: int, step: int) -> int:
    """Return the token id for one position.

    Args:
        logits: [V] floats; not changed.
        options: how to choose.
        history: what the row has seen; needed when ``options.edits``.
        row: number of the row, part of the random stream.
        step: number of the token in the answer, from 0.

    Raises:
        InputError: the options leave no token, or the logits are not finite.
    """
    if options.temperature == 0:
        edited = edit(logits, options, history)
        best = int(edited.argmax())
        if not np.isfinite(edited[best]):
            raise _no_token(logits, options)
        return best
    return distribution(logits, options, history).pick(uniform(options.seed, row, step))


def edit(logits: Floats, options: Sampling, history: History | None) -> Floats:
    """Return the logits after steps 1 to 4 (the array itself when none is on)."""
    if not options.edits:
        return logits
    out = logits.astype(np.float32 if logits.dtype != np.float64 else np.float64)
    if history is not None:
        _penalise(out, options, history)
    for token, value in options.bias.items():
        out[token] += value
    if options.allow:
        out[: options.allow[0]] = -np.inf
        out[options.allow[1] :] = -np.inf
    if history is not None:
        banned = history.banned()
        if banned:
            out[list(banned)] = -np.inf
    return out


def _penalise(out: Floats, options: Sampling, history: History) -> None:
    if options.repetition_penalty != 1:
        seen = history.seen()
        values = out[seen]
        theta = options.repetition_penalty
        out[seen] = np.where(values > 0, values / theta, values * theta)
    counts = history.counts
    if counts is not None:
        out -= options.frequency_penalty * counts + options.presence_penalty * (counts > 0)


def distribution(logits: Floats, options: Sampling, history: History | None = None) -> Distribution:
    """Return the candidates of one position and their probabilities (``temperature`` 0: one candidate).

    Raises:
        InputError: the options leave no token, or the logits are not finite.
    """
    edited = edit(logits, options, history)
    peak = float(edited.max())
    if not np.isfinite(peak):
        raise _no_token(logits, options)
    if options.temperature == 0:
        return Distribution(np.array([edited.argmax()], np.int64), np.ones(1))
    mass = np.exp((edited - peak) / np.float32(options.temperature), dtype=edited.dtype)
    ids = np.flatnonzero(_survivors(mass, options))
    exact = mass[ids].astype(np.float64)
    return Distribution(ids, exact / exact.sum())


def _survivors(mass: Floats, options: Sampling) -> npt.NDArray[np.bool_]:
    """Apply steps 6 to 8 to unnormalised masses whose largest is 1; return which ids are left.

    Nothing is sorted but a last handful: each filter is a bound on the mass, found by selection.
    """
    keep = mass > 0
    if 0 < options.top_k < len(mass):
        place = len(mass) - options.top_k
        keep = _at_least(mass, keep, np.partition(mass, place)[place], options.top_k)
    if options.top_p < 1:
        left = mass if keep.all() else mass[keep]
        keep = _at_least(mass, keep, *_nucleus(left, options.top_p))
    if options.min_p > 0:
        keep &= mass >= options.min_p
    return keep


def _at_least(mass: Floats, keep: npt.NDArray[np.bool_], bound: Any, count: int) -> npt.NDArray[np.bool_]:
    """Return which of the kept ids are the ``count`` of largest mass, ``bound`` being the smallest mass among those."""
    keep = keep & (mass >= bound)
    surplus = int(np.count_nonzero(keep)) - count
    if surplus > 0:  # ties at the bound: the lower ids stay
        keep[np.flatnonzero(keep & (mass == bound))[-surplus:]] = False
    return keep


def _nucleus(mass: Floats, top_p: float) -> tuple[Any, int]:
    """Return the smallest mass in the smallest set of largest masses that reaches ``top_p`` of the sum, and its size.

    Found by weighted selection: part at the median, go on in the half that holds the last member.
    """
    pool, need, taken = mass, top_p * float(mass.sum(dtype=np.float64)), 0
    while len(pool) > 256:
        middle = len(pool) // 2
        parted = np.partition(pool, middle)
        weight = float(parted[middle:].sum(dtype=np.float64))
        if weight >= need:
            pool = parted[middle:]
        else:
            pool, need, taken = parted[:middle], need - weight, taken + len(pool) - middle
    ordered = -np.sort(-pool)
    last = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), need, side="left"))
    last = min(last, len(ordered) - 1)  # by rounding, the sum of everything may fall short in its last bit
    return ordered[last], taken + last + 1


def not_finite() -> InputError:
    """Return the error of logits that are not finite."""
    return InputError(
        "the model's logits are not finite numbers",
        "its weights may be damaged: omnic run --verify checks the bundle, omnic diff finds the first bad op",
    )


def _no_token(logits: Floats, options: Sampling) -> InputError:
    if not np.isfinite(logits).any() or np.isnan(logits).any() or np.isposinf(logits).any():
        return not_finite()
    return InputError("sampling: the bans and the allowed slice leave no token", "relax allow, bias or the bans")
