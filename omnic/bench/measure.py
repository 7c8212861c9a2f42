"""The measurement: prompts, and decoding with caches that grow, of several contestants that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.bench.auto import chosen
from omnic.bench.limits import PRODUCT, Limits, Turns, open_limits_worker
from omnic.bench.runners import Contestant
from omnic.bench.traffic import Traffic
from omnic.bench.worker import Worker
from omnic.errors import InputError

if TYPE_CHECKING:
    from omnic.bench.memory import Estimate
    from omnic.targets.base import Ran

__all__ = ["REST", "Figure", "Measurement", "Plan", "Ratio", "measure"]

Progress = Callable[[str, float], None]
#: seconds between two turns: threads of an engine spin for a while after its last call, on cores the next one wants
REST = 0.05


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: lengths of prompts, in tokens: time to first token and prefill speed.
        contexts: tokens in the caches when decoding begins.
        new: tokens decoded at a context in one round; a row decodes ``warmup + rounds * new`` from each context.
        rounds: turns of each contestant.
        warmup: tokens decoded, and prompts run, before anything counts.
        threads: of each contestant.
        seed: of the token ids.
    """

    prompts: tuple[int, ...] = (128,)
    contexts: tuple[int, ...] = (128,)
    new: int = 16
    rounds: int = 7
    warmup: int = 2
    threads: int = 1
    seed: int = 0

    def check(self, capacity: int, vocab: int) -> None:
        """Check that the model can hold what is asked for.

        Raises:
            InputError: it cannot.
        """
        for count in self.prompts:
            if count > capacity:
                raise InputError(f"a prompt of {count} tokens; the model holds {capacity}", "choose shorter --prompts")
        need = self.warmup + self.rounds * self.new
        for count in self.contexts:
            if count + need > capacity:
                raise InputError(
                    f"decoding {need} tokens from a context of {count} needs {count + need} slots; the model holds"
                    f" {capacity}", "choose shorter --contexts, or fewer --new or --rounds")  # fmt: skip
        if vocab < 4:
            raise InputError(f"a vocabulary of {vocab} tokens is too small to measure with")


@dataclass(frozen=True)
class Ratio:
    """A ratio of two interleaved series: the median of the rounds' ratios and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(upper: Sequence[float], lower: Sequence[float]) -> Ratio:
        """Return ``upper / lower``, round by round (seed 0 for the bootstrap)."""
        each = np.asarray(upper) / np.asarray(lower)
        draws = np.random.default_rng(0).integers(0, len(each), (2000, len(each)))
        low, high = np.percentile(np.median(each[draws], axis=1), (2.5, 97.5))
        return Ratio(float(np.median(each)), float(low), float(high))


@dataclass(frozen=True)
class Figure:
    """One phase of one contestant.

    Attributes:
        contestant: its name.
        phase: ``prefill`` or ``decode``.
        tokens: length of the prompt, or tokens in the caches when decoding began.
        rounds: seconds of each round: of the prompt, or of a token (mean of the round).
        p50: seconds of a prompt, or of a token.
        p95: the same.
        share: of the limit of the phase, which took turns with the contestants: bytes read (decode), f32 operations
            (prefill); None when not known.
        speedup: the first contestant's speed over this one's; None for itself.
    """

    contestant: str
    phase: str
    tokens: int
    rounds: tuple[float, ...]
    p50: float
    p95: float
    share: Ratio | None = None
    speedup: Ratio | None = None

    @property
    def per_second(self) -> float:
        """Tokens a second, by the median."""
        return (self.tokens if self.phase == "prefill" else 1) / self.p50


@dataclass(frozen=True)
class Measurement:
    """What was measured, with what is needed to repeat it.

    Attributes:
        model: name of the model.
        plan: what was asked for.
        machine: processor, system.
        at: when, ISO 8601.
        contestants: in order; the first is ours.
        figures: of all of them.
        peaks: name -> most bytes of memory held.
        empty: name -> bytes of those that the process held before it opened anything.
        loads: name -> seconds until it was ready.
        limits: of the machine, in this run.
        absent: name -> why it was not measured.
        ran: operators or kernels of a decoded token of the first contestant; empty where its target cannot say.
        memory: what the first contestant should hold.
        conditions: dims, precision and whatever else belongs beside the figures.
    """

    model: str
    plan: Plan
    machine: Mapping[str, str]
    at: str
    contestants: tuple[Contestant, ...]
    figures: tuple[Figure, ...]
    peaks: Mapping[str, int]
    loads: Mapping[str, float]
    limits: Limits
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    empty: Mapping[str, int] = field(default_factory=dict[str, int])
    ran: tuple[Ran, ...] = ()
    memory: Estimate | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def figure(self, contestant: str, phase: str, tokens: int) -> Figure | None:
        """Return one figure, or None when it was not measured."""
        wanted = (contestant, phase, tokens)
        return next((f for f in self.figures if (f.contestant, f.phase, f.tokens) == wanted), None)


def measure(
    model: str,
    contestants: Sequence[Contestant],
    plan: Plan,
    vocab: int,
    traffic: Traffic,
    machine: Mapping[str, str],
    progress: Progress,
    absent: Mapping[str, str] | None = None,
    conditions: Mapping[str, Any] | None = None,
    *,
    budget: tuple[float, int] | None = None,
) -> Measurement:
    """Open every contestant in a process of its own and let them take turns.

    Args:
        model: its name.
        contestants: the first is what the others are compared with.
        plan: what to measure.
        vocab: ids are drawn from it.
        traffic: bytes and operations of the model, for the shares.
        machine: where this is.
        progress: told of each step.
        absent: what was asked for and cannot be measured here, and why.
        conditions: kept beside the figures.
        budget: seconds, and tokens that the model holds: ``plan``'s lengths and rounds are chosen to fit.

    Raises:
        OmnicError: a contestant could not be opened, or ended.
    """
    workers: list[Worker] = []
    file = contestants[0].mapped or None
    limit_worker = open_limits_worker(traffic.bytes(0), plan.threads, file)
    try:
        limit = Turns(limit_worker, file is not None)
        for contestant in contestants:
            progress(f"open {contestant.name}", 0.0)
            workers.append(Worker(contestant))
        limit.read()
        limit.multiply()
        if budget is not None:
            progress("look at the speed of each", 0.0)
            plan = chosen(workers, plan, *budget)
        rng = np.random.default_rng(plan.seed)
        ids = rng.integers(3, vocab, max((*plan.prompts, *plan.contexts), default=1))
        phases = [*(("prefill", n) for n in plan.prompts), *(("decode", n) for n in plan.contexts)]
        times: dict[tuple[str, str, int], list[list[float]]] = {}
        most: dict[tuple[str, int], list[float]] = {}
        for done, (phase, tokens) in enumerate(phases):
            progress(f"{phase} {tokens}", done / len(phases))
            found, most[phase, tokens] = _phase(workers, limit, plan, phase, ids[:tokens])
            times.update({(name, phase, tokens): rounds for name, rounds in found.items()})
        peaks = {w.contestant.name: w.peak() for w in workers}
    finally:
        for worker in (*workers, limit_worker):
            worker.close()
    progress("done", 1.0)
    figures = [_figure(key, rounds, times, contestants[0].name, _work(traffic, limit, plan, *key[1:]), most[key[1:]])
               for key, rounds in times.items()]  # fmt: skip
    return Measurement(
        model, plan, dict(machine), datetime.now(UTC).isoformat(timespec="seconds"), tuple(contestants),
        tuple(figures), peaks, {w.contestant.name: w.load_seconds for w in workers}, limit.limits(),
        dict(absent or {}), {w.contestant.name: w.empty_bytes for w in workers}, conditions=dict(conditions or {}),
    )  # fmt: skip


def _phase(
    workers: Sequence[Worker], limit: Turns, plan: Plan, phase: str, ids: Any
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Return the seconds of every round by contestant: one number for a prompt, one a token for decoding; and those of
    the limit's turns.
    """
    found: dict[str, list[list[float]]] = {w.contestant.name: [] for w in workers}
    most: list[float] = []
    for worker in workers:
        for _ in range(plan.warmup if phase == "prefill" else 1):
            worker.prompt(ids)
        if phase == "decode":
            worker.decode(max(1, plan.warmup))
    for turn in range(plan.rounds):
        first = turn % len(workers)
        for worker in (*workers[first:], *workers[:first]):
            time.sleep(REST)
            spent = [worker.prompt(ids)] if phase == "prefill" else worker.decode(plan.new)
            found[worker.contestant.name].append(spent)
            if worker is workers[0]:
                most.append(limit.multiply() if phase == "prefill" else limit.read())
    return found, most


def _work(traffic: Traffic, limit: Turns, plan: Plan, phase: str, tokens: int) -> float:
    """Return how many turns of the limit a prompt, or a token, is worth."""
    if phase == "prefill":
        return traffic.flops(tokens) / PRODUCT
    return traffic.bytes(tokens + plan.warmup + plan.rounds * plan.new // 2) / limit.bytes


def _figure(
    key: tuple[str, str, int],
    rounds: list[list[float]],
    times: Mapping[tuple[str, str, int], list[list[float]]],
    ours: str,
    work: float,
    most: list[float],
) -> Figure:
    name, phase, tokens = key
    every = np.concatenate([np.asarray(r) for r in rounds])
    p50, p95 = (float(v) for v in np.percentile(every, (50, 95)))
    means = tuple(float(np.mean(r)) for r in rounds)
    share = speedup = None
    if name == ours:
        share = Ratio.of([work * seconds for seconds in most], means)
    else:
        speedup = Ratio.of(means, [float(np.mean(r)) for r in times[ours, phase, tokens]])
    return Figure(name, phase, tokens, means, p50, p95, share, speedup)
