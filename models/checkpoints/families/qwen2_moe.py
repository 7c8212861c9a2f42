"""Qwen1.5-MoE and Qwen2-MoE."""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    layer_names,
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
from omnic.spec import MoE, Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config), attention_keys(config)
    attention |= {
        "bias": "qkv" if config.flag("qkv_bias", "blocks.attention.bias", True) else False,
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    activation = activation_of(config)
    experts = {
        "kind": "moe",
        "hidden": config.whole("moe_intermediate_size", "blocks.ffn.hidden", 1408),
        "activation": activation,
        "experts": config.whole("num_experts", "blocks.ffn.experts", 60),
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 4),
        "shared": 1,
        "shared_hidden": config.whole("shared_expert_intermediate_size", "blocks.ffn.shared_hidden", 5632),
        "shared_gate": True,
        "renormalise": config.flag("norm_topk_prob", "blocks.ffn.renormalise", False),
    }
    dense = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": activation,
    }
    ffns = sparse_layers(config, experts, dense)
    return base | {"blocks": layered(config, attention, ffns, *_windows(config, len(ffns)))}


def _windows(config: Config, layers: int) -> tuple[list[str], int | None]:
    """Return which layers slide, and their window: those before ``max_window_layers`` with an even number.

    Raises:
        InputError: ``layer_types`` has layers that slide where nothing shall.
    """
    if not config.flag("use_sliding_window", "blocks.attention.window", False):
        config.ignore("use_sliding_window is false", "sliding_window", "max_window_layers")
        if "local" in layer_names(config, layers, ["global"] * layers):
            raise InputError(f"{config.origin}: layer_types has sliding_attention, and use_sliding_window is false")
        return ["global"] * layers, None
    last = config.whole("max_window_layers", "blocks.attention.pattern", 28)
    names = layer_names(config, layers, ["local" if i % 2 == 0 and i < last else "global" for i in range(layers)])
    return names, window_of(config, names, default=4096)


def _publish(spec: Spec) -> dict[str, Any]:
    first = spec.layers()[0].attention
    shared = next((x.ffn.shared_hidden for x in spec.layers() if isinstance(x.ffn, MoE)), 0)
    own = {"qkv_bias": first.bias == "qkv", "shared_expert_intermediate_size": shared, "use_sliding_window": False}
    return publish_base(spec, "qwen2_moe", "Qwen2MoeForCausalLM") | publish_sparse(spec) | own


FAMILY = Family(
    model_types=("qwen2_moe",),
    title="Qwen1.5-MoE, Qwen2-MoE",
    describe=_describe,
    weights=mixtures_table,
    publish=_publish,
    source="arXiv:2407.10671",
)
