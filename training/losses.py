"""The training losses: next token, MTP heads or block, verifier, experts' balance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnic.spec import MoE, Spec
from omnic.training.config import TrainConfig
from omnic.training.protocol import mtp_depth, mtp_forward

__all__ = ["Experts", "TrainingLoss", "balance_loss", "experts_of", "update_select_bias"]


@dataclass(frozen=True)
class Experts:
    """How the routed layers of a model choose: one entry for all of them."""

    experts: int
    top_k: int
    select_bias: bool = False


def experts_of(spec: Spec) -> Experts | None:
    """Return how a spec's routed layers choose, None for a dense model."""
    for layer in spec.layers():
        ffn = layer.ffn
        if isinstance(ffn, MoE):
            return Experts(ffn.routed_experts, ffn.routed_top_k, ffn.select_bias)
    return None


def balance_loss(logits: Tensor, top_k: int) -> Tensor:
    """Return the load-balancing loss of a layer: ``E * sum_e f_e p_e`` (Switch, arXiv 2101.03961).

    ``f_e`` is the share of choices that fall on expert e, ``p_e`` its mean probability; 1 when the
    load is even.

    Args:
        logits: [B, T, E] router logits.
        top_k: experts a token takes.
    """
    flat = logits.float().flatten(0, -2)
    chosen = torch.zeros_like(flat).scatter_(1, flat.topk(top_k, dim=-1).indices, 1.0)
    share = chosen.mean(0) / top_k
    return flat.shape[-1] * (share * flat.softmax(-1).mean(0)).sum()


@torch.no_grad()
def update_select_bias(bias: Tensor, logits: Tensor, top_k: int, rate: float = 1e-3) -> None:
    """Move a selection bias towards an even load (auxiliary-loss-free, arXiv 2408.15664), in place.

    ``b += rate * sign(mean load - load)``; gates do not see the bias, so no gradient flows.
    """
    flat = logits.float().flatten(0, -2)
    load = torch.zeros_like(flat).scatter_(1, (flat + bias).topk(top_k, dim=-1).indices, 1.0).sum(0)
    bias += rate * torch.sign(load.mean() - load)


class TrainingLoss:
    """The weighted sum of a model's losses over a batch; callable, and what is compiled.

    Args:
        model: the training module.
        config: the weights of the parts.
        experts: how routed layers choose, None for a dense model.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, experts: Experts | None) -> None:
        self.model, self.config, self.experts = model, config, experts
        self._depth = mtp_depth(model) if config.mtp_weight > 0 and config.mtp_share > 0 else 0

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (loss to differentiate, next-token loss in nats, router logits to balance by).

        The last is empty unless the routers have a selection bias.

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
        if self.experts is None:
            return total, main, []
        if config.balance_weight > 0 and not self.experts.select_bias:
            parts = [balance_loss(layer, self.experts.top_k) for layer in out["router_logits"]]
            total = total + config.balance_weight * torch.stack(parts).mean()
        routers = [layer.detach() for layer in out["router_logits"]] if self.experts.select_bias else []
        return total, main, routers


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
