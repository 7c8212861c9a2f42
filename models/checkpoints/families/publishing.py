"""The way back: keys of a configuration that many families share, from a spec.

What a function here cannot say need not be caught: the configuration is read again, and any difference from the spec
is an error (:func:`omnic.models.checkpoints.publish.publish`).
"""

from __future__ import annotations

import math
from typing import Any

from omnic.errors import InputError
from omnic.spec import Dense, Layer, MoE, Rope, Spec

__all__ = [
    "DTYPES",
    "publish_base",
    "publish_experts",
    "publish_ffn",
    "publish_latent",
    "publish_limited",
    "publish_multipliers",
    "publish_plain_ffn",
    "publish_rope",
    "publish_scored",
    "publish_sparse",
    "publish_switched_windows",
    "publish_windows",
]

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def publish_rope(rope: Rope, spec: Spec) -> dict[str, Any]:
    """Return ``rope_parameters`` of a layer's rope."""
    attention = spec.layers()[0].attention
    found: dict[str, Any] = {"rope_theta": rope.base, "rope_type": "default"}
    whole = attention.head_dim if attention.rope_dim is None else attention.rope_dim
    if rope.dims != whole:
        found["partial_rotary_factor"] = rope.dims / whole
    scaling = rope.scaling
    if scaling is None:
        return found
    found |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return found
    found["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        return found | {"low_freq_factor": scaling.beta_slow, "high_freq_factor": scaling.beta_fast}
    if scaling.kind == "yarn":
        keys = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        return found | {k: getattr(scaling, k) for k in keys if getattr(scaling, k) is not None}
    if scaling.kind == "longrope":
        # The same factors for short and long texts: which length a spec is for was chosen when it was made.
        factors = list(scaling.factors)
        return found | {"short_factor": factors, "long_factor": factors, "attention_factor": scaling.attention_factor}
    raise InputError(f"transformers has no rope scaling '{scaling.kind}' that is the same for every length")


def publish_base(spec: Spec, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the keys of a configuration that most families share."""
    layer = spec.layers()[0]
    attention = layer.attention
    found: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": spec.vocab.size,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": spec.tie,
        "rms_norm_eps": layer.norm.eps,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers()),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "dtype": DTYPES[spec.dtype],
        "initializer_range": spec.init.std,
    }
    return found if attention.rope is None else found | {"rope_parameters": publish_rope(attention.rope, spec)}


def publish_windows(spec: Spec) -> dict[str, Any]:
    """Return ``sliding_window`` and ``layer_types`` of a spec's layers."""
    sizes = {layer.attention.window for layer in spec.layers()} - {None}
    if len(sizes) > 1:
        raise InputError(f"windows of {len(sizes)} sizes", "published families have one")
    kinds = ["sliding_attention" if layer.attention.window else "full_attention" for layer in spec.layers()]
    return {"sliding_window": next(iter(sizes), None), "layer_types": kinds}


def publish_ffn(layer: Layer) -> dict[str, Any]:
    """Return the keys of a dense gated network."""
    back = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
    if not isinstance(layer.ffn, Dense) or layer.ffn.activation not in back:
        raise InputError(f"no dense gated network in layer {layer.index}")
    return {"intermediate_size": layer.ffn.hidden, "hidden_act": back[layer.ffn.activation]}


def publish_plain_ffn(layer: Layer) -> dict[str, Any]:
    """Return the keys of a dense network of two matrices."""
    back = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu", "relu2": "relu2"}
    if not isinstance(layer.ffn, Dense) or layer.ffn.activation not in back:
        raise InputError(f"no dense network of two matrices in layer {layer.index}")
    return {"intermediate_size": layer.ffn.hidden, "hidden_act": back[layer.ffn.activation]}


def publish_multipliers(spec: Spec) -> dict[str, Any]:
    """Return the factors of Granite."""
    factors, attention = spec.multipliers, spec.layers()[0].attention
    return {
        "embedding_multiplier": factors.embedding,
        "residual_multiplier": factors.residual,
        "logits_scaling": 1.0 / factors.logits,
        "attention_multiplier": attention.head_dim**-0.5 if attention.scale is None else attention.scale,
    }


def publish_switched_windows(spec: Spec) -> dict[str, Any]:
    """Return the windows of Qwen: of the layers from ``max_window_layers`` on."""
    found = publish_windows(spec)
    if found["sliding_window"] is None:
        return {"use_sliding_window": False}
    first = next(i for i, layer in enumerate(spec.layers()) if layer.attention.window)
    return found | {"use_sliding_window": True, "max_window_layers": first}


def publish_experts(
    layer: Layer, *, count: str = "num_experts", hidden: str = "moe_intermediate_size"
) -> dict[str, Any]:
    """Return the keys of a mixture; ``count`` and ``hidden`` are the family's words."""
    back = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
    ffn = layer.ffn
    if not isinstance(ffn, MoE) or ffn.activation not in back:
        raise InputError(f"no mixture of gated experts in layer {layer.index}")
    return {
        count: ffn.routed_experts,
        hidden: ffn.routed_hidden,
        "num_experts_per_tok": ffn.routed_top_k,
        "hidden_act": back[ffn.activation],
    }


def _some_experts(spec: Spec) -> Layer:
    found = next((layer for layer in spec.layers() if isinstance(layer.ffn, MoE)), None)
    if found is None:
        raise InputError("no layer has experts")
    return found


def _dense_hidden(spec: Spec) -> int:
    """Return the hidden dims of the layers without experts, those of the experts where there is none."""
    return next((x.ffn.hidden for x in spec.layers() if isinstance(x.ffn, Dense)), spec.layers()[0].ffn.hidden)


def publish_sparse(spec: Spec) -> dict[str, Any]:
    """Return a mixture of Qwen and which layers lack it."""
    layer = _some_experts(spec)
    assert isinstance(layer.ffn, MoE)
    plain = [x.index for x in spec.layers() if isinstance(x.ffn, Dense)]
    return publish_experts(layer) | {
        "norm_topk_prob": layer.ffn.renormalise,
        "intermediate_size": _dense_hidden(spec),
        "decoder_sparse_step": 1,
        "mlp_only_layers": plain,
    }


def publish_limited(spec: Spec) -> dict[str, Any]:
    """Return a mixture of DeepSeek: shared experts, groups, and the dense layers before."""
    layer = _some_experts(spec)
    ffn = layer.ffn
    assert isinstance(ffn, MoE)
    return publish_experts(layer, count="n_routed_experts") | {
        "n_shared_experts": ffn.shared * ffn.shared_hidden // ffn.routed_hidden,
        "n_group": len(ffn.routed_groups) if ffn.routed_groups else 1,
        "topk_group": ffn.top_groups if ffn.routed_groups else 1,
        "routed_scaling_factor": ffn.gate_scale,
        "intermediate_size": _dense_hidden(spec),
        "first_k_dense_replace": layer.index,
    }


def publish_scored(spec: Spec) -> dict[str, Any]:
    """Return what a mixture of DeepSeek-V3 says beside: how gates are normed."""
    ffn = _some_experts(spec).ffn
    assert isinstance(ffn, MoE)
    return {"norm_topk_prob": ffn.renormalise}


def publish_latent(spec: Spec, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the keys of a DeepSeek: latent attention and a mixture."""
    attention = spec.layers()[0].attention
    if attention.kind != "mla":
        raise InputError(f"attention {attention.kind} is not mla")
    found = publish_base(spec, model_type, architecture) | publish_limited(spec)
    del found["head_dim"]
    if attention.scale is not None and attention.rope is not None and attention.rope.scaling is not None:
        # The temperature of YaRN that DeepSeek puts into the scale: 0.1 m ln(s) + 1, squared.
        root = math.sqrt(attention.scale * math.sqrt(attention.head_dim))
        found["rope_parameters"]["mscale_all_dim"] = (root - 1) / (0.1 * math.log(attention.rope.scaling.factor))
    return found | {
        "kv_lora_rank": attention.latent,
        "q_lora_rank": attention.q_latent,
        "qk_nope_head_dim": attention.nope_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.v_dim,
        "attention_bias": bool(attention.bias),
    }
