"""DeepSeek-V3 and R1: latent attention, sigmoid routers with a bias that only chooses, a block for further tokens."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import base_keys, decoder_table
from omnic.models.checkpoints.families.deepseek_v2 import latent_keys, latent_table
from omnic.models.checkpoints.families.mixtures import (
    copies_of_the_main_model,
    further_blocks,
    further_table,
    layered,
    left_out_blocks,
    llama_norms,
    mixture_layer,
    mixture_table,
    scored_experts,
)
from omnic.models.checkpoints.families.publishing import publish_latent, publish_scored
from omnic.models.checkpoints.family import Family, Tensors
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base = base_keys(config)
    interleaved = config.flag("rope_interleave", "blocks.attention.rope.interleaved", True)
    attention = latent_keys(config, base["context"], interleaved=interleaved)
    config.ignore("it spreads a training over devices", "ep_size")
    config.ignore("how a product was cut in training; the same numbers", "pretraining_tp")
    experts = scored_experts(config, scale=2.5)
    ffns = mixture_layer(config, experts, dense=3)
    return base | {"blocks": layered(config, attention, ffns)} | further_blocks(config, experts, ffns[-1], default=1)


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | latent_table(layer, f"{ours}.attn", f"{theirs}.self_attn")
        table |= mixture_table(layer, ours, f"{theirs}.mlp", tensors)
    return table | further_table(spec, tensors, latent_table)


def _publish(spec: Spec) -> dict[str, Any]:
    found = publish_latent(spec, "deepseek_v3", "DeepseekV3ForCausalLM") | publish_scored(spec)
    rope = spec.layers()[0].attention.rope
    mtp = {"num_nextn_predict_layers": spec.heads.mtp.depth} if spec.heads.mtp else {"num_nextn_predict_layers": 0}
    return found | {"rope_interleave": bool(rope and rope.interleaved)} | mtp


FAMILY = Family(
    model_types=("deepseek_v3",),
    title="DeepSeek-V3, DeepSeek-R1",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={"*.rotary_emb.inv_freq": "rope frequencies, which follow from the configuration"},
    copies=copies_of_the_main_model,
    left_out=left_out_blocks,
    source="arXiv:2412.19437",
)
