"""Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    window_of,
)
from omnic.models.checkpoints.families.mixtures import (
    activation_of,
    layered,
    mixtures_table,
    sparse_layers,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_sparse
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config), attention_keys(config)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "qk_norm": True,
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    activation = activation_of(config)
    count = "num_experts" if config.given("num_experts") else "num_local_experts"
    experts = {
        "kind": "moe",
        "hidden": config.whole("moe_intermediate_size", "blocks.ffn.hidden", 768),
        "activation": activation,
        "experts": config.whole(count, "blocks.ffn.experts", 128),
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 8),
        "renormalise": config.flag("norm_topk_prob", "blocks.ffn.renormalise", False),
    }
    dense = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": activation,
    }
    ffns = sparse_layers(config, experts, dense)
    names, window = ["local"] * len(ffns), None
    if config.flag("use_sliding_window", "blocks.attention.window", False):
        window = window_of(config, names, default=4096)
        config.ignore("the window holds for every layer", "max_window_layers")
    else:
        config.ignore("use_sliding_window is false", "sliding_window", "max_window_layers")
    return base | {"blocks": layered(config, attention, ffns, names, window)}


def _publish(spec: Spec) -> dict[str, Any]:
    bias = {"attention_bias": bool(spec.layers()[0].attention.bias)}
    window = {"use_sliding_window": False}
    return publish_base(spec, "qwen3_moe", "Qwen3MoeForCausalLM") | publish_sparse(spec) | bias | window


FAMILY = Family(
    model_types=("qwen3_moe",),
    title="Qwen3-MoE",
    describe=_describe,
    weights=mixtures_table,
    publish=_publish,
    source="arXiv:2505.09388",
)
