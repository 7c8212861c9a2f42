"""DeepSeek-V2: latent attention, softmax routers that may be limited to the best groups."""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import base_keys, decoder_table
from omnic.models.checkpoints.families.mixtures import (
    activation_of,
    group_keys,
    layered,
    llama_norms,
    mixture_layer,
    mixture_table,
)
from omnic.models.checkpoints.families.publishing import publish_latent
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import attention_scale, rope_of
from omnic.models.checkpoints.tensors import load, reshape, rows
from omnic.spec import Layer, Spec

__all__ = ["latent_keys", "latent_table"]

#: eps of the norms of the latents, whatever rms_norm_eps is
_LATENT_EPS = 1e-6


def latent_keys(config: Config, context: int, *, interleaved: bool) -> dict[str, Any]:
    """Return a latent attention (arXiv:2405.04434, section 2.1).

    Args:
        config: read.
        context: the trained length.
        interleaved: pairs of rotated dims are neighbours.
    """
    place = "blocks.attention"
    heads = config.whole("num_attention_heads", f"{place}.heads")
    config.only("num_key_value_heads", heads, "the latent makes a key and a value for each head")
    nope, rotated = (
        config.whole("qk_nope_head_dim", f"{place}.nope_dim", 128),
        config.whole("qk_rope_head_dim", f"{place}.rope_dim", 64),
    )
    config.ignore("qk_nope_head_dim, qk_rope_head_dim and v_head_dim say it", "head_dim", "qk_head_dim")
    scale = attention_scale(config, nope + rotated)
    return {
        "kind": "mla",
        "heads": heads,
        "latent": config.whole("kv_lora_rank", f"{place}.latent", 512),
        "nope_dim": nope,
        "rope_dim": rotated,
        "v_dim": config.whole("v_head_dim", f"{place}.v_dim", 128),
        "q_latent": config.whole("q_lora_rank", f"{place}.q_latent", None if config.given("q_lora_rank") else 1536),
        "norm_eps": _LATENT_EPS,
        "bias": config.flag("attention_bias", f"{place}.bias", False),
        "rope": rope_of(config, rotated, context, interleaved=interleaved),
    } | ({} if scale is None else {"scale": scale})


def latent_table(layer: Layer, ours: str, theirs: str) -> dict[str, Recipe]:
    """Return the weights of a latent attention; ``kv_b_proj`` holds a key and a value matrix for each head."""
    attention = layer.attention
    heads, latent, nope, value = attention.heads, attention.latent, attention.nope_dim, attention.v_dim
    assert latent is not None
    assert nope is not None
    assert value is not None
    both = reshape(load(f"{theirs}.kv_b_proj.weight"), heads, nope + value, latent)
    table = {
        f"{ours}.kv_a": load(f"{theirs}.kv_a_proj_with_mqa.weight"),
        f"{ours}.kv_norm": load(f"{theirs}.kv_a_layernorm.weight"),
        f"{ours}.w_k": rows(both, 0, nope, axis=1),
        f"{ours}.w_v": rows(both, nope, nope + value, axis=1),
        f"{ours}.o": load(f"{theirs}.o_proj.weight"),
    }
    if attention.q_latent:
        table |= {
            f"{ours}.q_a": load(f"{theirs}.q_a_proj.weight"),
            f"{ours}.q_a_norm": load(f"{theirs}.q_a_layernorm.weight"),
            f"{ours}.q_b": load(f"{theirs}.q_b_proj.weight"),
        }
    else:
        table[f"{ours}.q"] = load(f"{theirs}.q_proj.weight")
    if attention.bias:
        table |= {
            f"{ours}.kv_a_bias": load(f"{theirs}.kv_a_proj_with_mqa.bias"),
            f"{ours}.o_bias": load(f"{theirs}.o_proj.bias"),
        }
        if attention.q_latent:
            table[f"{ours}.q_a_bias"] = load(f"{theirs}.q_a_proj.bias")
    return table


def _describe(config: Config) -> dict[str, Any]:
    base = base_keys(config)
    attention = latent_keys(config, base["context"], interleaved=True)
    config.only("scoring_func", "softmax", "the scores of this family")
    config.only("norm_topk_prob", False, "transformers does not do it in this family")
    config.only("mlp_bias", False, "the experts have no biases")
    config.ignore("it spreads a training over devices", "ep_size")
    config.ignore("how a product was cut in training; the same numbers", "pretraining_tp")
    count = config.whole("n_routed_experts", "blocks.ffn.experts", 64)
    method = config.raw("topk_method", "blocks.ffn.groups", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise InputError(
            f"{config.origin}: omnic cannot express topk_method = {method}", "it knows greedy, group_limited_greedy"
        )
    if method == "greedy":
        config.ignore("topk_method is greedy: of all groups", "n_group", "topk_group")
    experts = {
        "kind": "moe",
        "hidden": config.whole("moe_intermediate_size", "blocks.ffn.hidden", 1407),
        "activation": activation_of(config),
        "experts": count,
        "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k"),
        "shared": config.whole("n_shared_experts", "blocks.ffn.shared", 2),
        "renormalise": False,
        "gate_scale": config.number("routed_scaling_factor", "blocks.ffn.gate_scale", 1.0),
    } | (group_keys(config, count) if method == "group_limited_greedy" else {})
    return base | {"blocks": layered(config, attention, mixture_layer(config, experts, dense=0))}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | latent_table(layer, f"{ours}.attn", f"{theirs}.self_attn")
        table |= mixture_table(layer, ours, f"{theirs}.mlp", tensors)
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    found = publish_latent(spec, "deepseek_v2", "DeepseekV2ForCausalLM")
    method = "greedy" if found["n_group"] == 1 else "group_limited_greedy"
    return found | {"topk_method": method, "norm_topk_prob": False}


FAMILY = Family(
    model_types=("deepseek_v2",),
    title="DeepSeek-V2",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    source="arXiv:2405.04434",
)
