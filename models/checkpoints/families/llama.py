"""Llama 2 and 3, and what keeps their architecture (Mistral, SmolLM2)."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    GATED,
    attention_keys,
    base_keys,
    decoder_table,
    llama_block,
    windowed,
)
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base = base_keys(config)
    attention, layers = attention_keys(config), config.whole("num_hidden_layers", "blocks.repeat")
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    ffn = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice("hidden_act", "blocks.ffn.activation", GATED, "silu"),
        "bias": config.flag("mlp_bias", "blocks.ffn.bias", False),
    }
    config.ignore("how a product was cut in training; the same numbers", "pretraining_tp")
    width = config.whole("hidden_size", "blocks.width")
    return base | {
        "blocks": [{"repeat": layers, "width": width, "attention": windowed(config, attention, layers), "ffn": ffn}]
    }


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        table |= llama_block(layer, f"blocks.{layer.index}", f"model.layers.{layer.index}")
    return table


FAMILY = Family(
    model_types=("llama", "mistral"),
    title="Llama 2 and 3, Mistral, SmolLM2",
    describe=_describe,
    weights=_weights,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    source="arXiv:2307.09288, arXiv:2407.21783, arXiv:2310.06825",
)
