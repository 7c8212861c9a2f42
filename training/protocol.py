"""What the trainer needs of a training module, and nothing else.

The module is emitted from the front IR (:mod:`omnic.targets.torch`); tests use small hand-written
ones.  It is an ``nn.Module`` with parameters under their front names, in f32, and

* ``module(tokens: i64[B, T]) -> dict``: ``logits`` [B, T, V]; ``hidden`` [B, T, D], the residual
  stream before the final norm; ``mtp`` [B, T, depth, V] with linear MTP heads (head j predicts
  token t + 2 + j, the main head t + 1); ``verifier`` [B, T, V] with a verifier head.  Row b, t
  depends on tokens ``[b, :t + 1]`` only.
* with block MTP, ``module.mtp_forward(hidden [B, T, D], next_tokens i64[B, T]) -> (logits [B, T, V],
  hidden [B, T, D])``: position t reads the state of token t and token t + 1, and predicts t + 2.
  With depth > 1 there are ``mtp_0_forward``, ``mtp_1_forward``, ...: block k reads block k - 1's
  state and the token after.  Methods of the module itself, so that a compiled loss may call them.
* with experts, ``router_logits`` in the dict: a list of [B, T, E], one a routed layer in order; where
  the losses ask for the choices, ``router_indices`` and ``router_gates``, lists of [B, T, k]; and, where
  the selection has a bias, the parameter :class:`omnic.training.losses.Experts` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["has_block_mtp", "mtp_depth", "mtp_forward"]

MtpForward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _blocks(model: nn.Module) -> list[MtpForward]:
    only: Any = getattr(model, "mtp_forward", None)
    if only is not None:
        return [only]
    blocks: list[MtpForward] = []
    while (block := getattr(model, f"mtp_{len(blocks)}_forward", None)) is not None:
        blocks.append(block)
    return blocks


def mtp_depth(model: nn.Module) -> int:
    """Return the number of MTP blocks, 0 without block MTP."""
    return len(_blocks(model))


def has_block_mtp(model: nn.Module) -> bool:
    """Tell whether the module has block MTP."""
    return mtp_depth(model) > 0


def mtp_forward(model: nn.Module, hidden: Tensor, next_tokens: Tensor, draft: int = 0) -> tuple[Tensor, Tensor]:
    """Call the block that makes a draft; the last block makes every further one.

    Args:
        model: a module with block MTP.
        hidden: [B, T, D], the trunk's state for the first draft, the block before's for the next.
        next_tokens: i64[B, T], the token that follows the state's.
        draft: 0 for the first.

    Returns:
        Logits [B, T, V] of the token after ``next_tokens``, and the block's state [B, T, D].
    """
    blocks = _blocks(model)
    return blocks[min(draft, len(blocks) - 1)](hidden, next_tokens)
