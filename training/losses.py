"""The training losses: next token, MTP heads or block, verifier, what keeps experts in balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnic.ir.graph import Module
from omnic.ir.op import find_op
from omnic.ir.router_training import RouterTraining
from omnic.training.config import TrainConfig
from omnic.training.protocol import mtp_depth, mtp_forward

__all__ = [
    "Experts",
    "TrainingLoss",
    "balance_loss",
    "expert_load",
    "experts_of",
    "importance_loss",
    "update_select_bias",
    "wants_choices",
    "z_loss",
]


@dataclass(frozen=True)
class Experts:
    """How one routed layer chooses.

    Attributes:
        experts: of the layer.
        top_k: experts a token takes.
        select_bias: name of the weight that enters the choice alone, None without.
        by_logits: the choice is the top-k of the logits: no bias, no groups, no expert left out.
    """

    experts: int
    top_k: int
    select_bias: str | None = None
    by_logits: bool = True


def experts_of(front: Module) -> tuple[Experts, ...]:
    """Return how the routed layers of a front module choose, in their order; nothing for a dense model."""
    found: list[Experts] = []
    for node in front.function().nodes:
        if node.op != "router":
            continue
        attrs = find_op("router").bind(node.attrs)
        logits, bias = node.results[2], node.operands[3]
        plain = bias is None and attrs["groups"] is None and not RouterTraining.parse(str(attrs["train"])).dropout
        experts = int(str(logits.type.shape[-1]))
        found.append(Experts(experts, int(str(attrs["top_k"])), None if bias is None else bias.name, plain))
    return tuple(found)


def wants_choices(config: TrainConfig, experts: Sequence[Experts]) -> bool:
    """Tell whether the losses read what routers chose, and not their logits alone."""
    return bool(experts) and (config.importance_weight > 0 or not all(layer.by_logits for layer in experts))


def balance_loss(logits: Tensor, top_k: int, indices: Tensor | None = None) -> Tensor:
    """Return the load-balancing loss of a layer: ``E * sum_e f_e p_e`` (Switch, arXiv 2101.03961).

    ``f_e`` is the share of choices that fall on expert e, ``p_e`` its mean probability; 1 when the
    load is even.

    Args:
        logits: [B, T, E] router logits.
        top_k: experts a token takes.
        indices: i64[B, T, k], the experts chosen; None where they are the top-k of the logits.
    """
    flat = logits.float().flatten(0, -2)
    taken = flat.topk(top_k, dim=-1).indices if indices is None else indices.flatten(0, -2)
    chosen = torch.zeros_like(flat).scatter_(1, taken, 1.0)
    share = chosen.mean(0) / top_k
    return flat.shape[-1] * (share * flat.softmax(-1).mean(0)).sum()


def importance_loss(gates: Tensor, indices: Tensor, experts: int) -> Tensor:
    """Return the squared coefficient of variation of the experts' importance (Shazeer et al. 2017, arXiv 1701.06538).

    The importance of an expert is the sum of its gates over the batch; 0 when it is even.

    Args:
        gates: [B, T, k].
        indices: i64[B, T, k].
        experts: of the layer.
    """
    summed = gates.new_zeros(experts).index_add(0, indices.flatten(), gates.flatten())
    return summed.var(correction=0) / (summed.mean().square() + 1e-10)


def z_loss(logits: Tensor) -> Tensor:
    """Return the mean of ``logsumexp(logits)^2``, which keeps router logits small (ST-MoE, arXiv 2202.08906).

    Args:
        logits: [B, T, E] router logits.
    """
    return logits.float().logsumexp(-1).square().mean()


def expert_load(indices: Tensor, experts: int) -> Tensor:
    """Return how often each expert was chosen, f32[E], from i64[B, T, k]."""
    counts = torch.zeros(experts, device=indices.device)
    return counts.index_add(0, indices.flatten(), torch.ones(indices.numel(), device=indices.device))


@torch.no_grad()
def update_select_bias(bias: Tensor, load: Tensor, rate: float = 1e-3) -> None:
    """Move a selection bias towards an even load (auxiliary-loss-free, arXiv 2408.15664), in place.

    ``b += rate * sign(mean load - load)``; gates do not see the bias, so no gradient flows.
    """
    bias += rate * torch.sign(load.mean() - load)


class TrainingLoss:
    """The weighted sum of a model's losses over a batch; callable, and what is compiled.

    Args:
        model: the training module; it returns its routers' choices where :func:`wants_choices` says so.
        config: the weights of the parts.
        experts: how each routed layer chooses; empty for a dense model.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, experts: Sequence[Experts] = ()) -> None:
        self.model, self.config, self.experts = model, config, tuple(experts)
        self._depth = mtp_depth(model) if config.mtp_weight > 0 and config.mtp_share > 0 else 0
        self._choices = wants_choices(config, self.experts)

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (loss to differentiate, next-token loss in nats, the load of each router with a selection bias).

        Args:
            batch: i64[B, T + 1]; the last T are the targets of the first T.
        """
        config = self.config
        tokens, targets = batch[:, :-1], batch[:, 1:]
        out = self.model(tokens)
        logits = out["logits"]
        main = _cross_entropy(logits, targets)
        total = main
        if self._depth:
            rows = max(1, round(config.mtp_share * batch.shape[0]))
            state, parts = out["hidden"][:rows], []
            for k in range(1, self._depth + 1):
                drafted, state = mtp_forward(self.model, state[:, :-1], tokens[:rows, k:], k - 1)
                parts.append(_cross_entropy(drafted, targets[:rows, k:]))
            total = total + config.mtp_weight * torch.stack(parts).mean()
        if "mtp" in out:
            depth = out["mtp"].shape[2]
            parts = [_cross_entropy(out["mtp"][:, : -1 - j, j], targets[:, 1 + j :]) for j in range(depth)]
            total = total + config.linear_mtp_weight * torch.stack(parts).mean()
        if "verifier" in out:
            teacher = logits.detach().float().log_softmax(-1)
            student = out["verifier"].float().log_softmax(-1)
            divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
            total = total + config.verifier_weight * divergence
        if not self.experts:
            return total, main, []
        # None only where nothing below reads it: wants_choices.
        indices: list[Any] = out["router_indices"] if self._choices else [None] * len(self.experts)
        layers = list(zip(self.experts, out["router_logits"], indices, strict=True))
        # A selection bias balances alone: the loss would pull at what the gates say.
        parts = [balance_loss(z, e.top_k, None if e.by_logits else i) for e, z, i in layers if e.select_bias is None]
        if config.balance_weight > 0 and parts:
            total = total + config.balance_weight * torch.stack(parts).mean()
        if config.importance_weight > 0:
            pairs = zip(out["router_gates"], self.experts, indices, strict=True)
            total = (
                total
                + config.importance_weight
                * torch.stack([importance_loss(gates, chosen, layer.experts) for gates, layer, chosen in pairs]).mean()
            )
        if config.z_weight > 0:
            total = total + config.z_weight * torch.stack([z_loss(logits) for logits in out["router_logits"]]).mean()
        return total, main, [expert_load(i, e.experts) for e, _, i in layers if e.select_bias is not None]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
