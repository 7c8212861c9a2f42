"""gpt-oss."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    decoder_table,
    layer_names,
    llama_attention,
    window_of,
)
from omnic.models.checkpoints.families.mixtures import layered, llama_norms
from omnic.models.checkpoints.families.publishing import publish_base, publish_experts, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load, rows, transpose
from omnic.spec import Layer, MoE, Spec

#: what transformers takes where a configuration says nothing about rope
_YARN = {"kind": "yarn", "factor": 32.0, "original_context": 4096, "truncate": False}


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config, eps=1e-5), attention_keys(config, head_dim=64)
    rope = rope_of(config, attention["head_dim"], base["context"], base=150000.0)
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        rope["scaling"] = _YARN
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", True),
        "sinks": True,
        "rope": rope,
    }
    config.only("hidden_act", "silu", "the experts' gate is silu with a slope of its own")
    limit = config.number("swiglu_limit", "blocks.ffn.activation_limit", 7.0)
    experts = {
        "kind": "moe",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": "swiglu",
        "activation_alpha": config.number("swiglu_alpha", "blocks.ffn.activation_alpha", 1.702),
        "activation_beta": 1.0,
        "activation_limit": limit,
        "experts": config.whole("num_local_experts", "blocks.ffn.experts"),
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 4),
        "router_bias": True,
        "bias": True,
    }
    config.ignore("num_experts_per_tok says it", "experts_per_token")
    config.ignore("the scaling's original_max_position_embeddings says it", "initial_context_length")
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    names = layer_names(config, layers, ["global" if i % 2 else "local" for i in range(layers)])
    window = window_of(config, names, default=128)
    return base | {"blocks": layered(config, attention, [experts] * layers, names, window)}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        table |= _experts(layer, f"{ours}.ffn", f"{theirs}.mlp", tensors)
    return table


def _experts(layer: Layer, ours: str, theirs: str, tensors: Tensors) -> dict[str, Recipe]:
    """Return router and experts: gate and up take turns; plain matrices lie [in, out], those of codes [out, in]."""
    ffn, experts = layer.ffn, f"{theirs}.experts"
    assert isinstance(ffn, MoE)
    both, down = load(f"{experts}.gate_up_proj"), load(f"{experts}.down_proj")
    if f"{experts}.gate_up_proj" not in tensors.coded:
        both = transpose(both, 0, 2, 1)
    if f"{experts}.down_proj" not in tensors.coded:
        down = transpose(down, 0, 2, 1)
    bias = load(f"{experts}.gate_up_proj_bias")
    table = {
        f"{ours}.router": load(f"{theirs}.router.weight"),
        f"{ours}.router_bias": load(f"{theirs}.router.bias"),
        f"{ours}.experts.down": down,
        f"{ours}.experts.down_bias": load(f"{experts}.down_proj_bias"),
    }
    for first, name in enumerate(("gate", "up")):
        table[f"{ours}.experts.{name}"] = rows(both, first, 2 * ffn.hidden, axis=1, step=2)
        table[f"{ours}.experts.{name}_bias"] = rows(bias, first, 2 * ffn.hidden, axis=1, step=2)
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    ffn = layer.ffn
    found = publish_base(spec, "gpt_oss", "GptOssForCausalLM") | publish_windows(spec)
    experts = publish_experts(layer, count="num_local_experts", hidden="intermediate_size")
    own = {"attention_bias": bool(layer.attention.bias), "swiglu_limit": ffn.activation_limit}
    return found | experts | own


FAMILY = Family(
    model_types=("gpt_oss",),
    title="gpt-oss",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="arXiv:2508.10925",
)
