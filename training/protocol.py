"""What the trainer needs of a training module, and nothing else.

The module is emitted from the front IR (:mod:`omnic.targets.torch`); tests use small hand-written
ones.  It is an ``nn.Module`` with parameters under their front names, in f32, and

* ``module(tokens: i64[B, T]) -> dict``: ``logits`` [B, T, V]; ``hidden`` [B, T, D], the residual
  stream before the final norm; ``mtp`` [B, T, depth, V] with linear MTP heads (head j predicts
  token t + 2 + j, the main head t + 1); ``verifier`` [B, T, V] with a verifier head.  Row b, t
  depends on tokens ``[b, :t + 1]`` only.
* with block MTP, ``module.mtp_forward(hidden [B, T, D], next_tokens i64[B, T]) -> (logits [B, T, V],
  hidden [B, T, D])``: position t reads the state of token t and token t + 1, and predicts t + 2.
  A method of the module itself, so it can be called inside a compiled loss.
* with experts, ``router_logits`` in the dict: a list of [B, T, E], one a routed layer in order; and,
  where the selection has a bias, one parameter a routed layer whose name ends in ``select_bias``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["BlockMtp", "has_block_mtp", "mtp_forward"]


@runtime_checkable
class BlockMtp(Protocol):
    """A module that drafts with a block of its own."""

    def mtp_forward(self, hidden: Tensor, next_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, T, V] of the token after ``next_tokens`` and the block's hidden [B, T, D]."""
        ...


def has_block_mtp(model: nn.Module) -> bool:
    """Tell whether the module has block MTP."""
    return isinstance(model, BlockMtp)


def mtp_forward(model: nn.Module, hidden: Tensor, next_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Call the block; see :class:`BlockMtp`."""
    assert isinstance(model, BlockMtp)
    return model.mtp_forward(hidden, next_tokens)
