"""Choosing what is measured from the time there is: a short look at every contestant, then as much as fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from omnic.bench.worker import Worker
from omnic.errors import InputError

if TYPE_CHECKING:
    from omnic.bench.measure import Plan

__all__ = ["chosen", "planned", "seconds_of"]

#: tokens of the prompt, and of decoding, that a contestant's speed is guessed from
PROBE, DECODED = 32, 4
#: lengths that are tried, the shortest first
LENGTHS = (128, 512, 2048, 8192)
LEAST, MOST = 5, 21


def seconds_of(text: str) -> float:
    """Return seconds of a time such as ``90s`` or ``10m``.

    Raises:
        InputError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"--budget: '{text}' is no time", "write --budget 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def chosen(workers: Sequence[Worker], plan: Plan, seconds: float, capacity: int) -> Plan:
    """Return the plan that fits into ``seconds``, from the speed of each contestant."""
    size = min(PROBE, max(1, capacity - DECODED - 1))
    ids = np.full(size, 3, np.int64)
    prompts, tokens = [0.0], [0.0]
    for worker in workers:
        worker.prompt(ids)
        prompts.append(worker.prompt(ids) / size)
        tokens.append(float(np.median(worker.decode(DECODED))))
    return planned(plan, seconds, capacity, sum(prompts), sum(tokens))


def planned(plan: Plan, seconds: float, capacity: int, prompt: float, token: float) -> Plan:
    """Return ``plan`` with other prompts, contexts and rounds.

    Each length is taken where ``LEAST`` rounds of it still fit, the shortest first; what is left of the time goes into
    more rounds, at most ``MOST``.  One length of each is measured however little time there is.

    Args:
        plan: what it begins with; its ``new``, ``warmup`` and ``threads`` stay.
        seconds: the time there is.
        capacity: tokens that a row of the model holds.
        prompt: seconds of a token of a prompt, all contestants together.
        token: seconds of a decoded token, all contestants together.

    Raises:
        InputError: a row of the model is too short.
    """
    fixed, each = 0.0, 0.0
    prompts: list[int] = []
    contexts: list[int] = []
    room = capacity - plan.warmup - LEAST * plan.new
    if room < 1:
        raise InputError(f"a model of {capacity} tokens is too short to choose contexts for",
                         "give --prompts, --contexts and --new instead of --budget")
    for length in (n for n in LENGTHS if n <= capacity):
        once, again = plan.warmup * length * prompt, length * prompt
        if not prompts or fixed + once + LEAST * (each + again) <= seconds:
            fixed, each = fixed + once, each + again
            prompts.append(length)
        once, again = length * prompt + plan.warmup * token, plan.new * token
        if length <= room and (not contexts or fixed + once + LEAST * (each + again) <= seconds):
            fixed, each = fixed + once, each + again
            contexts.append(length)
    prompts = prompts or [capacity // 2]
    contexts = contexts or [min(LENGTHS[0], room)]
    rounds = int((seconds - fixed) / each) if each else MOST
    rounds = min(max(LEAST, min(MOST, rounds)), (capacity - contexts[-1] - plan.warmup) // plan.new)
    return replace(plan, prompts=tuple(prompts), contexts=tuple(contexts), rounds=rounds)
