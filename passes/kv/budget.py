"""Bits by layer and head: what each costs, measured one at a time, and the choice under a byte budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import kl_divergence
from omnic.passes.context import PassContext
from omnic.passes.kv.forms import Cache, Form, Part, row_bytes, state_bytes
from omnic.passes.kv.rewrite import apply_plan

__all__ = ["Unit", "choose", "sensitivity", "units_of"]

NAME = "kv-quant"


@dataclass(frozen=True)
class Unit:
    """A head of a state; ``head`` is None for a latent."""

    state: str
    head: int | None


def units_of(caches: Sequence[Cache]) -> list[Unit]:
    """Return every head of every state."""
    return [Unit(c.state.name, h) for c in caches for h in (range(c.heads) if c.state.type.rank == 4 else [None])]


def split(cache: Cache, wide: set[int | None], low: Form, high: Form) -> tuple[Part, ...]:
    """Return the parts of a state whose heads in ``wide`` are kept as ``high``, the others as ``low``."""
    if cache.state.type.rank != 4:
        return (Part(None, high if wide else low),)
    above = tuple(h for h in range(cache.heads) if h in wide)
    below = tuple(h for h in range(cache.heads) if h not in wide)
    if not above or not below or low == high:
        return (Part(None, high if above else low),)
    return (Part(below, low), Part(above, high))


def sensitivity(
    module: Module, caches: Sequence[Cache], forms: Mapping[str, Form], windows: int, context: PassContext
) -> dict[Unit, float]:
    """Return, for each head, the mean KL divergence in nats of the module in which it alone takes its form.

    Measured on calibration windows, which are training text; the results are kept by the hash of all that goes in.

    Raises:
        InputError: there is no text, or nothing to run the model with.
    """
    calibration = context.need_calibration(NAME)
    weights, factory = context.need_weights(NAME), context.need_executor(NAME)
    results = context.need_results(NAME)
    tokens = calibration.tokens[:windows]
    units = units_of(caches)
    key = results.key(what="sensitivity of states", model=context.weights_key, module=module.name,
                      units=[f"{u.state} {u.head}" for u in units], text=calibration.sha256, windows=len(tokens),
                      forms=[f"{n} {f}" for n, f in sorted(forms.items())])
    if key in results:
        kept = results.get(key)
        assert isinstance(kept, np.ndarray)
        return dict(zip(units, kept.tolist(), strict=True))
    by_name = {c.state.name: c for c in caches}
    before = factory(module, weights.with_module(module)).forward(tokens).logits
    found: dict[Unit, float] = {}
    for done, unit in enumerate(units):
        context.progress(f"{NAME}: sensitivity", done / len(units))
        cache = by_name[unit.state]
        plain = Form(cache.state.type.element)
        parts = split(cache, {unit.head}, plain, forms[unit.state])
        changed = apply_plan(module, {unit.state: parts})
        after = factory(changed, weights.with_module(changed)).forward(tokens).logits
        found[unit] = max(0.0, float(np.mean(kl_divergence(before, after))))
    results.put(key, np.array(list(found.values())))
    return found


def choose(
    module: Module, caches: Sequence[Cache], low: Mapping[str, Form], high: Mapping[str, Form],
    cost: Mapping[Unit, float], budget: int,
) -> dict[str, tuple[Part, ...]]:
    """Return the parts of each state: ``high`` for the heads that gain most per byte, within ``budget`` bytes a row.

    Args:
        module: with every other change made that the budget counts.
        caches: states of the module.
        low: the form of each state at the fewest bits.
        high: at the most bits.
        cost: KL of each head at its low form; heads that are not here stay low.
        budget: bytes of all states of the module for one row.

    Raises:
        InputError: even the fewest bits need more.
    """
    by_name = {c.state.name: c for c in caches}
    wide: dict[str, set[int | None]] = {name: set() for name in by_name}

    def plan() -> dict[str, tuple[Part, ...]]:
        return {n: split(c, wide[n], low[n], high[n]) for n, c in by_name.items()}

    least = state_bytes(apply_plan(module, plan()))
    if least > budget:
        raise InputError(f"the states take {least:,} bytes a row at the fewest bits; the budget is {budget:,}",
                         "raise the budget, or lower budget.context")

    def extra(unit: Unit) -> int:
        """Bytes that one head costs more; every head of a state is as wide."""
        cache = by_name[unit.state]
        most, fewest = (row_bytes(cache.state.type.with_element(f[unit.state].element), module) for f in (high, low))
        return (most - fewest) // cache.heads

    left = budget - least
    for unit in sorted(cost, key=lambda u: -cost[u] / max(extra(u), 1)):
        if extra(unit) <= left:
            wide[unit.state].add(unit.head)
            left -= extra(unit)
    return plan()
