"""Phi-3, Phi-3.5 and Phi-4: the Llama layout with q, k, v in one matrix and gate and up in another; long rope."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    decoder_table,
    equal_blocks,
    gated_ffn,
    windowed,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import load, rows
from omnic.spec import Dense, Spec


def _describe(config: Config) -> dict[str, Any]:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.only(key, False, "the architecture has no biases")
    config.only("full_attn_mod", 1, "every layer is alike")
    config.only("interpolate_factor", 1, "positions are those of the text")
    config.assume(original_max_position_embeddings=4096)
    base, attention = base_keys(config, eps=1e-5), attention_keys(config)
    attention["rope"] = rope_of(config, attention["head_dim"], base["context"])
    if "scaling" not in attention["rope"]:
        config.ignore("of a scaling, and there is none", "original_max_position_embeddings")
    attention = windowed(config, attention, config.whole("num_hidden_layers", "blocks.repeat"))
    return base | {"blocks": equal_blocks(config, attention, gated_ffn(config))}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs, attention = f"blocks.{layer.index}", f"model.layers.{layer.index}", layer.attention
        assert isinstance(layer.ffn, Dense)
        qkv, gate_up = load(f"{theirs}.self_attn.qkv_proj.weight"), load(f"{theirs}.mlp.gate_up_proj.weight")
        queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        table |= {
            f"{ours}.attn_norm": load(f"{theirs}.input_layernorm.weight"),
            f"{ours}.attn.q": rows(qkv, 0, queries),
            f"{ours}.attn.k": rows(qkv, queries, queries + keys),
            f"{ours}.attn.v": rows(qkv, queries + keys, queries + 2 * keys),
            f"{ours}.attn.o": load(f"{theirs}.self_attn.o_proj.weight"),
            f"{ours}.ffn_norm": load(f"{theirs}.post_attention_layernorm.weight"),
            f"{ours}.ffn.gate": rows(gate_up, 0, layer.ffn.hidden),
            f"{ours}.ffn.up": rows(gate_up, layer.ffn.hidden, 2 * layer.ffn.hidden),
            f"{ours}.ffn.down": load(f"{theirs}.mlp.down_proj.weight"),
        }
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    window = {"sliding_window": publish_windows(spec)["sliding_window"]}
    rope = layer.attention.rope
    scaled = {"original_max_position_embeddings": rope.scaling.original_context} if rope and rope.scaling else {}
    return publish_base(spec, "phi3", "Phi3ForCausalLM") | publish_ffn(layer) | window | scaled | {"pad_token_id": None}


FAMILY = Family(
    model_types=("phi3",),
    title="Phi-3, Phi-3.5, Phi-4 (mini)",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={"*.rotary_emb.*": "rope frequencies, which follow from the configuration"},
    source="arXiv:2404.14219, arXiv:2503.01743",
)
