"""A model that computes with the numbers of its codes, and the loss by which it follows the model it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from omnic.ir.graph import Module, Result
from omnic.ir.packing import QTensor, decode, quantise
from omnic.ir.rewrite import eliminate_dead_code
from omnic.ir.types import ElementType, Storage
from omnic.ir.weights import WeightStore
from omnic.targets.torch.training import load_training_module
from omnic.training.coded import Coded

__all__ = ["TABLES", "Distillation", "Student", "without_head"]

#: read row by row, or by the loss itself: rounded in training, never trained
TABLES = ("embed", "head", "positions")


class Student(nn.Module):
    """The training module of a front module, some of its weights those of their codes.

    Codes, their scales and every vector that ``forward`` reads are parameters of it; what is not trained is none, so a
    checkpoint holds what a training moves.

    Args:
        front: the front module.
        store: its numbers.
        codes: what each trained weight begins with, by name.
        elements: storage types by name; those of tables and heads are rounded once and stay.
    """

    def __init__(self, front: Module, store: WeightStore, codes: Mapping[str, QTensor],
                 elements: Mapping[str, ElementType]) -> None:
        super().__init__()
        self.coded = nn.ModuleDict({_key(name): Coded(store.array(name), q) for name, q in codes.items()})
        self.names = tuple(codes)
        model = load_training_module(front, store).eval().requires_grad_(False)
        read = set(front.function().weights())
        self.vectors = nn.ParameterDict({
            _key(name): nn.Parameter(p.detach().clone())
            for name, p in model.named_parameters() if p.dim() == 1 and name in read and name not in codes})
        self.rounded: dict[str, Tensor] = {}
        for name in read - set(codes):
            element = elements.get(name)
            if isinstance(element, Storage):
                rounded = decode(quantise(store.array(name), element))
                self.rounded[name] = torch.from_numpy(np.ascontiguousarray(rounded))
        # Held in a list, so that what it has is not the student's.
        self._models = [model]

    def numbers(self) -> dict[str, Tensor]:
        """Return the numbers that the trained and the rounded weights have now, by front name."""
        found = {name: self.coded[_key(name)]() for name in self.names}
        found |= {name.replace("/", "."): p for name, p in self.vectors.items()}
        return found | self.rounded

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return what the training module does, for tokens i64[B, T]."""
        return functional_call(self._models[0], self.numbers(), (tokens,))

    def codes(self) -> dict[str, QTensor]:
        """Return the trained weights as codes."""
        found: dict[str, QTensor] = {}
        for name in self.names:
            coded = self.coded[_key(name)]
            assert isinstance(coded, Coded)
            found[name] = coded.tensor()
        return found

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """Return the training module with the vectors as they are now; its coded weights are those before training."""
        parameters = dict(self._models[0].named_parameters())
        for name, p in self.vectors.items():
            parameters[name.replace("/", ".")].copy_(p)
        return self._models[0]


class Distillation:
    """KL(the model as it was || the student) of the next token, temperature 1: nothing new is learned.

    While the share done is below ``trunk_share`` it is taken to second order in what goes into the head, z:
    ``(z' - z)^T G (z' - z) / 2`` with ``G = E[W^T (diag p - p p^T) W]``, the Fisher information of z under the head W,
    a mean over one batch.  That needs no product with the vocabulary, a third of a small model's step.

    Args:
        front: the front module.
        store: the numbers of the model as it was.
        student: what learns.
        trunk_share: share of the training.
    """

    def __init__(self, front: Module, store: WeightStore, student: Student, trunk_share: float) -> None:
        self.teacher = load_training_module(front, store).eval().requires_grad_(False)
        self.student, self.trunk_share = student, trunk_share
        self._metric: Tensor | None = None
        trunk = without_head(front) if trunk_share > 0 else None
        self._head, self._trunk = "", None
        if trunk is not None:
            module, self._head = trunk
            self._trunk = load_training_module(module, store.with_module(module)).eval().requires_grad_(False)

    def __call__(self, tokens: Tensor, share: float) -> Tensor:
        """Return the loss in nats a token, for tokens i64[B, T]."""
        if self._trunk is not None and share < self.trunk_share:
            return self._second_order(self._trunk, tokens)
        with torch.no_grad():
            wanted = self.teacher(tokens)["logits"]
        found = self.student(tokens)["logits"]
        return _Divergence.apply(found.flatten(0, 1).float(), wanted.flatten(0, 1).float())

    def _second_order(self, trunk: nn.Module, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = trunk(tokens)
            if self._metric is None:
                self._metric = self._fisher(wanted)
        own = {n: p for n, p in trunk.named_parameters()}
        found = functional_call(trunk, {n: p for n, p in self.student.numbers().items() if n in own}, (tokens,))
        error = (found - wanted).float()
        return 0.5 * ((error @ self._metric) * error).sum(-1).mean()

    def _fisher(self, normed: Tensor) -> Tensor:
        """Return G of inputs of the head [B, T, D]."""
        head = dict(self.teacher.named_parameters())[self._head]
        p = (normed.flatten(0, 1) @ head.mT).float().softmax(-1)
        mean = p @ head
        return (head.mT * p.mean(0)) @ head - mean.mT @ mean / len(mean)


class _Divergence(torch.autograd.Function):
    """KL(wanted || found) of logits [N, V], mean over rows; one pass over the vocabulary each way."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:
        ours, theirs = found.log_softmax(-1), wanted.log_softmax(-1)
        p = theirs.exp()
        ctx.save_for_backward(ours, p)
        return (p * (theirs - ours)).sum() / len(ours)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ours, p = ctx.saved_tensors
        return (ours.exp() - p).mul_(gradients[0] / len(ours)), None


def without_head(front: Module) -> tuple[Module, str] | None:
    """Return the module whose ``forward`` gives what its head multiplies as ``normed``, and the head's name.

    None where the head is no plain product (a softcap bends its logits).
    """
    function = front.function()
    logits = next(r.value for r in function.results if r.name == "logits")
    node = next(n for n in function.nodes if logits in n.results)
    if node.op != "lm_head" or node.attrs.get("softcap") or node.operands[0] is None or node.operands[1] is None:
        return None
    results = tuple(Result("normed", node.operands[0]) if r.value == logits else r
                    for r in function.results if r.state or r.value == logits)
    function = eliminate_dead_code(replace(function, results=results))
    used = set(function.weights())
    weights = {name: weight for name, weight in front.weights.items() if name in used}
    return replace(front, functions={function.name: function}, weights=weights), node.operands[1].name


def _key(name: str) -> str:
    """Return the name of a weight where a dot means a part of a module."""
    return name.replace(".", "/")
