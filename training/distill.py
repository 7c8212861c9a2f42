"""Distilling the MTP block from the frozen trunk, after the main training.

The trunk no longer moves, so the block learns to say what the main head will say, not what the text
says: that is what verification accepts.  It is unrolled as the engine applies it, each draft reading
the state of the draft before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnic.training.protocol import mtp_forward

__all__ = ["DistillLoss", "freeze_trunk"]


def freeze_trunk(model: nn.Module) -> list[str]:
    """Stop gradients and training noise for everything but the MTP block; return the names that stay trainable."""
    for name, part in model.named_modules():
        part.training = name.split(".")[0] == "mtp"
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("mtp."))
        if parameter.requires_grad:
            trained.append(name)
    return trained


class DistillLoss:
    """Mean over the drafts of the cross-entropy with the main head's softmax.

    Draft k at position t reads draft k - 1's state (the trunk's for k = 1) and token t + k, and
    learns the main head's distribution at position t + k (knowledge distillation, Hinton et al.
    2015, temperature 1).

    Args:
        model: a training module with block MTP whose trunk is frozen.
        unroll: drafts.
    """

    def __init__(self, model: nn.Module, unroll: int) -> None:
        self.model, self.unroll = model, unroll

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (loss to differentiate, that of the first draft, nothing), in nats.

        Args:
            batch: i64[B, T + 1]; the last column is not used.
        """
        tokens = batch[:, :-1]
        length = tokens.shape[1]
        with torch.no_grad():
            out = self.model(tokens)
            teacher = out["logits"].float().softmax(-1)
            state = out["hidden"]
        losses: list[Tensor] = []
        for k in range(1, min(self.unroll, length - 1) + 1):
            logits, state = mtp_forward(self.model, state[:, : length - k], tokens[:, k:], k - 1)
            losses.append(-(teacher[:, k:] * logits.float().log_softmax(-1)).sum(-1).mean())
        return torch.stack(losses).mean(), losses[0].detach(), []
