"""Llama 2 and 3, and what keeps their architecture (Mistral, SmolLM2)."""

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
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_windows
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    mistral = config.raw("model_type", "the family") == "mistral"
    if mistral:
        config.assume(num_key_value_heads=8)
    base, attention = base_keys(config), attention_keys(config)
    attention["rope"] = rope_of(config, attention["head_dim"], base["context"])
    if mistral:
        config.only("attention_bias", False, "the architecture has no biases")
        config.only("mlp_bias", False, "the architecture has no biases")
        # A window that is not mentioned is one of 4096 tokens; null is none.
        layers, mlp_bias = config.whole("num_hidden_layers", "blocks.repeat"), False
        attention = windowed(config, attention, layers, default=4096)
    else:
        attention["bias"] = config.flag("attention_bias", "blocks.attention.bias", False)
        mlp_bias = config.flag("mlp_bias", "blocks.ffn.bias", False)
    config.ignore("how a product was cut in training; the same numbers", "pretraining_tp")
    config.ignore("the architecture is Llama's either way", "is_llama_config")
    config.only("rope_interleaved", False, "the halves of a head rotate against each other")
    return base | {"blocks": equal_blocks(config, attention, gated_ffn(config, bias=mlp_bias))}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    kind = {"attention_bias": bool(layer.attention.bias), "mlp_bias": layer.ffn.bias}
    if layer.attention.window is None:
        return publish_base(spec, "llama", "LlamaForCausalLM") | publish_ffn(layer) | kind
    window = publish_windows(spec)["sliding_window"]
    return publish_base(spec, "mistral", "MistralForCausalLM") | publish_ffn(layer) | kind | {"sliding_window": window}


FAMILY = Family(
    model_types=("llama", "mistral"),
    title="Llama 2 and 3, Mistral, SmolLM2",
    describe=_describe,
    weights=llama_table,
    publish=_publish,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    source="arXiv:2307.09288, arXiv:2407.21783, arXiv:2310.06825",
)
