"""Choosing lengths and rounds from a time, and reading that time."""

from __future__ import annotations

import pytest

from omnic.bench.auto import LEAST, MOST, chosen, planned, seconds_of
from omnic.bench.measure import Plan
from omnic.bench.worker import Worker
from omnic.errors import InputError
from tests.omnic.bench.fake import fake

PLAN = Plan(new=16, warmup=2)


def cost(plan: Plan, prompt: float, token: float) -> float:
    """Seconds that a plan takes."""
    prompts = sum(n * prompt * (plan.warmup + plan.rounds) for n in plan.prompts)
    return prompts + sum(n * prompt + token * (plan.warmup + plan.rounds * plan.new) for n in plan.contexts)


def test_more_time_measures_more_and_is_not_exceeded() -> None:
    short, long = (planned(PLAN, seconds, 4096, 0.001, 0.01) for seconds in (10.0, 120.0))
    assert (short.prompts, short.contexts) == ((128, 512), (128, 512, 2048))
    assert (long.prompts, long.contexts) == ((128, 512, 2048), (128, 512, 2048))
    assert LEAST <= short.rounds <= long.rounds <= MOST
    assert cost(short, 0.001, 0.01) <= 10.0 and cost(long, 0.001, 0.01) <= 120.0


def test_one_length_of_each_is_measured_however_little_time_there_is() -> None:
    found = planned(PLAN, 0.1, 4096, 0.01, 0.1)
    assert (found.prompts, found.contexts, found.rounds) == ((128,), (128,), LEAST)
    assert (found.new, found.warmup) == (PLAN.new, PLAN.warmup)


def test_all_rounds_fit_into_a_row() -> None:
    found = planned(PLAN, 1000.0, 256, 0.0001, 0.0001)
    found.check(256, 100)
    assert found.contexts == (128,) and found.rounds == (256 - 128 - 2) // 16


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(InputError, match="a model of 64 tokens is too short to choose contexts for"):
        planned(PLAN, 10.0, 64, 0.001, 0.001)


def test_speeds_of_all_contestants_count() -> None:
    workers = [Worker(fake("ours", seconds=0.001)), Worker(fake("theirs", seconds=0.02))]
    try:
        both, alone = chosen(workers, PLAN, 4.0, 4096), chosen(workers[:1], PLAN, 4.0, 4096)
    finally:
        for worker in workers:
            worker.close()
    assert (len(both.contexts), both.rounds) < (len(alone.contexts), alone.rounds + 1)
    assert both.contexts == (128,) and len(alone.contexts) > 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("1.5m", 90.0), ("1h", 3600.0)])
def test_a_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "0s", "-1s", "soon", ""])
def test_no_time(text: str) -> None:
    with pytest.raises(InputError, match=f"--budget: '{text}' is no time"):
        seconds_of(text)
