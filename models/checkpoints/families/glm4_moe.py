"""GLM-4.5 and 4.6."""

from __future__ import annotations

from typing import Any

from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import attention_keys, base_keys
from omnic.models.checkpoints.families.mixtures import (
    copies_of_the_main_model,
    further_blocks,
    further_table,
    layered,
    left_out_blocks,
    mixture_layer,
    mixtures_table,
    scored_experts,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_limited, publish_scored
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config, eps=1e-5), attention_keys(config)
    attention |= {
        "bias": "qkv" if config.flag("attention_bias", "blocks.attention.bias", False) else False,
        "qk_norm": config.flag("use_qk_norm", "blocks.attention.qk_norm", False),
        "rope": rope_of(config, attention["head_dim"], base["context"], partial=0.5),
    }
    experts = scored_experts(config)
    ffns = mixture_layer(config, experts, dense=1)
    return base | {"blocks": layered(config, attention, ffns)} | further_blocks(config, experts, ffns[-1], default=1)


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    return mixtures_table(spec, tensors) | further_table(spec, tensors)


def _publish(spec: Spec) -> dict[str, Any]:
    first = spec.layers()[0].attention
    base = publish_base(spec, "glm4_moe", "Glm4MoeForCausalLM")
    share = (first.rope.dims if first.rope else first.head_dim) / first.head_dim
    rope = base.get("rope_parameters", {}) | {"partial_rotary_factor": share}
    own = {"attention_bias": first.bias == "qkv", "use_qk_norm": bool(first.qk_norm), "rope_parameters": rope}
    mtp = {"num_nextn_predict_layers": spec.heads.mtp.depth if spec.heads.mtp else 0}
    return base | publish_limited(spec) | publish_scored(spec) | own | mtp


FAMILY = Family(
    model_types=("glm4_moe",),
    title="GLM-4.5",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    copies=copies_of_the_main_model,
    left_out=left_out_blocks,
    source="arXiv:2508.06471",
)
