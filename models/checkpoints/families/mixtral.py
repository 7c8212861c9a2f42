"""Mixtral."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    decoder_table,
    llama_attention,
    window_of,
)
from omnic.models.checkpoints.families.mixtures import activation_of, layered, llama_norms, mixture_table
from omnic.models.checkpoints.families.publishing import publish_base, publish_experts, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec

_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config, eps=1e-5), attention_keys(config)
    attention["rope"] = rope_of(config, attention["head_dim"], base["context"], base=1e6)
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    experts = {
        "kind": "moe",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": activation_of(config),
        "experts": config.whole("num_local_experts", "blocks.ffn.experts", 8),
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 2),
    }
    names = ["local"] * layers
    return base | {"blocks": layered(config, attention, [experts] * layers, names, window_of(config, names))}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        router = tensors.first(f"{theirs}.block_sparse_moe.gate.weight", f"{theirs}.mlp.gate.weight")
        table |= mixture_table(layer, ours, router.removesuffix(".gate.weight"), tensors, _NAMES)
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    experts = publish_experts(layer, count="num_local_experts", hidden="intermediate_size")
    window = {"sliding_window": publish_windows(spec)["sliding_window"]}
    return publish_base(spec, "mixtral", "MixtralForCausalLM") | experts | window


FAMILY = Family(
    model_types=("mixtral",),
    title="Mixtral",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    source="arXiv:2401.04088",
)
