"""Gemma 2: norms of 1 + weight before and after each branch, soft caps, every other layer with a window."""

from __future__ import annotations

import math
from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    equal_blocks,
    gated_ffn,
    llama_attention,
    llama_mlp,
    windowed,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load, shift
from omnic.spec import Spec


def gemma_base(config: Config) -> dict[str, Any]:
    """Return what the top of the spec says for Gemma 2 and 3."""
    base = base_keys(config, tie=True)
    config.only("use_bidirectional_attention", False, "each token attends to what is before it")
    config.ignore("how transformers caches", "cache_implementation")
    config.ignore("sliding_window counts", "sliding_window_size")
    cap = config.number("final_logit_softcapping", "softcap.logits", None)
    width = config.whole("hidden_size", "blocks.width and, its root, multipliers.embedding")
    return base | {
        "norm": base["norm"] | {"place": "both"},
        "softcap": {} if cap is None else {"logits": cap},
        "multipliers": {"embedding": math.sqrt(width)},
    }


def gemma_attention(config: Config) -> dict[str, Any]:
    """Return the attention of Gemma 2 and 3, without positions and windows."""
    return attention_keys(config, head_dim=256) | {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "scale": _scale(config),
    }


def _scale(config: Config) -> float:
    effect = "blocks.attention.scale, its -1/2 power"
    return config.number("query_pre_attn_scalar", effect, 256.0, positive=True) ** -0.5


def gemma_ffn(config: Config) -> dict[str, Any]:
    """Return the network; ``hidden_act`` of older configurations gives way to ``hidden_activation``."""
    if config.has("hidden_activation"):
        config.ignore("hidden_activation counts", "hidden_act")
    return gated_ffn(config, key="hidden_activation", default="gelu_pytorch_tanh")


def _describe(config: Config) -> dict[str, Any]:
    # The older files leave out what is the default of the class.
    config.assume(num_key_value_heads=4, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096)
    base, attention = gemma_base(config), gemma_attention(config)
    attention["rope"] = rope_of(config, attention["head_dim"], base["context"])
    cap = config.number("attn_logit_softcapping", "blocks.attention.softcap", None)
    attention |= {} if cap is None else {"softcap": cap}
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    names = ["global" if i % 2 else "local" for i in range(layers)]
    return base | {"blocks": equal_blocks(config, windowed(config, attention, layers, names=names), gemma_ffn(config))}


def gemma_weights(spec: Spec, prefix: str, head: str) -> dict[str, Recipe]:
    """Return the table of Gemma 2 and 3; norms are stored less one."""

    def norm(name: str) -> Recipe:
        return shift(load(f"{name}.weight"), 1.0)

    table = {"embed": load(f"{prefix}embed_tokens.weight"), "final_norm": norm(f"{prefix}norm")}
    if not spec.tie:
        table["head"] = load(head)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"{prefix}layers.{layer.index}"
        attention = llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        if layer.attention.qk_norm:
            attention |= {f"{ours}.attn.{n}_norm": norm(f"{theirs}.self_attn.{n}_norm") for n in "qk"}
        table |= attention | llama_mlp(layer, ours, f"{theirs}.mlp")
        table |= {
            f"{ours}.attn_norm": norm(f"{theirs}.input_layernorm"),
            f"{ours}.attn_post_norm": norm(f"{theirs}.post_attention_layernorm"),
            f"{ours}.ffn_norm": norm(f"{theirs}.pre_feedforward_layernorm"),
            f"{ours}.ffn_post_norm": norm(f"{theirs}.post_feedforward_layernorm"),
        }
    return table


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    return gemma_weights(spec, "model.", "lm_head.weight")


def _whole(scale: float) -> int:
    """Return the dims whose root the scale is one over; the configuration has a whole number."""
    return round(scale**-2)


def gemma_published(spec: Spec, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the configuration of a Gemma 2 or 3."""
    layer = spec.layers()[0]
    dense = publish_ffn(layer)
    return (
        publish_base(spec, model_type, architecture)
        | publish_windows(spec)
        | {
            "intermediate_size": dense["intermediate_size"],
            "hidden_activation": dense["hidden_act"],
            "attention_bias": bool(layer.attention.bias),
            "query_pre_attn_scalar": _whole(layer.attention.scale or layer.attention.head_dim**-0.5),
            "attn_logit_softcapping": layer.attention.softcap,
            "final_logit_softcapping": spec.softcap.logits,
        }
    )


def _publish(spec: Spec) -> dict[str, Any]:
    return gemma_published(spec, "gemma2", "Gemma2ForCausalLM")


FAMILY = Family(
    model_types=("gemma2",),
    title="Gemma 2",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="arXiv:2408.00118",
)
