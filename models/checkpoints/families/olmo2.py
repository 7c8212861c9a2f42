"""OLMo 2: norms after each branch instead of before it, all query heads (and all key heads) normed together."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    decoder_table,
    equal_blocks,
    gated_ffn,
    llama_attention,
    llama_mlp,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config, eps=1e-5), attention_keys(config)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "qk_norm": "full",
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    return base | {
        "norm": base["norm"] | {"place": "post"},
        "blocks": equal_blocks(config, attention, gated_ffn(config)),
    }


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn") | llama_mlp(layer, ours, f"{theirs}.mlp")
        table[f"{ours}.attn_post_norm"] = load(f"{theirs}.post_attention_layernorm.weight")
        table[f"{ours}.ffn_post_norm"] = load(f"{theirs}.post_feedforward_layernorm.weight")
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    bias = {"attention_bias": bool(layer.attention.bias)}
    return publish_base(spec, "olmo2", "Olmo2ForCausalLM") | publish_ffn(layer) | bias


FAMILY = Family(
    model_types=("olmo2",),
    title="OLMo 2",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="arXiv:2501.00656",
)
