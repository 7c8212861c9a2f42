"""Measuring, inside the budget, how this machine trains a model fastest and how long a step takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from omnic.errors import InputError
from omnic.training.config import TrainConfig
from omnic.training.optim import Optimizer

__all__ = ["Mode", "ProbeResult", "Step", "bf16_pays", "parse_mode", "probe", "time_optimizer", "time_steps", "wrap"]

Step = Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor]]]
"""A loss over a batch: what to differentiate, what to log, and loads of experts to balance."""

_COMPILE_SECONDS = 90.0
"""What compiling the forward and backward pass of a small model takes on two cores, cold."""

_COMPILE_SHARE = 0.15
"""Compile only when that is at most this share of the time left: it gains 20 % and more."""


@dataclass(frozen=True)
class Mode:
    """How a step is executed."""

    compiled: bool = False
    bf16: bool = False

    def __str__(self) -> str:
        return f"{'compile' if self.compiled else 'eager'}-{'bf16' if self.bf16 else 'f32'}"


def parse_mode(text: str) -> Mode:
    """Read ``eager-f32``, ``eager-bf16``, ``compile-f32`` or ``compile-bf16``.

    Raises:
        InputError: anything else.
    """
    for mode in (Mode(c, b) for c in (False, True) for b in (False, True)):
        if str(mode) == text:
            return mode
    raise InputError(f"unknown mode {text!r}", "use eager-f32, eager-bf16, compile-f32 or compile-bf16")


@dataclass(frozen=True)
class ProbeResult:
    """What the probe found.

    Attributes:
        mode: the fastest way to run a step here.
        step_seconds: a whole step, optimiser included.
        forward_seconds: a forward pass of one batch, for planning evaluations.
        measured: median seconds of forward and backward by mode; what was not tried is absent.
    """

    mode: Mode
    step_seconds: float
    forward_seconds: float
    measured: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "mode": str(self.mode)}


def wrap(loss: Step, mode: Mode) -> Step:
    """Return ``loss`` as ``mode`` runs it."""

    def cast(batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        with torch.autocast("cpu", dtype=torch.bfloat16) if mode.bf16 else nullcontext():
            return loss(batch)

    return torch.compile(cast, dynamic=False) if mode.compiled else cast


def time_steps(step: Step, batch: Tensor, model: nn.Module, count: int = 3, warm: int = 1) -> float:
    """Return the median seconds of forward and backward; gradients are dropped, nothing is updated."""
    seconds = []
    for i in range(warm + count):
        began = time.perf_counter()
        total, *_ = step(batch)
        total.backward()
        if i >= warm:
            seconds.append(time.perf_counter() - began)
        for parameter in model.parameters():
            parameter.grad = None
    return median(seconds)


def time_optimizer(model: nn.Module, config: TrainConfig) -> float:
    """Return the median seconds of an optimiser step, on copies of the parameters."""
    twins = [(name, nn.Parameter(p.detach().clone())) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = Optimizer(twins, config, config.muon_rate, config.adam_rate)
    seconds = []
    for _ in range(3):
        for _, twin in twins:
            twin.grad = twin.detach().clone()
        began = time.perf_counter()
        optimizer.step(1.0)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


def bf16_pays(size: int = 256) -> bool:
    """Tell whether bf16 products are clearly faster than f32 here (matrix units, or AVX512-BF16).

    Without such units bf16 is emulated, up to a hundred times slower, so a whole step is never
    tried in it before this small product has been.
    """

    def seconds(dtype: torch.dtype) -> float:
        a = torch.full((size, size), 0.5, dtype=dtype)
        torch.mm(a, a)
        found = []
        for _ in range(3):
            began = time.perf_counter()
            for _ in range(4):
                torch.mm(a, a)
            found.append(time.perf_counter() - began)
        return min(found)

    return seconds(torch.bfloat16) * 1.3 < seconds(torch.float32)


def probe(
    loss: Step, batch: Tensor, model: nn.Module, config: TrainConfig, seconds_left: float, mode: Mode | None = None
) -> ProbeResult:
    """Choose between eager and compiled, f32 and bf16, by timing real steps that update nothing.

    Args:
        loss: :class:`omnic.training.losses.TrainingLoss`.
        batch: a batch of the run's shape.
        model: whose gradients the loss makes.
        config: of the optimiser, which is timed on a copy.
        seconds_left: budget for all training steps; compiling is tried when it can pay.
        mode: only time this one.
    """
    measured: dict[str, float] = {}

    def measure(candidate: Mode) -> Mode:
        measured[str(candidate)] = time_steps(wrap(loss, candidate), batch, model)
        return candidate

    if mode is not None:
        best = measure(mode)
    else:
        best = measure(Mode())
        if bf16_pays() and measured[str(measure(Mode(bf16=True)))] < measured[str(best)]:
            best = Mode(bf16=True)
        if seconds_left * _COMPILE_SHARE > _COMPILE_SECONDS:
            compiled = measure(Mode(compiled=True, bf16=best.bf16))
            if measured[str(compiled)] < measured[str(best)]:
                best = compiled
    began = time.perf_counter()
    with torch.no_grad():
        loss(batch)
    forward = time.perf_counter() - began
    return ProbeResult(best, measured[str(best)] + time_optimizer(model, config), forward, measured)
