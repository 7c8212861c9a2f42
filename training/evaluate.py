"""How good a model is: bits per byte of held-out text, and tokens a pass of its MTP block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnic.errors import InputError
from omnic.runtime.score import windows
from omnic.runtime.tokenizer import Tokenizer
from omnic.training.heldout import Heldout
from omnic.training.protocol import has_block_mtp, mtp_depth, mtp_forward

__all__ = ["BitsPerByte", "TokensPerPass", "bits_per_byte", "tokens_per_pass"]


@dataclass(frozen=True)
class BitsPerByte:
    """A compression figure.

    Attributes:
        value: sum of -log2 p over the scored tokens / UTF-8 bytes they stand for.
        tokens: scored tokens.
        bytes: UTF-8 bytes of the text.
        windows: windows evaluated, each of at most 256 tokens.
    """

    value: float
    tokens: int
    bytes: int
    windows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class TokensPerPass:
    """What speculative decoding with the MTP block would gain, in tokens and not in seconds.

    Attributes:
        value: 1 + the mean number of accepted drafts of the first verification.
        error: its standard error over the prefixes.
        accepted: share of prefixes of which at least 1, 2, ... drafts were accepted.
        agreement: share of positions of the prefixes where the first draft equals the main argmax.
        prefixes: number of prefixes.
        drafts: drafts a pass.
    """

    value: float
    error: float
    accepted: tuple[float, ...]
    agreement: float
    prefixes: int
    drafts: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "accepted": list(self.accepted)}


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: str,
    *,
    length: int = 256,
    stride: int = 128,
    sample: int | None = None,
    batch: int = 16,
) -> BitsPerByte:
    """Return the bits per byte of ``text``: windows of 256 tokens, stride 128, each token scored once.

    One token that starts a text goes first and is not scored.

    Args:
        model: the training module (:mod:`omnic.training.protocol`).
        tokenizer: the model's.
        text: UTF-8 text, not empty.
        length: tokens of a window.
        stride: tokens from one window to the next.
        sample: evaluate about so many windows, evenly spaced, for a figure along the way; None
            evaluates all.
        batch: windows of a forward pass.

    Raises:
        InputError: the text is empty.
    """
    ids = torch.tensor(tokenizer.encode(text, bos=True))
    if len(ids) < 2:
        raise InputError("bits per byte of an empty text do not exist")
    cut = windows(len(ids) - 1, length, stride)
    if sample is not None and sample < len(cut):
        cut = [cut[i * len(cut) // sample] for i in range(sample)]
    nats, tokens, spanned = 0.0, 0, 0
    lengths = torch.tensor(tokenizer.byte_lengths)
    was_training = model.training
    model.eval()
    for at in range(0, len(cut), batch):
        part = cut[at : at + batch]
        longest = max(end - start for start, end, _ in part)
        inputs = torch.zeros(len(part), longest, dtype=torch.long)
        targets = torch.full((len(part), longest), -100)
        for row, (start, end, first) in enumerate(part):
            # Behind a short window stand zeros: causal attention keeps them from the scored tokens.
            inputs[row, : end - start] = ids[start:end]
            targets[row, first - start : end - start] = ids[first + 1 : end + 1]
        logits = model(inputs)["logits"].float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
        nats += losses.double().sum().item()
        scored = targets[targets >= 0]
        tokens += len(scored)
        spanned += int(lengths[scored].sum())
    model.train(was_training)
    size = len(text.encode()) if sample is None else spanned
    return BitsPerByte(nats / math.log(2) / size, tokens, size, len(cut))


@torch.no_grad()
def tokens_per_pass(
    model: nn.Module,
    tokenizer: Tokenizer,
    held: Heldout,
    *,
    prefixes: int = 320,
    length: int = 192,
    drafts: int = 3,
    batch: int = 32,
) -> TokensPerPass:
    """Return the tokens a pass of block MTP with greedy verification, over fresh real-text prefixes.

    After each prefix the main model's own greedy continuation is compared with ``drafts`` drafts
    made by re-applying the block to its own hidden state and draft; only this first pass counts,
    because greedy text soon loops and loops are easy to draft.

    Args:
        model: a training module with block MTP.
        tokenizer: the model's.
        held: the held-out text; prefixes are spread evenly over it.
        prefixes: how many.
        length: tokens of a prefix.
        drafts: drafts a pass.
        batch: prefixes of a forward pass.

    Raises:
        InputError: the model has no block MTP.
    """
    if not has_block_mtp(model):
        raise InputError("tokens a pass need block MTP, which this model does not have")
    ids = torch.tensor(tokenizer.encode(held.text, bos=True))
    last = len(ids) - length
    starts = [i * last // prefixes for i in range(prefixes)]
    was_training = model.training
    model.eval()
    accepted: list[int] = []
    agree = compared = 0
    for at in range(0, prefixes, batch):
        prompt = torch.stack([ids[s : s + length] for s in starts[at : at + batch]])
        out = model(prompt)
        hidden, choice = out["hidden"], out["logits"].argmax(-1)
        first = choice[:, -1:]
        tokens = torch.cat([prompt[:, 1:], first], 1)
        proposed = _draft(model, hidden, tokens, drafts)
        drafted, _ = mtp_forward(model, hidden[:, :-1], tokens[:, :-1])
        agree += int((drafted.argmax(-1) == choice[:, 1:]).sum())
        compared += choice[:, 1:].numel()
        # Verification: the main model reads its first token and the drafts in one pass.
        verified = model(torch.cat([prompt, first, proposed[:, :-1]], 1))["logits"][:, length:].argmax(-1)
        right = (verified == proposed).long().cumprod(1).sum(1)
        accepted += right.tolist()
    model.train(was_training)
    return _summary(accepted, agree / compared, drafts)


def _draft(model: nn.Module, hidden: Tensor, tokens: Tensor, drafts: int) -> Tensor:
    """Return ``drafts`` drafts after the last token, i64[B, drafts].

    ``hidden[:, i]`` is the trunk's state of the token before ``tokens[:, i]``.  Block k reads block
    k - 1's states one token on; the last block is re-applied by appending its own state and draft,
    so that its attention sees real states before them.
    """
    depth = mtp_depth(model)
    proposed: list[Tensor] = []
    state = hidden
    for k in range(drafts):
        if 0 < k < depth:
            hidden, tokens = state, torch.cat([tokens[:, 1:], proposed[-1]], 1)
        elif k:
            hidden = torch.cat([hidden, state[:, -1:].to(hidden.dtype)], 1)
            tokens = torch.cat([tokens, proposed[-1]], 1)
        logits, state = mtp_forward(model, hidden, tokens, k)
        proposed.append(logits[:, -1].argmax(-1, keepdim=True))
    return torch.cat(proposed, 1)


def _summary(accepted: Sequence[int], agreement: float, drafts: int) -> TokensPerPass:
    values = torch.tensor(accepted, dtype=torch.float64)
    return TokensPerPass(
        value=1 + values.mean().item(),
        error=(values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan,
        accepted=tuple((values >= k).double().mean().item() for k in range(1, drafts + 1)),
        agreement=agreement,
        prefixes=len(values),
        drafts=drafts,
    )
