"""Small modules that follow the trainer's protocol and whose answers are known."""

import torch
from torch import nn
from torch.nn import functional as F


class Uniform(nn.Module):
    """Every token is as likely as every other."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, tokens):
        return {"logits": torch.zeros(*tokens.shape, self.size), "hidden": tokens[..., None].float()}


class Counting(nn.Module):
    """Says that the next token is this one plus one; its MTP block is right about `right` drafts in a row."""

    def __init__(self, size, right):
        super().__init__()
        self.size, self.right = size, right

    def forward(self, tokens):
        return {"logits": one_hot((tokens + 1) % self.size, self.size), "hidden": torch.zeros(*tokens.shape, 1)}

    def mtp_forward(self, hidden, next_tokens):
        # The hidden state counts how often the block was applied since the trunk.
        depth = hidden[..., 0]
        drafts = (next_tokens + 1 + (depth >= self.right).long()) % self.size
        return one_hot(drafts, self.size), hidden + 1


class Tiny(nn.Module):
    """A trainable model with block MTP under front names: embedding, one mixing layer, tied head."""

    def __init__(self, size=40, width=16, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.1)

        self.embed = parameter(size, width)
        self.mix = parameter(width, width)
        self.mtp = nn.ParameterDict({"proj": parameter(width, 2 * width)})

    def forward(self, tokens):
        x = F.embedding(tokens, self.embed)
        x = x + F.linear(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None], self.mix)
        return {"logits": F.linear(x, self.embed), "hidden": x}

    def mtp_forward(self, hidden, next_tokens):
        x = F.linear(torch.cat([hidden, F.embedding(next_tokens, self.embed)], -1), self.mtp["proj"])
        return F.linear(x, self.embed), x


def one_hot(ids, size):
    """Return logits that are sure of ``ids``."""
    return F.one_hot(ids, size).float() * 50.0
