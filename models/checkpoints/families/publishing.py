"""The way back: keys of a configuration that many families share, from a spec.

What a function here cannot say need not be caught: the configuration is read again, and any difference from the spec
is an error (:func:`omnic.models.checkpoints.publish.publish`).
"""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.spec import Dense, Layer, Rope, Spec

__all__ = ["publish_base", "publish_ffn", "publish_rope", "publish_windows"]


def publish_rope(rope: Rope) -> dict[str, Any]:
    """Return ``rope_parameters`` of a layer's rope (the spec's)."""
    found: dict[str, Any] = {"rope_theta": rope.base, "rope_type": "default"}
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
        "dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[spec.dtype],
        "initializer_range": spec.init.std,
    }
    return found if attention.rope is None else found | {"rope_parameters": publish_rope(attention.rope)}


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
