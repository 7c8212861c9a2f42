"""Training a finished model to be good in few bits: its weights rounded in every step, its own output as the teacher.

What is trained are codes and scales (:mod:`omnic.training.coded`), and what is written are codes and scales: a compile
of the file keeps them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from omnic.errors import BundleError, InputError
from omnic.ir.graph import Module
from omnic.ir.packing import QTensor, packed_parts, quantise
from omnic.ir.types import ElementType, Storage, TensorType
from omnic.ir.weights import WeightStore
from omnic.ir.weights.sources import TYPES_KEY
from omnic.models import build
from omnic.spec import Spec
from omnic.training.coded import check_trainable
from omnic.training.data import Tokens
from omnic.training.files import replace_file
from omnic.training.module import stored_weights
from omnic.training.student import TABLES, Distillation, Student

__all__ = ["QatConfig", "Quantised", "export_codes", "starting_codes", "train_quantised"]


@dataclass(frozen=True)
class QatConfig:
    """The recipe of a training in few bits.

    Found on ``tiny`` in ternary, at budgets of half a minute to two minutes of processor time, by the divergence on
    training text; what each value is worth stands in ``docs/training.md``.

    Attributes:
        corpus: as in :class:`omnic.training.config.TrainConfig`.
        sequence: tokens of a window.
        batch: windows of a step: many small steps, since a code needs many to change.
        rate: peak rate of the numbers, in units of their group's scale, which is also that between two codes.
        factor_rate: peak rate of the scales, relative.
        norm_rate: peak rate of norms and other vectors.
        betas: Adam's decay rates.
        warmup: steps of the linear rise; then the rates fall to 0 along a line.
        trunk_share: share of the training, from its start, whose loss is the divergence's second-order form on what
            goes into the head, without the head's products (:class:`omnic.training.student.Distillation`).
        checkpoint_seconds: wall time between checkpoints of a run.
    """

    corpus: str = "stdlib"
    sequence: int = 256
    batch: int = 2
    rate: float = 1.5e-3
    factor_rate: float = 1e-3
    norm_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 10
    trunk_share: float = 0.6
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values no training can use."""
        for name in ("sequence", "batch", "warmup"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "factor_rate", "norm_rate", "checkpoint_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.trunk_share <= 1:
            raise InputError(f"trunk_share is a share between 0 and 1, not {self.trunk_share}")
        if not all(0 <= b < 1 for b in self.betas):
            raise InputError(f"betas are from 0 to below 1, not {', '.join(map(str, self.betas))}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QatConfig:
        """Build a recipe from :meth:`to_dict`'s values."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Quantised:
    """What a training in few bits was.

    Attributes:
        steps: updates.
        cpu_seconds: processor seconds of the steps, the teacher's among them.
        last: mean loss of the last ten steps, nats a token.
    """

    steps: int
    cpu_seconds: float
    last: float


def starting_codes(front: Module, store: WeightStore, elements: Mapping[str, ElementType],
                   start: Mapping[str, QTensor] | None = None) -> dict[str, QTensor]:
    """Return the codes that a training begins with, of every weight of ``forward`` that is trained.

    Those are the matrices that have a storage type in ``elements`` and are no table, no head and not read along two
    dims (a type with one scale a head): ``start``'s codes, or those of round to nearest.

    Raises:
        InputError: nothing is left to train, or a type that cannot be trained.
    """
    found: dict[str, QTensor] = {}
    for name in front.function().weights():
        element = elements.get(name)
        if not isinstance(element, Storage) or element.group == -1 or name in TABLES:
            continue
        check_trainable(name, element, int(str(front.weights[name].type.shape[-1])))
        given = (start or {}).get(name)
        found[name] = given if given is not None else quantise(store.array(name), element)
    if not found:
        raise InputError(f"no matrix of @{front.name} is stored in few bits, so there is nothing to train",
                         "name a storage type, such as t2<g64>")
    return found


def train_quantised(
    spec: Spec,
    elements: Mapping[str, ElementType],
    tokens: Tokens,
    out: Path,
    *,
    weights: Path | None = None,
    start: Mapping[str, QTensor] | None = None,
    cpu_seconds: float = 120.0,
    config: QatConfig = QatConfig(),
    seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> Quantised:
    """Train the weights of ``spec`` so that they lose little in the storage types ``elements``.

    The rates fall to 0 with the processor time, which is the budget: that of all threads, the teacher's share in it.

    Args:
        spec: the model; its tokenizer made ``tokens``.
        elements: storage type of each weight by name; tables and heads are rounded and not trained.
        tokens: the corpus.
        out: the weight file to write (:func:`export_codes`).
        weights: of the model; default the file that the spec names.
        start: codes to begin with, such as those of GPTQ: their divergence is a fraction of that of rounding.
        cpu_seconds: processor seconds of all threads that the steps may take.
        config: the recipe.
        seed: of the order of the text.
        progress: called with the share of the budget and the loss of each step.

    Raises:
        InputError: no weights, a type that cannot be trained, or the loss is no longer finite.
    """
    source = weights or spec.resolve("weights")
    if source is None:
        raise InputError(f"{spec.model} has no weights to start from", "train it first")
    front = build(spec)
    store = WeightStore.load(front, source)
    codes = starting_codes(front, store, elements, start)
    losses: list[float] = []
    began, used = _cpu(), 0.0
    student = Student(front, store, codes, elements)
    loss = Distillation(front, store, student, config.trunk_share)
    optimizer = Latents(student, config)
    while used < cpu_seconds:
        window = tokens.batch(seed, len(losses), config.batch, config.sequence)[:, :-1]
        share = min(used / cpu_seconds, 1.0)
        value = loss(window, share)
        if not math.isfinite(value.item()):
            raise InputError(f"the training in few bits diverged at step {len(losses)}", "lower the rate")
        value.backward()
        optimizer.step(min(1.0, (len(losses) + 1) / config.warmup) * (1 - share))
        losses.append(value.item())
        used = _cpu() - began
        if progress is not None:
            progress(min(used / cpu_seconds, 1.0), losses[-1])
    export_codes(student, spec, out)
    tail = losses[-10:]
    return Quantised(len(losses), used, sum(tail) / len(tail))


class Latents:
    """Adam on numbers, scales and vectors, each with a rate of its own, behind one step and one flat state.

    Args:
        student: whose parameters are trained.
        config: rates and decay rates.
    """

    def __init__(self, student: Student, config: QatConfig) -> None:
        self.parameters = {n: p for n, p in student.named_parameters() if p.requires_grad}
        rates = {"latent": config.rate, "factor": config.factor_rate}
        self.rates = [rates.get(name.rsplit(".", 1)[-1], config.norm_rate) for name in self.parameters]
        groups = [{"params": [p], "lr": r} for p, r in zip(self.parameters.values(), self.rates, strict=True)]
        self._adam = torch.optim.Adam(groups, betas=config.betas, eps=1e-10, fused=True)

    def step(self, scale: float) -> None:
        """Update with all rates multiplied by ``scale`` and clear the gradients."""
        for group, rate in zip(self._adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor a resumed run needs."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            kept = self._adam.state.get(parameter, {})
            found |= {f"{part}/{name}": kept[part] for part in ("exp_avg", "exp_avg_sq", "step") if part in kept}
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of :meth:`state`.

        Raises:
            BundleError: a tensor is missing, left over or of another shape.
        """
        parts = ("exp_avg", "exp_avg_sq", "step")
        moved = [n for n in self.parameters if f"step/{n}" in tensors]
        expected = {f"{part}/{n}" for n in moved for part in parts}
        if expected != set(tensors) or any(tensors[f"exp_avg/{n}"].shape != self.parameters[n].shape for n in moved):
            raise BundleError("the optimiser state does not fit the model", "the checkpoint is of another run")
        for name in moved:
            self._adam.state[self.parameters[name]] = {part: tensors[f"{part}/{name}"].clone() for part in parts}


def export_codes(student: Student, spec: Spec, path: Path) -> dict[str, QTensor]:
    """Write ``path`` (safetensors): trained weights as codes and scales, all others in the spec's dtype.

    The metadata of the file names the storage types, so a model that reads it has them, and a compile keeps the codes.

    Returns:
        What was written as codes.

    Raises:
        InputError: the file cannot be written.
    """
    codes = student.codes()
    plain = stored_weights(student.plain(), spec)
    tensors: dict[str, Tensor] = {name: value for name, value in plain.items() if name not in codes}
    for name, q in codes.items():
        tensors |= {name + suffix: torch.from_numpy(np.ascontiguousarray(part))
                    for suffix, part in packed_parts(q).items()}
    types = {name: str(TensorType(q.type, q.shape)) for name, q in codes.items()}
    metadata = {"format": "pt", "model": spec.model, TYPES_KEY: json.dumps(types)}
    replace_file(path, save_tensors(tensors, metadata=metadata))
    return codes


def _cpu() -> float:
    times = os.times()
    return times.user + times.system
