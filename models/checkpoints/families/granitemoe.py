"""Granite 3.0 MoE."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import attention_keys, base_keys, decoder_table, llama_attention
from omnic.models.checkpoints.families.mixtures import activation_of, layered, llama_norms
from omnic.models.checkpoints.families.publishing import publish_base, publish_experts, publish_multipliers
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load, rows
from omnic.spec import MoE, Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config), attention_keys(config)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "scale": config.number("attention_multiplier", "blocks.attention.scale", 1.0),
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    experts = {
        "kind": "moe",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": activation_of(config),
        "experts": config.whole("num_local_experts", "blocks.ffn.experts", 8),
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 2),
    }
    multipliers = {
        "embedding": config.number("embedding_multiplier", "multipliers.embedding", 1.0),
        "residual": config.number("residual_multiplier", "multipliers.residual", 1.0),
        "logits": 1.0 / config.number("logits_scaling", "multipliers.logits, one over it", 1.0, positive=True),
    }
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    return base | {"multipliers": multipliers, "blocks": layered(config, attention, [experts] * layers)}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        moe, ffn = f"{theirs}.block_sparse_moe", layer.ffn
        assert isinstance(ffn, MoE)
        both = load(tensors.first(f"{moe}.input_linear.weight", f"{moe}.experts.gate_up_proj"))
        table |= {
            f"{ours}.ffn.router": load(tensors.first(f"{moe}.router.layer.weight", f"{moe}.router.weight")),
            f"{ours}.ffn.experts.gate": rows(both, 0, ffn.hidden, axis=1),
            f"{ours}.ffn.experts.up": rows(both, ffn.hidden, 2 * ffn.hidden, axis=1),
            f"{ours}.ffn.experts.down": load(tensors.first(f"{moe}.output_linear.weight", f"{moe}.experts.down_proj")),
        }
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    experts = publish_experts(layer, count="num_local_experts", hidden="intermediate_size")
    bias = {"attention_bias": bool(layer.attention.bias)}
    base = publish_base(spec, "granitemoe", "GraniteMoeForCausalLM")
    return base | publish_multipliers(spec) | experts | bias


FAMILY = Family(
    model_types=("granitemoe",),
    title="Granite 3 MoE",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="github.com/ibm-granite/granite-3.0-language-models; arXiv:2408.13359 (PowerMoE)",
)
