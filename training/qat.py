"""Training a finished model to be good in few bits: its weights rounded in every step, its own output as the teacher.

Rounding is the packing's own (:mod:`omnic.ir.packing`), put between each weight and its reader by ``fake_quant``, so
the weights that come out, rounded to nearest by ``int4-packing``, are the model that was trained.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from omnic.errors import InputError
from omnic.ir.packing import QTensor, decode
from omnic.ir.types import ElementType, Storage
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.quantise.fake import with_fake_quant
from omnic.spec import Spec
from omnic.targets.torch.training import load_training_module
from omnic.training.config import TrainConfig
from omnic.training.data import Tokens
from omnic.training.module import export_weights
from omnic.training.optim import Optimizer

__all__ = ["Quantised", "latents", "train_quantised"]


@dataclass(frozen=True)
class Quantised:
    """What a training in few bits was.

    Attributes:
        steps: updates.
        cpu_seconds: processor seconds of the steps.
        first: divergence from the teacher in the first step, nats a token.
        last: mean of the last ten steps.
    """

    steps: int
    cpu_seconds: float
    first: float
    last: float


def train_quantised(
    spec: Spec,
    elements: dict[str, ElementType],
    tokens: Tokens,
    out: Path,
    *,
    weights: Path | None = None,
    start: Mapping[str, QTensor] | None = None,
    cpu_seconds: float = 120.0,
    muon_rate: float = 6e-3,
    adam_rate: float = 1e-3,
    seed: int = 0,
    batch: int = 8,
    length: int = 256,
    progress: Callable[[float, float], None] | None = None,
) -> Quantised:
    """Train the weights of ``spec`` so that they lose little in the storage types ``elements``.

    The loss is KL(the model as it was || the rounded model), temperature 1: self-distillation, so that the model is
    neither trained further nor taken elsewhere.  Gradients pass the rounding straight through (arXiv:1308.3432).
    Weights that ``elements`` does not name and the MTP block stay as they are, except norms.  The rate falls to 0
    along a cosine of the processor time, which is the budget.  The file holds the weights in the spec's dtype; packing
    rounds those, where the steps rounded f32 numbers.  A type with one scale a head is left out of the training.

    Args:
        spec: the model; its tokenizer made ``tokens``.
        elements: storage type of each weight by name.
        tokens: the corpus.
        out: the weight file to write, in the spec's dtype.
        weights: of the model; default the file that the spec names.
        start: codes to begin with, such as those of GPTQ: their divergence is a fraction of that of rounding.
        cpu_seconds: processor seconds of all threads that the steps may take.
        muon_rate: peak rate of the matrices.
        adam_rate: peak rate of the norms.
        seed: of the order of the text.
        batch: windows of a step.
        length: tokens of a window.
        progress: called with the share of the budget and the divergence of each step.

    Raises:
        InputError: no weights, a type that cannot be trained, or the loss is no longer finite.
    """
    source = weights or spec.resolve("weights")
    if source is None:
        raise InputError(f"{spec.model} has no weights to start from", "train it first")
    front = build(spec)
    store = WeightStore.load(front, source)
    elements = {name: e for name, e in elements.items() if not (isinstance(e, Storage) and e.group == -1)}
    teacher = load_training_module(front, store).eval()
    student = load_training_module(with_fake_quant(front, elements), store)
    trained = {n: p for n, p in student.named_parameters() if _is_trained(n, p, elements)}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in trained)
    with torch.no_grad():
        for name in trained.keys() & (start or {}).keys():
            trained[name].copy_(latents((start or {})[name]))
    optimizer = Optimizer(trained.items(), TrainConfig(), muon_rate, adam_rate)
    losses: list[float] = []
    began, used = _cpu(), 0.0
    while used < cpu_seconds:
        window = tokens.batch(seed, len(losses), batch, length)[:, :-1]
        loss = _divergence(teacher, student, window)
        if not math.isfinite(loss.item()):
            raise InputError(f"the training in few bits diverged at step {len(losses)}", "lower the rate")
        loss.backward()
        warm = min(1.0, (len(losses) + 1) / 8)
        optimizer.step(warm * 0.5 * (1 + math.cos(math.pi * min(used / cpu_seconds, 1.0))))
        losses.append(loss.item())
        used = _cpu() - began
        if progress is not None:
            progress(min(used / cpu_seconds, 1.0), losses[-1])
    export_weights(student, spec, out)
    tail = losses[-10:]
    return Quantised(len(losses), used, losses[0], sum(tail) / len(tail))


def latents(q: QTensor) -> torch.Tensor:
    """Return numbers that round to nearest to the codes and scales of ``q``, for a training to go on from.

    A ternary group's scale is the mean magnitude of its numbers, so its nonzero numbers are spread by the share of
    nonzero codes; other kinds give the decoded numbers, which round to themselves.
    """
    numbers = torch.from_numpy(np.ascontiguousarray(decode(q)))
    if q.type.kind != "t2":
        return numbers
    group = q.type.group or q.shape[-1]
    shaped = numbers.unflatten(-1, (-1, group))
    share = (shaped != 0).float().mean(-1, keepdim=True).clamp(min=1 / group)
    return (shaped / share).flatten(-2)


def _is_trained(name: str, parameter: nn.Parameter, elements: dict[str, ElementType]) -> bool:
    if name.startswith("mtp.") or name.startswith("verifier"):
        return False
    return parameter.dim() == 1 or (name in elements and name not in ("embed", "head"))


def _divergence(teacher: nn.Module, student: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of the next token, nats a token."""
    with torch.no_grad():
        wanted = teacher(tokens)["logits"].float().log_softmax(-1)
    found = student(tokens)["logits"].float().log_softmax(-1)
    return F.kl_div(found.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")


def _cpu() -> float:
    times = os.times()
    return times.user + times.system
