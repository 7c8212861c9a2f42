"""Decoders as people write them by hand in torch, with and without a cache of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Arguments = dict[str, tuple[Any, dict[int, str]]]
TOKENS = {0: "batch", 1: "tokens"}


class NanoAttention(nn.Module):
    """Karpathy's nanoGPT: one product for q, k and v, a triangle of ones kept as a buffer."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(context, context)).view(1, 1, context, context))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = NanoAttention(width, heads, context)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """The whole sequence each time: no cache."""

    def __init__(self, vocab: int, width: int = 32, heads: int = 4, layers: int = 2, context: int = 64) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(NanoBlock(width, heads, context) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(0, idx.size(1), device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def rotate_pairs(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring numbers of x [B, H, T, D] by angles [T, D/2]: the interleaved layout."""
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class CachedAttention(nn.Module):
    """Multi-query attention over keys and values that the caller keeps as [B, P, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = nn.Linear(width, self.size, bias=False), nn.Linear(width, self.size, bias=False)
        self.register_buffer("freqs", 1.0 / 10000.0 ** (torch.arange(0, self.size, 2).float() / self.size))

    def forward(self, x: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor) -> Any:
        b, t, c = x.shape
        p = past_k.shape[1]
        where = torch.arange(p, p + t)
        angles = where[:, None].float() * self.freqs
        q = rotate_pairs(self.wq(x).view(b, t, self.heads, self.size).transpose(1, 2), angles)
        k = rotate_pairs(self.wk(x)[:, None], angles)[:, 0]
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, self.wv(x)), dim=1)
        scores = q @ k[:, None].transpose(-1, -2) / math.sqrt(self.size)
        seen = torch.arange(p + t)[None, :] <= where[:, None]
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return self.wo((weights @ v[:, None]).transpose(1, 2).reshape(b, t, c)), k, v


class CachedDecoder(nn.Module):
    """A decoder with its own cache: tokens and the past in, no mask and no positions."""

    def __init__(self, vocab: int, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, width)
        self.attention = nn.ModuleList(CachedAttention(width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2 * layers + 1))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(layers))
        self.output = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor, *past: torch.Tensor) -> Any:
        x, present = self.tok_embeddings(tokens), []
        for i, attend in enumerate(self.attention):
            y, k, v = attend(self.norms[2 * i](x), past[2 * i], past[2 * i + 1])
            present += [k, v]
            x = x + y
            x = x + self.down[i](F.relu(self.up[i](self.norms[2 * i + 1](x))).square())
        return (self.output(self.norms[-1](x)), *present)


class LatentAttention(nn.Module):
    """Multi-head latent attention over a cache of latents and one rotated key (DeepSeek-V2, arXiv:2405.04434).

    `absorbed` multiplies the queries into the latent space instead of expanding the latents.
    """

    def __init__(self, width: int, heads: int, absorbed: bool) -> None:
        super().__init__()
        self.heads, self.nope, self.rope, self.value, self.latent, self.absorbed = heads, 8, 4, 8, 12, absorbed
        self.q_proj = nn.Linear(width, heads * (self.nope + self.rope), bias=False)
        self.kv_a = nn.Linear(width, self.latent + self.rope, bias=False)
        self.kv_norm = RMSNorm(self.latent)
        self.w_k = nn.Parameter(torch.randn(heads, self.nope, self.latent))
        self.w_v = nn.Parameter(torch.randn(heads, self.value, self.latent))
        self.o_proj = nn.Linear(heads * self.value, width, bias=False)
        self.register_buffer("freqs", 1.0 / 10000.0 ** (torch.arange(0, self.rope, 2).float() / self.rope))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, past: torch.Tensor, past_rope: torch.Tensor) -> Any:
        b, t, _ = x.shape
        angles = positions[:, None, :, None].float() * self.freqs
        turn = torch.cat((angles, angles), dim=-1)

        def rotate(y: torch.Tensor) -> torch.Tensor:
            first, second = y.chunk(2, dim=-1)
            return y * turn.cos() + torch.cat((-second, first), dim=-1) * turn.sin()

        q = self.q_proj(x).view(b, t, self.heads, self.nope + self.rope).transpose(1, 2)
        q_nope, q_rope = q.split((self.nope, self.rope), dim=-1)
        latent, k_rope = self.kv_a(x).split((self.latent, self.rope), dim=-1)
        latent = torch.cat((past, self.kv_norm(latent)), dim=1)
        k_rope = torch.cat((past_rope, rotate(k_rope[:, None])[:, 0]), dim=1)
        rotated = rotate(q_rope) @ k_rope[:, None].transpose(-1, -2)
        if self.absorbed:
            plain = (q_nope @ self.w_k) @ latent[:, None].transpose(-1, -2)
        else:
            plain = q_nope @ (latent[:, None] @ self.w_k.transpose(-1, -2)).transpose(-1, -2)
        scores = (plain + rotated) / math.sqrt(self.nope + self.rope)
        p = past.shape[1]
        seen = torch.arange(p + t)[None, :] <= torch.arange(p, p + t)[:, None]
        weights = torch.where(seen, scores, torch.tensor(-1e9)).softmax(-1)
        if self.absorbed:
            mixed = (weights @ latent[:, None]) @ self.w_v.transpose(-1, -2)
        else:
            mixed = weights @ (latent[:, None] @ self.w_v.transpose(-1, -2))
        return self.o_proj(mixed.transpose(1, 2).reshape(b, t, -1)), latent, k_rope


class LatentDecoder(nn.Module):
    def __init__(self, vocab: int, absorbed: bool, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.attention = nn.ModuleList(LatentAttention(width, heads, absorbed) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2 * layers + 1))
        self.gate = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(layers))
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        x, present = self.embed(tokens), []
        for i, attend in enumerate(self.attention):
            y, latent, k_rope = attend(self.norms[2 * i](x), positions, past[2 * i], past[2 * i + 1])
            present += [latent, k_rope]
            x = x + y
            z = self.norms[2 * i + 1](x)
            x = x + self.down[i](F.silu(self.gate[i](z)) * self.up[i](z))
        return (self.head(self.norms[-1](x)), *present)


# -- how to call them ---------------------------------------------------------------------------------------
def _nanogpt(vocab: int) -> tuple[nn.Module, Arguments, tuple[str, ...]]:
    return NanoGPT(vocab), {"idx": (torch.randint(0, vocab, (2, 5)), TOKENS)}, ("logits",)


def _cached(vocab: int) -> tuple[nn.Module, Arguments, tuple[str, ...]]:
    arguments: Arguments = {"tokens": (torch.randint(0, vocab, (2, 5)), TOKENS)}
    for i in range(2):
        for what in ("k", "v"):
            arguments[f"past.{i}.{what}"] = (torch.randn(2, 3, 8), {0: "batch", 1: "past"})
    return CachedDecoder(vocab), arguments, ("logits", *(f"present.{i}.{w}" for i in range(2) for w in ("k", "v")))


def _latent(absorbed: bool) -> Callable[[int], tuple[nn.Module, Arguments, tuple[str, ...]]]:
    def make(vocab: int) -> tuple[nn.Module, Arguments, tuple[str, ...]]:
        arguments: Arguments = {
            "tokens": (torch.randint(0, vocab, (2, 5)), TOKENS),
            "positions": (torch.arange(3, 8)[None].expand(2, 5).contiguous(), TOKENS),
        }
        for i in range(2):
            arguments[f"past.{i}.latent"] = (torch.randn(2, 3, 12), {0: "batch", 1: "past"})
            arguments[f"past.{i}.rope_k"] = (torch.randn(2, 3, 4), {0: "batch", 1: "past"})
        outputs = ("logits", *(f"present.{i}.{w}" for i in range(2) for w in ("latent", "rope_k")))
        return LatentDecoder(vocab, absorbed), arguments, outputs

    return make


MODULES: dict[str, Callable[[int], tuple[nn.Module, Arguments, tuple[str, ...]]]] = {
    "nanogpt": _nanogpt,
    "cached": _cached,
    "mla_naive": _latent(False),
    "mla_absorbed": _latent(True),
}
NAMES = tuple(MODULES)
