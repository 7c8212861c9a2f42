"""Arcee (AFM): the Llama layout with a network of two matrices, relu squared between them."""

from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    decoder_table,
    equal_blocks,
    llama_attention,
)
from omnic.models.checkpoints.family import Family
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load


def describe(config):
    """Return the spec as plain data; every key is read with the place of the spec it goes to."""
    base, attention = base_keys(config, eps=1e-5), attention_keys(config)
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "rope": rope_of(config, attention["head_dim"], base["context"]),
    }
    ffn = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice("hidden_act", "blocks.ffn.activation", {"relu2": "relu2"}, "relu2"),
        "bias": config.flag("mlp_bias", "blocks.ffn.bias", False),
    }
    return base | {"blocks": equal_blocks(config, attention, ffn)}


def weights(spec, tensors):
    """Return where each weight of the model lies in the checkpoint."""
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        table[f"{ours}.attn_norm"] = load(f"{theirs}.input_layernorm.weight")
        table[f"{ours}.ffn_norm"] = load(f"{theirs}.post_attention_layernorm.weight")
        for name in ("up", "down"):
            table[f"{ours}.ffn.{name}"] = load(f"{theirs}.mlp.{name}_proj.weight")
            if layer.ffn.bias:
                table[f"{ours}.ffn.{name}_bias"] = load(f"{theirs}.mlp.{name}_proj.bias")
    return table


FAMILY = Family(model_types=("arcee",), title="Arcee AFM", describe=describe, weights=weights)
