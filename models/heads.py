"""What reads the residual stream: the language-model head, multi-token prediction, the verifier."""

from __future__ import annotations

from omnic.ir.graph import Value
from omnic.models.context import Context
from omnic.spec import Norm

__all__ = ["embedded", "learned_positions", "linear_mtp", "main_head", "mtp_input", "verifier_head"]


def main_head(ctx: Context, normed: Value, rows: Value) -> Value:
    """Logits f32[B, R, V] of the wanted rows from the final-normed hidden states [B, T, D].

    The factor of the logits is applied to what they are made of: the product is linear, and narrower there.
    """
    spec = ctx.spec
    weight = embedding_weight(ctx) if spec.tie else ctx.weight("head", spec.vocab.size, spec.width)
    normed = ctx.times(normed, spec.multipliers.logits)
    return ctx.f.op("lm_head", normed, weight, rows, softcap=float(spec.softcap.logits or 0.0), hint="logits")


def embedded(ctx: Context, tokens: Value, hint: str) -> Value:
    """The embedding [B, T, D] of tokens i64[B, T], times its factor."""
    x = ctx.f.op("embedding", embedding_weight(ctx), tokens, hint=hint)
    return ctx.times(x, ctx.spec.multipliers.embedding, hint)


def learned_positions(ctx: Context, size: int) -> Value:
    """Rows [B, T, D] of the learned table of positions (GPT-2)."""
    return ctx.f.op("embedding", ctx.weight("positions", size, ctx.spec.width), ctx.positions, hint="placed")


def embedding_weight(ctx: Context) -> Value:
    """The embedding table [V, D]; a tied head reads the same weight."""
    return ctx.weight("embed", ctx.spec.vocab.size, ctx.spec.width)


def linear_mtp(ctx: Context, normed: Value, rows: Value, depth: int) -> Value:
    """Independent heads (Medusa-like, arXiv:2401.10774): head j predicts t+1+j.  Returns f32[B, R, depth, V]."""
    spec = ctx.spec
    parts: list[Value] = []
    for j in range(depth):
        head = ctx.weight(f"mtp.heads.{j}", spec.vocab.size, spec.width)
        logits = ctx.f.op("lm_head", normed, head, rows, hint="mtp_logits")
        batch, wanted = logits.type.shape[:2]
        parts.append(ctx.f.reshape(logits, batch, wanted, 1, spec.vocab.size))
    return parts[0] if depth == 1 else ctx.f.op("concat", *parts, axis=2, hint="mtp")


def verifier_head(ctx: Context, normed: Value, rows: Value) -> Value:
    """A second head that estimates acceptance of drafts; f32[B, R, V]."""
    return ctx.f.op(
        "lm_head", normed, ctx.weight("verifier", ctx.spec.vocab.size, ctx.spec.width), rows, hint="verifier"
    )


def mtp_input(ctx: Context, hidden: Value, next_tokens: Value, prefix: str, norm: Norm) -> Value:
    """Project [norm(hidden); norm(embedding of the next token)] to the width (DeepSeek-V3, arXiv:2412.19437).

    hidden is f32[B, T, D], before the final norm or (``heads.mtp.normed``) after it; next_tokens is i64[B, T].  The
    result is [B, T, D].
    """
    following = embedded(ctx, next_tokens, hint="next")
    left = ctx.norm(hidden, f"{prefix}.hidden_norm", norm)
    right = ctx.norm(following, f"{prefix}.embed_norm", norm)
    return ctx.linear(ctx.f.op("concat", left, right, axis=-1), f"{prefix}.proj", ctx.spec.width, hint="x")
