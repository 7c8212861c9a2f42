"""Qwen3: the Llama layout with normed query and key heads."""

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
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_switched_windows
from omnic.models.checkpoints.families.qwen2 import switched_window
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    config.assume(num_key_value_heads=32)
    base, attention = base_keys(config), attention_keys(config, head_dim=128)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "qk_norm": True,
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    return base | {"blocks": equal_blocks(config, switched_window(config, attention), gated_ffn(config))}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    bias = {"attention_bias": bool(layer.attention.bias)}
    return publish_base(spec, "qwen3", "Qwen3ForCausalLM") | publish_ffn(layer) | publish_switched_windows(spec) | bias


FAMILY = Family(
    model_types=("qwen3",),
    title="Qwen3",
    describe=_describe,
    weights=llama_table,
    publish=_publish,
    source="arXiv:2505.09388",
)
