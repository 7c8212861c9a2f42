"""StarCoder2: LayerNorm and biases, a network of two matrices, a window."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    PLAIN,
    attention_keys,
    base_keys,
    decoder_table,
    equal_blocks,
    llama_attention,
    windowed,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_plain_ffn, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    config.assume(num_key_value_heads=2)
    base, attention = base_keys(config, eps=None, tie=True), attention_keys(config)
    bias = config.flag("use_bias", "bias", True)
    config.only("norm_type", "layer_norm", "norms are LayerNorms")
    config.only("mlp_type", "default", "a network of two matrices")
    config.only("scale_attn_weights", True, "logits are divided by the root of the dims of a head")
    config.ignore("norm_epsilon counts", "layer_norm_epsilon")
    config.ignore("hidden_act counts", "activation_function")
    config.ignore("where transformers computes in f32", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    attention["rope"] = rope_of(config, attention["head_dim"], base["context"])
    ffn = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice("hidden_act", "blocks.ffn.activation", PLAIN, "gelu_pytorch_tanh"),
    }
    attention = windowed(config, attention, config.whole("num_hidden_layers", "blocks.repeat"))
    return base | {
        "bias": bias,
        "norm": {"kind": "layer", "eps": config.number("norm_epsilon", "norm.eps", 1e-5), "bias": True},
        "blocks": equal_blocks(config, attention, ffn),
    }


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec) | {"final_norm_bias": load("model.norm.bias")}
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        for name, norm in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            table[f"{ours}.{name}"] = load(f"{theirs}.{norm}.weight")
            table[f"{ours}.{name}_bias"] = load(f"{theirs}.{norm}.bias")
        for name, matrix in (("up", "c_fc"), ("down", "c_proj")):
            table[f"{ours}.ffn.{name}"] = load(f"{theirs}.mlp.{matrix}.weight")
            if layer.ffn.bias:
                table[f"{ours}.ffn.{name}_bias"] = load(f"{theirs}.mlp.{matrix}.bias")
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    found = publish_base(spec, "starcoder2", "Starcoder2ForCausalLM") | publish_plain_ffn(layer)
    window = publish_windows(spec)["sliding_window"]
    return found | {"norm_epsilon": layer.norm.eps, "use_bias": layer.ffn.bias, "sliding_window": window}


FAMILY = Family(
    model_types=("starcoder2",),
    title="StarCoder2",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="arXiv:2402.19173",
)
