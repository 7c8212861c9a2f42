"""Attention blocks: MHA, GQA and MQA over keys and values, MLA over one latent."""

from __future__ import annotations

import math
from dataclasses import replace

from omnic.errors import InputError
from omnic.ir.graph import Value
from omnic.models.context import Context
from omnic.spec import Attention, Layer, Norm, Rope

__all__ = ["grouped_attention", "latent_attention"]


def _heads(ctx: Context, x: Value, count: int, size: int, hint: str) -> Value:
    """[B, T, count*size] -> [B, count, T, size]."""
    batch, tokens = x.type.shape[:2]
    return ctx.f.op("transpose", ctx.f.reshape(x, batch, tokens, count, size), perm=(0, 2, 1, 3), hint=hint)


def _merge(ctx: Context, x: Value) -> Value:
    """[B, H, T, D] -> [B, T, H*D]."""
    batch, heads, tokens, size = x.type.shape
    return ctx.f.reshape(ctx.f.op("transpose", x, perm=(0, 2, 1, 3)), batch, tokens, heads * size, hint="merged")


def _rope(ctx: Context, x: Value, rope: Rope | None, dims: int, hint: str) -> Value:
    if rope is None:
        return x
    scaling = rope.scaling
    extra: dict[str, object] = {}
    if scaling is not None:
        extra = {
            "scaling": scaling.kind,
            "factor": float(scaling.factor),
            "original_context": scaling.original_context,
            "beta_fast": float(scaling.beta_fast),
            "beta_slow": float(scaling.beta_slow),
            "attention_factor": scaling.attention_factor,
            "factors": tuple(float(f) for f in scaling.factors),
            "truncate": scaling.truncate,
        }
    return ctx.f.op(
        "rope", x, ctx.positions, base=float(rope.base), dims=dims, interleaved=rope.interleaved, hint=hint, **extra
    )


def _normed_heads(ctx: Context, x: Value, layer: Layer, prefix: str, which: str) -> Value:
    """[B, T, H*D] -> [B, H, T, D], normed per head, or all heads of a token together, where the layer says so."""
    attention = layer.attention
    heads = attention.heads if which == "q" else attention.kv_heads
    norm = replace(layer.norm, kind="rms")
    if attention.qk_norm == "full":
        x = ctx.norm(x, f"{prefix}.{which}_norm", norm, hint=f"{which}_normed")
    x = _heads(ctx, x, heads, attention.head_dim, which)
    if attention.qk_norm is True:
        x = ctx.norm(x, f"{prefix}.{which}_norm", norm, hint=f"{which}_normed")
    return x


def grouped_attention(ctx: Context, x: Value, layer: Layer, group: int, prefix: str) -> Value:
    """Multi-head attention with ``kv_heads`` keys and values: MHA, GQA (arXiv:2305.13245), MQA (arXiv:1911.02150).

    x is [B, T, D]; the result is [B, T, D] before the residual.
    """
    attention, biased = layer.attention, bool(layer.attention.bias)
    size = attention.head_dim
    q = _normed_heads(ctx, ctx.linear(x, f"{prefix}.q", attention.heads * size, bias=biased), layer, prefix, "q")
    k = _normed_heads(ctx, ctx.linear(x, f"{prefix}.k", attention.kv_heads * size, bias=biased), layer, prefix, "k")
    v = _heads(ctx, ctx.linear(x, f"{prefix}.v", attention.kv_heads * size, bias=biased), attention.kv_heads, size, "v")
    dims = attention.rope.dims if attention.rope else 0
    q, k = _rope(ctx, q, attention.rope, dims, "q_rot"), _rope(ctx, k, attention.rope, dims, "k_rot")
    keys, index = ctx.cached("k", group, k, attention.window)
    values, _ = ctx.cached("v", group, v, attention.window)
    sinks = ctx.weight(f"{prefix}.sinks", attention.heads, fill=0.0) if attention.sinks else None
    mixed = ctx.f.op(
        "attention",
        q,
        keys,
        values,
        ctx.q_index,
        index,
        sinks,
        ctx.parents,
        ctx.tree_start,
        scale=_scale(attention, size),
        window=attention.window or 0,
        softcap=float(attention.softcap or 0.0),
        hint="mixed",
    )
    return ctx.linear(
        _merge(ctx, mixed), f"{prefix}.o", layer.width, bias=attention.bias is True, residual=True, hint="attn_out"
    )


def _latent_norm(layer: Layer) -> Norm:
    eps = layer.attention.norm_eps
    return replace(layer.norm, kind="rms", eps=layer.norm.eps if eps is None else eps)


def latent_attention(ctx: Context, x: Value, layer: Layer, group: int, prefix: str) -> Value:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one latent and one rope key a token.

    The latent is cached after its RMS norm, the rope key after its rotation.  x is [B, T, D].

    Raises:
        InputError: qk_norm or sinks were asked for, which MLA does not have.
    """
    attention = layer.attention
    for name, on in (("qk_norm", attention.qk_norm), ("sinks", attention.sinks)):
        if on:
            raise InputError(
                f"{name} is not defined for mla attention ({layer.place[0]}:{layer.place[1]}:{layer.place[2]})",
                "the latent has its own norm: remove the key or use gqa",
            )
    latent, nope, rotated, value_dim = attention.latent, attention.nope_dim, attention.rope_dim, attention.v_dim
    assert latent is not None and nope is not None and rotated is not None and value_dim is not None
    width, norm, biased = attention.heads * (nope + rotated), _latent_norm(layer), bool(attention.bias)
    if attention.q_latent:
        low = ctx.linear(x, f"{prefix}.q_a", attention.q_latent, bias=biased)
        low = ctx.norm(low, f"{prefix}.q_a_norm", norm, hint="q_latent")
        q = ctx.linear(low, f"{prefix}.q_b", width, hint="q")
    else:
        q = ctx.linear(x, f"{prefix}.q", width)
    q_nope, q_rope = ctx.f.emit(
        "split", _heads(ctx, q, attention.heads, nope + rotated, "q"), axis=-1, sizes=(nope, rotated)
    )
    compressed = ctx.linear(x, f"{prefix}.kv_a", latent + rotated, bias=biased)
    c, k_rope = ctx.f.emit("split", compressed, axis=-1, sizes=(latent, rotated), hint="kv")
    c = ctx.norm(c, f"{prefix}.kv_norm", norm, hint="latent")
    q_rope, k_rope = (
        _rope(ctx, q_rope, attention.rope, rotated, "q_rot"),
        _rope(ctx, k_rope, attention.rope, rotated, "k_rot"),
    )
    latents, index = ctx.cached("latent", group, c, attention.window)
    rope_keys, _ = ctx.cached("rope_k", group, k_rope, attention.window)
    mixed = ctx.f.op(
        "mla",
        q_nope,
        q_rope,
        latents,
        rope_keys,
        ctx.weight(f"{prefix}.w_k", attention.heads, nope, latent),
        ctx.weight(f"{prefix}.w_v", attention.heads, value_dim, latent),
        ctx.q_index,
        index,
        ctx.parents,
        ctx.tree_start,
        scale=_scale(attention, nope + rotated),
        window=attention.window or 0,
        softcap=float(attention.softcap or 0.0),
        hint="mixed",
    )
    return ctx.linear(
        _merge(ctx, mixed), f"{prefix}.o", layer.width, bias=attention.bias is True, residual=True, hint="attn_out"
    )


def _scale(attention: Attention, size: int) -> float:
    return float(attention.scale) if attention.scale is not None else 1.0 / math.sqrt(size)
