"""tiny: the training module, written by omnic from its IR.

model(tokens: int64 [B, T]) returns a dict:
    logits         [B, T, V], of the next token
    hidden         [B, T, D], the residual stream before the final norm (after it with heads.mtp.normed)

model.mtp_forward(hidden, next_tokens) returns (logits, hidden) of the multi-token-prediction block.

The keys of model.state_dict() are the names of the weights everywhere else in omnic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """Return x in f32 if it is in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dim (arXiv:1910.07467)."""
    return F.rms_norm(full_precision(x), x.shape[-1:], weight, eps)


def rope_table(positions: Tensor, dims: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., dims/2] of positions [...] (RoPE, arXiv:2104.09864); angles in f64."""
    frequencies = base ** (-torch.arange(0, dims, 2, dtype=torch.float64, device=positions.device) / dims)
    angles = positions[..., None].double() * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + dims/2]) of the leading dims of each head; x is [B, H, T, R] or [B, T, R]."""
    if cos.dim() == 3 and x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1).to(x.dtype)


def causal_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    """Whether query t sees key s, bool [T, T]: s <= t, and s > t - window where there is a window."""
    at = torch.arange(tokens, device=device)
    seen = at[None, :] <= at[:, None]
    return seen & (at[None, :] > at[:, None] - window) if window else seen


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention [B, H, T, Dv]; H query heads share G KV heads in order (arXiv:2305.13245).

    The values are padded to the width of the keys where it differs: torch's fused kernels want one width.
    """
    tokens, width, value = q.shape[-2], q.shape[-1], v.shape[-1]
    q, k, v = q.to(v.dtype), k.to(v.dtype), F.pad(v, (0, width - value)) if value < width else v
    mask = causal_mask(tokens, window, q.device) if window and tokens > window else None
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :value]


class Attention(nn.Module):
    """blocks.0.attn, blocks.1.attn ... mtp.block.attn (specs/tiny.yaml:12)."""

    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.empty(256, 256))
        self.k = nn.Parameter(torch.empty(128, 256))
        self.v = nn.Parameter(torch.empty(128, 256))
        self.o = nn.Parameter(torch.empty(256, 256))

    def forward(self, normed, cos, sin):
        B, T, _ = normed.shape
        q = F.linear(normed, self.q).reshape(B, T, 4, 64).transpose(1, 2)
        k = F.linear(normed, self.k).reshape(B, T, 2, 64).transpose(1, 2)
        v = F.linear(normed, self.v).reshape(B, T, 2, 64).transpose(1, 2)
        q_rot = rotate(q, cos, sin)
        k_rot = rotate(k, cos, sin)
        return F.linear(attend(q_rot, k_rot, v, scale=0.125).transpose(1, 2).reshape(B, T, 256), self.o)


class MLP(nn.Module):
    """blocks.0.ffn, blocks.1.ffn ... mtp.block.ffn (specs/tiny.yaml:12)."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.empty(512, 256))
        self.gate = nn.Parameter(torch.empty(512, 256))
        self.down = nn.Parameter(torch.empty(256, 512))

    def forward(self, normed):
        up = F.linear(normed, self.up)
        gate = F.linear(normed, self.gate)
        return F.linear(F.silu(gate) * up, self.down)


class Block(nn.Module):
    """blocks.0, blocks.1 ... mtp.block (specs/tiny.yaml:12)."""

    def __init__(self):
        super().__init__()
        self.attn_norm = nn.Parameter(torch.empty(256))
        self.ffn_norm = nn.Parameter(torch.empty(256))
        self.attn = Attention()
        self.ffn = MLP()

    def forward(self, x, cos, sin):
        x = x + self.attn(rms_norm(x, self.attn_norm, 1e-06), cos, sin)
        return x + self.ffn(rms_norm(x, self.ffn_norm, 1e-06))


class MTP(nn.Module):
    """mtp (specs/tiny.yaml:16)."""

    def __init__(self):
        super().__init__()
        self.hidden_norm = nn.Parameter(torch.empty(256))
        self.embed_norm = nn.Parameter(torch.empty(256))
        self.proj = nn.Parameter(torch.empty(256, 512))
        self.final_norm = nn.Parameter(torch.empty(256))
        self.block = Block()

    def forward(self, next_tokens, hidden, cos, sin, embed):
        next2 = F.embedding(next_tokens, embed)
        normed = rms_norm(hidden, self.hidden_norm, 1e-06)
        normed2 = rms_norm(next2, self.embed_norm, 1e-06)
        x = self.block(F.linear(torch.cat([normed, normed2], dim=-1), self.proj), cos, sin)
        logits = full_precision(F.linear(rms_norm(x, self.final_norm, 1e-06), embed))
        return x, logits


class Model(nn.Module):
    """The whole model; see the head of this file for what goes in and comes out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.empty(4096, 256))
        self.final_norm = nn.Parameter(torch.empty(256))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.mtp = MTP()
        cos, sin = rope_table(torch.arange(1024), 64, 10000.0)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens):
        _, T = tokens.shape
        x = F.embedding(tokens, self.embed)
        cos, sin = self.cos[:T], self.sin[:T]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = full_precision(F.linear(rms_norm(x, self.final_norm, 1e-06), self.embed))
        return {"logits": logits, "hidden": x}

    def mtp_forward(self, hidden, next_tokens):
        _, T, _ = hidden.shape
        cos, sin = self.cos[:T], self.sin[:T]
        x, logits = self.mtp(next_tokens, hidden, cos, sin, self.embed)
        return logits, x
