"""Qwen2 and Qwen2.5: biased queries, keys and values, a window in the later layers where it is switched on."""

from __future__ import annotations

from typing import Any

from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    equal_blocks,
    gated_ffn,
    llama_table,
    windowed,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_switched_windows
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def switched_window(config: Config, attention: dict[str, Any]) -> dict[str, Any]:
    """Return an attention with the window that ``use_sliding_window`` switches on, from a layer on."""
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    if not config.flag("use_sliding_window", "blocks.attention.window", False):
        off = "use_sliding_window is off"
        config.ignore(off, "sliding_window", "max_window_layers", "layer_types")
        return attention
    first = config.whole("max_window_layers", "blocks.attention.pattern", 28)
    names = ["global" if i < first else "local" for i in range(layers)]
    return windowed(config, attention, layers, default=4096, names=names)


def _describe(config: Config) -> dict[str, Any]:
    config.assume(num_key_value_heads=32)
    base, attention = base_keys(config), attention_keys(config)
    attention |= {"bias": "qkv", "rope": rope_of(config, attention["head_dim"], base["context"])}
    config.only("use_mrope", False, "text has positions of one dim")
    return base | {"blocks": equal_blocks(config, switched_window(config, attention), gated_ffn(config))}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    return publish_base(spec, "qwen2", "Qwen2ForCausalLM") | publish_ffn(layer) | publish_switched_windows(spec)


FAMILY = Family(
    model_types=("qwen2",),
    title="Qwen2, Qwen2.5",
    describe=_describe,
    weights=llama_table,
    publish=_publish,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    source="arXiv:2407.10671",
)
