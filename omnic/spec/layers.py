"""The layers of a model with every default, repeat and pattern expanded: what builders read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GATED",
    "Attention",
    "AttentionKind",
    "Dense",
    "Ffn",
    "Layer",
    "MoE",
    "Norm",
    "Place",
    "Rope",
    "RopeScaling",
    "RouterNoise",
]

AttentionKind = Literal["mha", "gqa", "mqa", "mla"]
Activation = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2", "silu"]
Place = tuple[str, int, int]

GATED = frozenset({"swiglu", "geglu", "geglu_tanh"})
"""Activations of three matrices: act(gate) * up, then down."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions reach beyond ``original_context`` tokens.

    ``attention_factor`` is None except for yarn and longrope, where it multiplies rotated queries and
    keys.  ``truncate`` is yarn's, ``factors`` longrope's.
    """

    kind: Literal["linear", "ntk", "yarn", "llama3", "longrope"]
    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rope:
    """Rotary positions over ``dims`` dims of a head (arXiv 2104.09864)."""

    base: float
    dims: int
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Norm:
    """The norms of a block: where they are, and which weights they have; ``bias`` is that of a LayerNorm."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    place: Literal["pre", "post", "both", "parallel"] = "pre"
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    For ``mla``: ``kv_heads`` = ``heads``, ``head_dim`` = ``nope_dim`` + ``rope_dim``.  For the other
    kinds the four mla dims are None.  ``window`` counts attended tokens, the current one included;
    None attends to all.  ``scale`` None means 1 / sqrt(head_dim).  ``bias`` may be ``qkv``: of all projections but the
    output's.  ``qk_norm`` ``full`` norms all heads of a token together.  ``norm_eps`` is that of the
    norms of mla's latents, None the layer's.
    """

    kind: AttentionKind | str
    heads: int
    kv_heads: int
    head_dim: int
    latent: int | None = None
    nope_dim: int | None = None
    rope_dim: int | None = None
    v_dim: int | None = None
    q_latent: int | None = None
    rope: Rope | None = None
    window: int | None = None
    qk_norm: bool | Literal["full"] = False
    sinks: bool = False
    softcap: float | None = None
    bias: bool | Literal["qkv"] = False
    scale: float | None = None
    norm_eps: float | None = None

    @property
    def value_dim(self) -> int:
        """Dims of a value head."""
        return self.v_dim if self.v_dim is not None else self.head_dim


@dataclass(frozen=True)
class Dense:
    """A feed-forward network of ``hidden`` dims.

    ``activation_alpha``, ``activation_beta`` and ``activation_limit`` are those of the op ``gated_act``.
    """

    hidden: int
    activation: Activation
    bias: bool = False
    activation_alpha: float = 1.0
    activation_beta: float = 0.0
    activation_limit: float | None = None

    @property
    def gated(self) -> bool:
        """Whether there are three matrices (gate, up, down) instead of two."""
        return self.activation in GATED


@dataclass(frozen=True)
class RouterNoise:
    """What a router does in training only; every value is off at its default."""

    temperature: float = 1.0
    gumbel: float = 0.0
    gaussian: float = 0.0
    jitter: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True)
class MoE:
    """A mixture of experts as the spec counts it, before ``split``.

    ``routed_*`` are the numbers after the split: what the router and the weights have.  ``router`` is None
    where training does what evaluation does.  ``activation_alpha``, ``activation_beta`` and ``activation_limit``
    are those of the op ``gated_act``.
    """

    hidden: int
    activation: Activation
    experts: int
    top_k: int
    shared: int = 0
    shared_hidden: int = 0
    shared_gate: bool = False
    groups: tuple[int, ...] | None = None
    top_groups: int = 1
    group_gate: bool = False
    group_score: Literal["max", "top2_sum"] = "max"
    split: int = 1
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    select_bias: bool = False
    router_bias: bool = False
    gate_scale: float = 1.0
    bias: bool = False
    activation_alpha: float = 1.0
    activation_beta: float = 0.0
    activation_limit: float | None = None
    router: RouterNoise | None = None

    @property
    def gated(self) -> bool:
        """Whether an expert has three matrices (gate, up, down) instead of two."""
        return self.activation in GATED

    @property
    def routed_experts(self) -> int:
        """Experts the router scores."""
        return self.experts * self.split

    @property
    def routed_top_k(self) -> int:
        """Routed experts a token takes."""
        return self.top_k * self.split

    @property
    def routed_hidden(self) -> int:
        """Hidden dims of a routed expert."""
        return self.hidden // self.split

    @property
    def routed_groups(self) -> tuple[int, ...] | None:
        """Sizes of the groups of routed experts."""
        return None if self.groups is None else tuple(size * self.split for size in self.groups)


Ffn = Dense | MoE


@dataclass(frozen=True)
class Layer:
    """One layer: its number, the parts, and where in the spec its block is written.

    ``pattern`` is the layer's name in its block's pattern (``local``, ``global``), None without one.
    ``block`` is the index of its entry in ``blocks``.
    """

    index: int
    width: int
    attention: Attention
    ffn: Ffn
    norm: Norm
    place: Place
    block: int = 0
    pattern: str | None = None
