"""One phase of a run (the main training, or the distillation): steps until the schedule ends."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omnic.errors import CheckFailed
from omnic.training.checkpoint import Checkpoint, save_checkpoint
from omnic.training.config import TrainConfig
from omnic.training.data import Tokens
from omnic.training.probe import Step
from omnic.training.progress import Progress
from omnic.training.run_folder import RunFolder
from omnic.training.schedule import Schedule

__all__ = ["Clock", "Phase", "PhaseState", "StopRequest"]


class Updates(Protocol):
    """What updates the parameters after each step."""

    def step(self, scale: float) -> None:
        """Update with the rates multiplied by ``scale`` and clear the gradients."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return every tensor a resumed run needs."""
        ...


class Clock:
    """Wall and processor seconds of a run, those of earlier processes counted in.

    Args:
        used: wall seconds of earlier processes.
        cpu_used: their processor seconds.
    """

    def __init__(self, used: float = 0.0, cpu_used: float = 0.0) -> None:
        self._used, self._cpu_used = used, cpu_used
        self._began, self._cpu_began = time.perf_counter(), _cpu_seconds()

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self._used + time.perf_counter() - self._began

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds used so far: all threads, and child processes that ended (compilers)."""
        return self._cpu_used + _cpu_seconds() - self._cpu_began

    def to_dict(self) -> dict[str, float]:
        """Return JSON values: ``seconds`` and ``cpu_seconds``."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _noise_seed(seed: int, step: int) -> int:
    """Return a seed of 63 bits: nearby seeds and steps give unrelated ones."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8, person=b"omnic.noise").digest()
    return int.from_bytes(digest, "little") >> 1


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish, so that no update is left half made."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True


@dataclass
class PhaseState:
    """What of a phase a checkpoint keeps, besides tensors."""

    schedule: Schedule
    step: int = 0
    lowered: bool = False
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        s = self.schedule
        return {
            "schedule": {"steps": s.steps, "warmup": s.warmup, "decay_start": s.decay_start},
            "step": self.step,
            "lowered": self.lowered,
            "evaluations": self.evaluations,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PhaseState:
        """Read :meth:`to_dict`'s values."""
        return cls(Schedule(**values["schedule"]), values["step"], values["lowered"], list(values["evaluations"]))


@dataclass
class Phase:
    """Runs the steps of one phase.

    Attributes:
        name: ``train`` or ``distill``.
        model: the module whose weights are stored.
        step: the loss, as the mode runs it.
        optimizer: updates the model.
        tokens: the corpus.
        config: checkpoint interval.
        seed: of the data order (phases see different orders).
        windows: windows a step.
        state: where the phase is.
        facts: what a checkpoint stores of the other phases and the run.
        steps_before: steps of earlier phases, for the checkpoint's number.
        deadline: budget seconds at which the phase must be over; None when the steps are given.
        evaluate: called now and then for a figure along the way, None for none.
        balance: called with the experts' loads after each step, None for none.
    """

    name: str
    model: nn.Module
    step: Step
    optimizer: Updates
    tokens: Tokens
    config: TrainConfig
    seed: int
    windows: int
    state: PhaseState
    facts: dict[str, Any]
    steps_before: int
    deadline: float | None
    evaluate: Callable[[], float] | None = None
    balance: Callable[[list[Tensor]], None] | None = None

    def run(self, folder: RunFolder, clock: Clock, progress: Progress) -> None:
        """Make the remaining steps; writes checkpoints and the log.

        Ctrl-C and SIGTERM end the step that runs, write a checkpoint and stop.

        Raises:
            CheckFailed: the loss is no longer a finite number, or a signal stopped the run.
            InputError: a checkpoint cannot be written.
        """
        saved = time.perf_counter()
        began, first = clock.seconds, self.state.step
        stop = StopRequest()
        evaluated_at = {round(self.state.schedule.steps * k / 8) for k in range(1, 8)}
        smooth: float | None = None
        # The rate of the last steps: the first one of a process compiles.
        marks = deque([clock.seconds], maxlen=40)
        with folder.append_log() as log, stop:
            while self.state.step < self.state.schedule.steps:
                here = self.state.step
                if here == self.state.schedule.decay_start and not self.state.lowered and here > first:
                    self._lower(clock, (clock.seconds - began) / (here - first), progress)
                entry = self._one(clock)
                log.write(json.dumps(entry) + "\n")
                loss: float = entry["loss"]
                smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
                self._show(progress, clock, marks, smooth)
                if self.evaluate is not None and self.state.step in evaluated_at:
                    value = self.evaluate()
                    self.state.evaluations.append({"step": self.state.step, "bits_per_byte": value})
                    progress.say(f"{self.name} step {self.state.step}: about {value:.3f} bits per byte held out")
                if time.perf_counter() - saved >= self.config.checkpoint_seconds or stop.requested:
                    self.save(folder, clock)
                    saved = time.perf_counter()
                if stop.requested:
                    raise CheckFailed(
                        f"stopped by a signal after step {self.state.step} of {self.name}",
                        "the same command goes on from there",
                    )
        self.save(folder, clock)

    def save(self, folder: RunFolder, clock: Clock) -> None:
        """Write a checkpoint of this moment."""
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        weights |= {name: b.detach() for name, b in self.model.named_buffers() if name.endswith("select_bias")}
        facts = {**self.facts, "phase": self.name, **clock.to_dict(), self.name: self.state.to_dict()}
        checkpoint = Checkpoint(self.steps_before + self.state.step, weights, self.optimizer.state(), facts)
        save_checkpoint(folder.checkpoints, checkpoint)

    def _one(self, clock: Clock) -> dict[str, Any]:
        here = self.state.step
        scale = self.state.schedule.scale(here)
        batch: Tensor = self.tokens.batch(self.seed, here, self.windows, self.config.sequence)
        # The noise of routers is a function of the seed and the step, so that a resumed run draws the same.
        torch.manual_seed(_noise_seed(self.seed, here))
        total, main, loads = self.step(batch)
        loss = main.item()
        if not math.isfinite(total.item()):
            raise CheckFailed(
                f"the loss of {self.name} step {here} is {total.item()}: the training diverged",
                "lower the rates (--set muon_rate=..., --set adam_rate=...), or look for broken weights",
            )
        total.backward()
        self.optimizer.step(scale)
        if self.balance is not None:
            self.balance(loads)
        self.state.step = here + 1
        return {
            "phase": self.name,
            "step": here,
            "global_step": self.steps_before + here,
            "loss": loss,
            "total": total.item(),
            "scale": scale,
            "seconds": round(clock.seconds, 3),
        }

    def _lower(self, clock: Clock, seconds_a_step: float, progress: Progress) -> None:
        self.state.lowered = True
        if self.deadline is None:
            return
        before = self.state.schedule.steps
        fits = self.state.step + int((self.deadline - clock.seconds) / seconds_a_step)
        self.state.schedule = self.state.schedule.lowered(fits)
        after = self.state.schedule.steps
        if after < before:
            progress.say(
                f"{self.name}: {before} steps lowered to {after} to hold the budget "
                f"({seconds_a_step:.3f} s a step so far)"
            )

    def _show(self, progress: Progress, clock: Clock, marks: deque[float], smooth: float) -> None:
        marks.append(clock.seconds)
        rate = (marks[-1] - marks[0]) / (len(marks) - 1)
        tokens = self.windows * self.config.sequence / rate
        left = (self.state.schedule.steps - self.state.step) * rate
        progress.step(
            self.name, self.state.step, self.state.schedule.steps, f"loss {smooth:.3f}  {tokens:.0f} tokens/s", left
        )
