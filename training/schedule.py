"""The learning rate as a pure function of the step: warm-up, plateau, linear decay to zero (WSD)."""

from __future__ import annotations

from dataclasses import dataclass

from omnic.errors import InputError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395).

    The plateau does not depend on where the run ends, so the number of steps may be lowered when
    the decay starts, without touching a step that was already made.

    Attributes:
        steps: optimiser steps in all.
        warmup: steps of the linear rise.
        decay_start: first step of the linear fall; it ends at zero after the last step.
    """

    steps: int
    warmup: int
    decay_start: int

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot be run."""
        if self.steps < 1:
            raise InputError(f"a training needs at least one step, not {self.steps}")
        if not 0 <= self.decay_start <= self.steps:
            raise InputError(f"the decay starts at step {self.decay_start}, outside the run of {self.steps} steps")

    @classmethod
    def of(cls, steps: int, warmup: int, decay: float) -> Schedule:
        """Return the schedule whose last ``decay`` share of ``steps`` falls to zero."""
        return cls(steps, min(warmup, max(1, steps // 10)), steps - round(steps * decay))

    def scale(self, step: int) -> float:
        """Return the factor on the peak rates at ``step`` (0 based)."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        if step < self.decay_start:
            return min(rise, 1.0)
        return min(rise, 1.0) * (self.steps - step) / (self.steps - self.decay_start)

    def lowered(self, steps: int) -> Schedule:
        """Return the schedule that ends at ``steps`` (never more than now, at least one decay step)."""
        return Schedule(max(min(steps, self.steps), self.decay_start + 1), self.warmup, self.decay_start)
