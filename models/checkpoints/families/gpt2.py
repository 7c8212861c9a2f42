"""GPT-2: learned positions, one product for queries, keys and values, matrices stored as [inputs, outputs]."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import PLAIN, block_groups
from omnic.models.checkpoints.families.publishing import DTYPES, publish_plain_ffn
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.tensors import load, rows, transpose
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    width, heads = config.whole("n_embd", "blocks.width"), config.whole("n_head", "blocks.attention.heads", least=1)
    context = config.whole("n_positions", "context and position_table")
    config.ignore("n_positions says the same", "n_ctx")
    config.ignore("where products are rounded in training; the same numbers", "reorder_and_upcast_attn")
    config.only("add_cross_attention", False, "a decoder reads its own tokens")
    hidden = config.whole("n_inner", "blocks.ffn.hidden", None)
    ffn = {
        "kind": "dense",
        "hidden": 4 * width if hidden is None else hidden,
        "activation": config.choice("activation_function", "blocks.ffn.activation", PLAIN, "gelu_new"),
    }
    attentions = [
        {"kind": "mha", "heads": heads, "head_dim": width // heads, "rope": None} | scale
        for scale in _scales(config, width // heads, config.whole("n_layer", "blocks.repeat"))
    ]
    return {
        "vocab": {"size": config.whole("vocab_size", "vocab.size")},
        "context": context,
        "position_table": context,
        "tie": config.flag("tie_word_embeddings", "tie", True),
        "bias": True,
        "norm": {"kind": "layer", "eps": config.number("layer_norm_epsilon", "norm.eps", 1e-5)},
        "blocks": block_groups([{"width": width, "attention": a, "ffn": ffn} for a in attentions]),
    }


def _scales(config: Config, head_dim: int, layers: int) -> list[dict[str, float]]:
    """Return the factor of the attention logits of each layer, nothing where it is the usual one."""
    effect = "blocks.attention.scale"
    scaled = config.flag("scale_attn_weights", effect, True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", effect, False)
    if scaled and not by_layer:
        return [{}] * layers
    return [{"scale": (head_dim**-0.5 if scaled else 1.0) / (i + 1 if by_layer else 1)} for i in range(layers)]


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    prefix = "" if "wte.weight" in tensors else "transformer."
    table = {"embed": load(f"{prefix}wte.weight"), "positions": load(f"{prefix}wpe.weight")}
    table |= _norm("final_norm", f"{prefix}ln_f")
    if not spec.tie:
        table["head"] = load("lm_head.weight")
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"{prefix}h.{layer.index}"
        table |= _norm(f"{ours}.attn_norm", f"{theirs}.ln_1") | _norm(f"{ours}.ffn_norm", f"{theirs}.ln_2")
        fused = f"{theirs}.attn.c_attn"
        for place, name in enumerate("qkv"):
            part = place * layer.width, (place + 1) * layer.width
            table[f"{ours}.attn.{name}"] = rows(transpose(load(f"{fused}.weight")), *part)
            table[f"{ours}.attn.{name}_bias"] = rows(load(f"{fused}.bias"), *part)
        table |= _linear(f"{ours}.attn.o", f"{theirs}.attn.c_proj")
        table |= _linear(f"{ours}.ffn.up", f"{theirs}.mlp.c_fc") | _linear(f"{ours}.ffn.down", f"{theirs}.mlp.c_proj")
    return table


def _norm(ours: str, theirs: str) -> dict[str, Recipe]:
    return {ours: load(f"{theirs}.weight"), f"{ours}_bias": load(f"{theirs}.bias")}


def _linear(ours: str, theirs: str) -> dict[str, Recipe]:
    return {ours: transpose(load(f"{theirs}.weight")), f"{ours}_bias": load(f"{theirs}.bias")}


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    dense = publish_plain_ffn(layer)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.vocab.size,
        "n_positions": spec.context,
        "n_embd": spec.width,
        "n_layer": len(spec.layers()),
        "n_head": layer.attention.heads,
        "n_inner": dense["intermediate_size"],
        "activation_function": dense["hidden_act"],
        "layer_norm_epsilon": layer.norm.eps,
        "tie_word_embeddings": spec.tie,
        "scale_attn_weights": layer.attention.scale != 1.0,
        "dtype": DTYPES[spec.dtype],
    }


FAMILY = Family(
    model_types=("gpt2",),
    title="GPT-2",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={"*.attn.bias": "the causal mask", "*.attn.masked_bias": "the causal mask"},
    source="Radford et al., Language Models are Unsupervised Multitask Learners, 2019",
)
