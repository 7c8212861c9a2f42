"""Granite: the Llama layout with factors of the embedding, the residual branches, the attention and the logits."""

from __future__ import annotations

from typing import Any

from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    equal_blocks,
    gated_ffn,
    llama_table,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_multipliers
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def multipliers(config: Config) -> dict[str, float]:
    """Return the spec's ``multipliers``; that of the attention is its ``scale``."""
    return {
        "embedding": config.number("embedding_multiplier", "multipliers.embedding", 1.0),
        "residual": config.number("residual_multiplier", "multipliers.residual", 1.0),
        "logits": 1.0 / config.number("logits_scaling", "multipliers.logits, its inverse", 1.0, positive=True),
    }


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config), attention_keys(config)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "rope": rope_of(config, attention["head_dim"], base["context"]),
        "scale": config.number("attention_multiplier", "blocks.attention.scale", 1.0),
    }
    ffn = gated_ffn(config, bias=config.flag("mlp_bias", "blocks.ffn.bias", False))
    return base | {"multipliers": multipliers(config), "blocks": equal_blocks(config, attention, ffn)}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    bias = {"attention_bias": bool(layer.attention.bias), "mlp_bias": layer.ffn.bias}
    return publish_base(spec, "granite", "GraniteForCausalLM") | publish_ffn(layer) | publish_multipliers(spec) | bias


FAMILY = Family(
    model_types=("granite",),
    title="Granite 3",
    describe=_describe,
    weights=llama_table,
    publish=_publish,
    source="transformers, models/granite; Granite 3.0 Language Models, IBM, 2024",
)
