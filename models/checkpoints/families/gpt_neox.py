"""GPT-NeoX and Pythia: attention and network side by side, some dims of a head rotated, one product for all heads."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import PLAIN, equal_blocks
from omnic.models.checkpoints.families.publishing import publish_base, publish_plain_ffn
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load, reshape, rows
from omnic.spec import Layer, Spec


def _describe(config: Config) -> dict[str, Any]:
    width = config.whole("hidden_size", "blocks.width")
    heads = config.whole("num_attention_heads", "blocks.attention.heads", least=1)
    context = config.whole("max_position_embeddings", "context")
    # Configurations of transformers 4 have names of their own for what the others call rope_theta.
    base = config.number("rotary_emb_base", "blocks.attention.rope.base", 10000.0)
    partial = config.number("rotary_pct", "blocks.attention.rope.dims", 0.25)
    attention = {
        "kind": "mha",
        "heads": heads,
        "head_dim": width // heads,
        "bias": config.flag("attention_bias", "blocks.attention.bias", True),
        "rope": rope_of(config, width // heads, context, base=base, partial=partial),
    }
    ffn = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice("hidden_act", "blocks.ffn.activation", PLAIN, "gelu"),
        "bias": True,
    }
    config.ignore("of training only", "attention_probs_dropout_prob", "hidden_dropout_prob")
    parallel = config.flag("use_parallel_residual", "norm.place", True)
    eps = config.number("layer_norm_eps", "norm.eps", 1e-5)
    return {
        "vocab": {"size": config.whole("vocab_size", "vocab.size")},
        "context": context,
        "tie": config.flag("tie_word_embeddings", "tie", False),
        "norm": {"kind": "layer", "eps": eps, "bias": True, "place": "parallel" if parallel else "pre"},
        "blocks": equal_blocks(config, attention, ffn),
    }


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = {"embed": load("gpt_neox.embed_in.weight")} | _with_bias("final_norm", "gpt_neox.final_layer_norm")
    if not spec.tie:
        table["head"] = load(tensors.first("embed_out.weight", "lm_head.weight"))
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"gpt_neox.layers.{layer.index}"
        table |= _with_bias(f"{ours}.attn_norm", f"{theirs}.input_layernorm")
        table |= _with_bias(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
        table |= _heads(layer, f"{ours}.attn", f"{theirs}.attention.query_key_value")
        output = _with_bias(f"{ours}.attn.o", f"{theirs}.attention.dense")
        table |= output if layer.attention.bias else {f"{ours}.attn.o": output[f"{ours}.attn.o"]}
        table |= _with_bias(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h")
        table |= _with_bias(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h")
    return table


def _heads(layer: Layer, ours: str, theirs: str) -> dict[str, Recipe]:
    """Take q, k and v out of the one product [heads, (q, k, v), head_dim]."""
    heads, size, width = layer.attention.heads, layer.attention.head_dim, layer.width
    table: dict[str, Recipe] = {}
    for place, name in enumerate("qkv"):
        weight = reshape(load(f"{theirs}.weight"), heads, 3, size, width)
        table[f"{ours}.{name}"] = reshape(rows(weight, place, place + 1, axis=1), heads * size, width)
        if layer.attention.bias:
            bias = reshape(load(f"{theirs}.bias", 3 * heads * size), heads, 3, size)
            table[f"{ours}.{name}_bias"] = reshape(rows(bias, place, place + 1, axis=1), heads * size)
    return table


def _with_bias(ours: str, theirs: str) -> dict[str, Recipe]:
    return {ours: load(f"{theirs}.weight"), f"{ours}_bias": load(f"{theirs}.bias")}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    return publish_base(spec, "gpt_neox", "GPTNeoXForCausalLM") | publish_plain_ffn(layer) | {
        "layer_norm_eps": layer.norm.eps,
        "attention_bias": bool(layer.attention.bias),
        "use_parallel_residual": layer.norm.place == "parallel",
    }


FAMILY = Family(
    model_types=("gpt_neox",),
    title="GPT-NeoX, Pythia",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={
        "*.attention.bias": "the causal mask",
        "*.attention.masked_bias": "the causal mask",
        "*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration",
    },
    source="arXiv:2204.06745",
)
