"""The models of a block: its attention and ffn kinds, as a spec writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from omnic.spec.kinds import KindOf, register_kind
from omnic.spec.values import Count, Dim, Flag, Number, Positive, Record, Share, Strength, Tokens

__all__ = [
    "Activation",
    "AttentionOverride",
    "BlockModel",
    "DenseModel",
    "GqaModel",
    "HeadsAttentionModel",
    "MhaModel",
    "MlaModel",
    "MoeModel",
    "MqaModel",
    "RopeModel",
    "RopeScalingModel",
    "RouterModel",
]

Activation = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2", "silu"]
LayerKind = Literal["local", "global"]
QkNorm = Flag | Literal["full"]
AttentionBias = Flag | Literal["qkv"]


def _beta_fast(data: dict[str, Any]) -> float:
    return 4.0 if data.get("kind") == "llama3" else 32.0


class RopeScalingModel(Record):
    """How rotary positions reach beyond the trained length."""

    kind: Literal["linear", "ntk", "yarn", "llama3", "longrope"] = Field(
        description="linear: positions / factor (arXiv 2306.15595); ntk: the base grows so that the lowest frequency "
        "slows by the factor; yarn: ntk by parts with an attention factor (arXiv 2309.00071); llama3: ntk by parts "
        "as Llama 3.1 has it, without one; longrope: a factor per frequency (arXiv 2402.13753)"
    )
    factor: Annotated[Number, Field(ge=1)] = Field(description="reach / original_context")
    original_context: Tokens | None = Field(
        default=None, description="length trained without scaling; unset: the spec's context"
    )
    beta_fast: Positive = Field(
        default_factory=_beta_fast,
        description="yarn, llama3: rotations above which a dim is not scaled; unset: 32, llama3 4",
    )
    beta_slow: Positive = Field(
        default=1.0, description="yarn, llama3: rotations below which a dim is scaled by the whole factor"
    )
    attention_factor: Positive | None = Field(
        default=None,
        description="yarn, longrope: multiplies the rotated queries and keys; unset: yarn 0.1 ln(factor) + 1, longrope "
        "sqrt(1 + ln(factor) / ln(original_context))",
    )
    factors: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="longrope: what divides each frequency, half as many as rotated dims"
    )
    truncate: Flag = Field(
        default=True, description="yarn: the ramp between the two begins and ends at whole frequencies"
    )


class RopeModel(Record):
    """Rotary position embedding (arXiv 2104.09864)."""

    base: Positive = Field(default=10000.0, description="base of the geometric series of frequencies")
    dims: Dim | None = Field(default=None, description="rotated dims of a head, even; unset: all (mla: rope_dim)")
    interleaved: Flag = Field(default=False, description="rotate pairs (2i, 2i+1) instead of (i, i + dims/2)")
    scaling: RopeScalingModel | None = Field(default=None, description="none: positions as trained")


class AttentionOverride(Record):
    """Keys that the layers of one name of a pattern take instead of the attention's own."""

    heads: Dim | None = Field(default=None, description="query heads")
    kv_heads: Dim | None = Field(default=None, description="key and value heads")
    head_dim: Dim | None = Field(default=None, description="dims of a head")
    latent: Dim | None = Field(default=None, description="mla: dims of the cached latent")
    nope_dim: Dim | None = Field(default=None, description="mla: dims of a head without position")
    rope_dim: Dim | None = Field(default=None, description="mla: rotated dims, shared by all heads")
    v_dim: Dim | None = Field(default=None, description="mla: dims of a value head")
    q_latent: Dim | None = Field(default=None, description="mla: dims of the query latent")
    rope: RopeModel | None = Field(default=None, description="rotary positions; none: no positions")
    window: Tokens | None = Field(default=None, description="attended tokens; none: all")
    qk_norm: QkNorm | None = Field(default=None, description="RMS norm of each query and key head, or of all together")
    sinks: Flag | None = Field(default=None, description="a learned sink logit per head")
    softcap: Positive | None = Field(default=None, description="logits become cap * tanh(logits / cap)")
    bias: AttentionBias | None = Field(default=None, description="biases of the projections")
    scale: Positive | None = Field(default=None, description="factor of the logits")


class AttentionModel(Record):
    """Keys every attention kind has."""

    heads: Dim = Field(description="query heads")
    rope: RopeModel | None = Field(default=RopeModel(), description="rotary positions; none: no positions (NoPE)")
    window: Tokens | None = Field(
        default=None, description="each token attends to this many, itself included (ring cache); none: to all"
    )
    softcap: Positive | None = Field(
        default=None, description="logits become cap * tanh(logits / cap); unset: the spec's softcap.attention"
    )
    bias: AttentionBias | None = Field(
        default=None,
        description="biases of the projections (mla: of the input's and the output's); qkv: of all but the output's; "
        "unset: the spec's bias",
    )
    scale: Positive | None = Field(
        default=None, description="factor of the logits; unset: 1 / sqrt(dims of a query head)"
    )
    pattern: Annotated[tuple[LayerKind, ...], Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="over the repeats of the block, from its first on and cyclically: a local layer keeps the window, "
        "a global one attends to all",
    )
    local: AttentionOverride | None = Field(default=None, description="with pattern: keys of the local layers alone")
    global_: AttentionOverride | None = Field(
        default=None, alias="global", description="with pattern: keys of the global layers alone"
    )


class HeadsAttentionModel(AttentionModel):
    """Keys of the kinds that cache keys and values of heads."""

    head_dim: Dim | None = Field(
        default=None, description="dims of a head; unset: the spec's head_dim, else width / heads"
    )
    qk_norm: QkNorm | None = Field(
        default=None,
        description="RMS norm of each query and key head before rope; full: of all query (key) heads of a token "
        "together; unset: the spec's qk_norm",
    )
    sinks: Flag | None = Field(
        default=None,
        description="a learned logit per head that takes part in the softmax only; unset: the spec's sinks",
    )


class MhaModel(HeadsAttentionModel):
    """Multi-head attention (arXiv 1706.03762)."""

    kind: Literal["mha"] = Field(description="multi-head attention: a key and value head per query head")


class GqaModel(HeadsAttentionModel):
    """Grouped-query attention (arXiv 2305.13245)."""

    kind: Literal["gqa"] = Field(description="grouped-query attention: a key and value head per group of query heads")
    kv_heads: Dim | None = Field(
        default=None, description="key and value heads, a divisor of heads; unset: the spec's kv_heads"
    )


class MqaModel(HeadsAttentionModel):
    """Multi-query attention (arXiv 1911.02150)."""

    kind: Literal["mqa"] = Field(description="multi-query attention: one key and value head")


class MlaModel(AttentionModel):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""

    kind: Literal["mla"] = Field(
        description="multi-head latent attention: the cache holds a latent and rope_dim key dims"
    )
    latent: Dim = Field(description="dims of the cached latent, normed by RMS before it is cached")
    nope_dim: Dim = Field(description="dims of a query and key head without position")
    rope_dim: Dim = Field(description="rotated dims of a query head; the key's are shared by all heads; even")
    v_dim: Dim = Field(description="dims of a value head")
    q_latent: Dim | None = Field(
        default=None, description="dims of the query latent; none: queries are projected directly"
    )
    norm_eps: Positive | None = Field(
        default=None, description="eps of the norms of the latents; unset: the spec's norm.eps"
    )


class FfnModel(Record):
    """Keys every built-in ffn kind has."""

    hidden: Dim = Field(description="hidden dims (of one expert in a mixture)")
    activation: Activation = Field(
        default="swiglu",
        description="swiglu, geglu and geglu_tanh are gated (three matrices), the others plain (two); gelu is by erf, "
        "gelu_tanh by its tanh approximation",
    )
    bias: Flag | None = Field(default=None, description="biases of the matrices; unset: the spec's bias")
    activation_alpha: Positive = Field(
        default=1.0, description="swiglu: act(gate) is gate * sigmoid(alpha * gate); gpt-oss has 1.702"
    )
    activation_beta: Number = Field(
        default=0.0, description="gated activations: act(gate) * (up + beta); gpt-oss has 1"
    )
    activation_limit: Positive | None = Field(
        default=None,
        description="gated activations: gate is cut off above it, up beyond both signs of it (gpt-oss: 7); "
        "none: no limit",
    )


class DenseModel(FfnModel):
    """One feed-forward network for every token."""

    kind: Literal["dense"] = Field(description="one feed-forward network for every token")


class RouterModel(Record):
    """What a router does in training only, so that it tries other experts while it learns."""

    temperature: Positive = Field(default=1.0, description="divides the logits")
    gumbel: Strength = Field(
        default=0.0, description="factor of Gumbel noise on the logits; 1.0 with top_k 1 draws from the softmax"
    )
    gaussian: Strength = Field(
        default=0.0, description="standard deviation of normal noise on the logits (arXiv 1701.06538)"
    )
    jitter: Share = Field(
        default=0.0, description="largest relative change of an input of the router (arXiv 2101.03961)"
    )
    dropout: Share = Field(
        default=0.0, description="probability that an expert is left out of a token's choice; never the best one"
    )


class MoeModel(FfnModel):
    """A mixture of experts, of which each token takes a few."""

    kind: Literal["moe"] = Field(description="a mixture of experts, of which each token takes top_k")
    experts: Dim = Field(description="routed experts")
    top_k: Dim = Field(description="experts a token takes")
    shared: Count = Field(default=0, description="experts that every token takes beside the routed ones")
    shared_hidden: Dim | None = Field(default=None, description="hidden dims of a shared expert; unset: hidden")
    shared_gate: Flag = Field(
        default=False, description="the sigmoid of a learned product with the token scales what shared experts give"
    )
    groups: Annotated[tuple[Dim, ...], Field(min_length=1)] | None = Field(
        default=None, description="sizes of the expert groups, in order; a token routes within the chosen groups"
    )
    top_groups: Dim = Field(
        default=1, description="groups a token chooses, by group_score or the group gate"
    )
    group_gate: Flag = Field(default=False, description="a learned gate scores the groups")
    group_score: Literal["max", "top2_sum"] = Field(
        default="max",
        description="without a group gate, the score of a group: that of its best expert, or the sum of its two best "
        "(arXiv 2412.19437)",
    )
    split: Dim = Field(
        default=1,
        description="each expert becomes this many of hidden / split, and top_k grows alike; groups grow with them",
    )
    score: Literal["softmax", "sigmoid"] = Field(default="softmax", description="how router logits become gates")
    renormalise: Flag = Field(default=True, description="gates of the chosen experts sum to one")
    select_bias: Flag = Field(default=False, description="a bias per expert that enters the choice, not the gate")
    router_bias: Flag = Field(default=False, description="a bias per expert of the router's logits")
    gate_scale: Positive = Field(default=1.0, description="factor of the gates")
    router: RouterModel | None = Field(
        default=None, description="noise of the router in training; none: training does what evaluation does"
    )


for _name, _attention in (("mha", MhaModel), ("gqa", GqaModel), ("mqa", MqaModel), ("mla", MlaModel)):
    register_kind("attention", _name, _attention, builtin=True)
for _name, _ffn in (("dense", DenseModel), ("moe", MoeModel)):
    register_kind("ffn", _name, _ffn, builtin=True)


class BlockModel(Record):
    """One or several equal layers."""

    repeat: Annotated[Dim, Field(le=1024)] = Field(default=1, description="layers this entry stands for")
    width: Dim = Field(description="dims of the residual stream, equal in all blocks")
    attention: Annotated[BaseModel, KindOf("attention")] = Field(
        description="the token mixer: one of the attention kinds"
    )
    ffn: Annotated[BaseModel, KindOf("ffn")] = Field(description="the channel mixer: one of the ffn kinds")
