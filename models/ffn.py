"""Feed-forward blocks: dense MLPs and sparse mixtures of experts."""

from __future__ import annotations

from dataclasses import asdict

from omnic.ir.graph import Value
from omnic.ir.router_training import RouterTraining
from omnic.models.context import Context
from omnic.spec import Dense, Layer, MoE

__all__ = ["dense", "mixture"]

#: activation of the spec -> (kind of the act op, gated)
ACTIVATIONS = {
    "swiglu": ("silu", True),
    "geglu": ("gelu", True),
    "geglu_tanh": ("gelu_tanh", True),
    "gelu": ("gelu", False),
    "gelu_tanh": ("gelu_tanh", False),
    "relu": ("relu", False),
    "relu2": ("relu2", False),
    "silu": ("silu", False),
}


def _gate(ffn: Dense | MoE) -> dict[str, float | None]:
    """Return what a gated activation has beside its kind."""
    return {"alpha": float(ffn.activation_alpha), "beta": float(ffn.activation_beta),
            "limit": None if ffn.activation_limit is None else float(ffn.activation_limit)}


def _mlp(ctx: Context, x: Value, prefix: str, hidden: int, ffn: Dense | MoE) -> Value:
    (kind, gated), bias = ACTIVATIONS[ffn.activation], ffn.bias
    width = x.type.shape[-1]
    assert isinstance(width, int)
    up = ctx.linear(x, f"{prefix}.up", hidden, bias=bias)
    if gated:
        gate = ctx.linear(x, f"{prefix}.gate", hidden, bias=bias)
        inner = ctx.f.op("gated_act", gate, up, kind=kind, hint="inner", **_gate(ffn))
    else:
        inner = ctx.f.op("act", up, kind=kind, hint="inner")
    return ctx.linear(inner, f"{prefix}.down", width, bias=bias, residual=True)


def dense(ctx: Context, x: Value, layer: Layer, prefix: str) -> Value:
    """One MLP: two matrices, or three with a gate (GLU variants, arXiv:2002.05202).  x is [B, T, D]."""
    ffn = layer.ffn
    assert isinstance(ffn, Dense)
    return _mlp(ctx, x, prefix, ffn.hidden, ffn)


def mixture(ctx: Context, x: Value, layer: Layer, prefix: str) -> Value:
    """Top-k routed experts plus shared ones (DeepSeekMoE, arXiv:2401.06066).  x is [B, T, D].

    ``split: m`` makes m experts of hidden/m out of each, m times as many chosen; groups grow with it.
    The shared experts are one MLP of their summed width, which computes the same.
    """
    ffn = layer.ffn
    assert isinstance(ffn, MoE)
    kind, gated = ACTIVATIONS[ffn.activation]
    experts, hidden, width, groups = ffn.routed_experts, ffn.routed_hidden, layer.width, ffn.routed_groups
    indices, gates, _ = ctx.f.emit(
        "router",
        x,
        ctx.weight(f"{prefix}.router", experts, width),
        ctx.weight(f"{prefix}.group_router", len(groups), width) if groups and ffn.group_gate else None,
        ctx.weight(f"{prefix}.select_bias", experts, fill=0.0) if ffn.select_bias else None,
        ctx.weight(f"{prefix}.router_bias", experts, fill=0.0) if ffn.router_bias else None,
        top_k=ffn.routed_top_k,
        groups=groups,
        top_groups=ffn.top_groups,
        group_score=ffn.group_score,
        score=ffn.score,
        renormalise=ffn.renormalise,
        scale=float(ffn.gate_scale),
        train=str(RouterTraining(**asdict(ffn.router)) if ffn.router else RouterTraining()),
        hint="route",
    )
    up = ctx.weight(f"{prefix}.experts.up", experts, hidden, width)
    down = ctx.weight(f"{prefix}.experts.down", experts, width, hidden, std=ctx.residual_std)
    gate = ctx.weight(f"{prefix}.experts.gate", experts, hidden, width) if gated else None
    biases: tuple[Value | None, ...] = (None, None, None)
    if ffn.bias:
        biases = (
            ctx.weight(f"{prefix}.experts.up_bias", experts, hidden, fill=0.0),
            ctx.weight(f"{prefix}.experts.down_bias", experts, width, fill=0.0),
            ctx.weight(f"{prefix}.experts.gate_bias", experts, hidden, fill=0.0) if gated else None,
        )
    y = ctx.f.op("moe", x, indices, gates, up, down, gate, *biases, kind=kind, hint="experts",
                 **(_gate(ffn) if gated else {}))
    if not ffn.shared:
        return y
    with ctx.f.scope("shared"):
        common = _mlp(ctx, x, f"{prefix}.shared", ffn.shared * ffn.shared_hidden, ffn)
        if ffn.shared_gate:
            # Qwen2-MoE (arXiv:2407.10671): how much of the shared experts a token takes.
            share = ctx.f.op("sigmoid", ctx.linear(x, f"{prefix}.shared_gate", 1), hint="share")
            common = ctx.f.op("mul", common, share, hint="shared_out")
    return ctx.f.op("add", y, common, hint="ffn_out")
