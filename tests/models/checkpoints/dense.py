"""Configurations of the dense families, with awkward dims."""

from __future__ import annotations

from typing import Any

from tests.models.checkpoints.making import Example

__all__ = ["DENSE"]

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 9000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 9000.0, "factor": 2.5}


def plain(**keys: Any) -> dict[str, Any]:
    """The keys of the Llama layout: 6 heads of 20 dims over a width of 96."""
    return {
        "vocab_size": 199,
        "hidden_size": 96,
        "intermediate_size": 130,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "max_position_embeddings": 256,
    } | keys


LLAMA = (
    Example("llama", "llama3 rope", plain(rope_parameters=LLAMA3, rms_norm_eps=1e-5), whole=True),
    Example("llama", "older form, tied", plain(rope_parameters=LLAMA3, tie_word_embeddings=True), older=True),
    Example("llama", "biases, linear rope", plain(attention_bias=True, mlp_bias=True, rope_parameters=LINEAR)),
    Example("llama", "older linear rope, no head_dim",
            plain(rope_parameters=LINEAR, head_dim=None, num_attention_heads=4), older=True, drop=("head_dim",)),
    Example("llama", "dynamic rope", plain(rope_parameters=DYNAMIC, hidden_act="gelu_pytorch_tanh")),
    Example("llama", "yarn", plain(rope_parameters=YARN, num_key_value_heads=6)),
    Example("llama", "older yarn", plain(rope_parameters=YARN | {"attention_factor": 1.3}), older=True),
    Example("mistral", "window", plain(sliding_window=11, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
            whole=True),
    Example("mistral", "no window, yarn", plain(sliding_window=None, rope_parameters=YARN)),
)


def gpt2(**keys: Any) -> dict[str, Any]:
    """GPT-2's names: 6 heads of 16 dims."""
    return {"vocab_size": 199, "n_positions": 128, "n_embd": 96, "n_layer": 2, "n_head": 6} | keys


GPT2 = (
    Example("gpt2", "tied", gpt2(n_inner=130), whole=True),
    Example("gpt2", "untied, scaled by layer", gpt2(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True)),
    Example("gpt2", "not scaled, relu", gpt2(n_layer=3, scale_attn_weights=False, activation_function="relu"),
            add={"n_ctx": 128}, drop=("tie_word_embeddings",)),
)


def neox(**keys: Any) -> dict[str, Any]:
    """GPT-NeoX's names: 4 heads of 24 dims."""
    return {
        "vocab_size": 199, "hidden_size": 96, "intermediate_size": 130, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256,
    } | keys


def turned(share: float, **keys: Any) -> dict[str, Any]:
    """Rope parameters of a share of a head's dims."""
    return {"rope_type": "default", "rope_theta": 8000.0, "partial_rotary_factor": share} | keys


GPT_NEOX = (
    Example("gpt_neox", "parallel", neox(rope_parameters=turned(0.5)), whole=True),
    Example("gpt_neox", "not parallel, no biases, tied",
            neox(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True, hidden_act="gelu_new")),
    Example("gpt_neox", "older form", neox(rope_parameters=turned(0.25)), drop=("rope_parameters",),
            add={"rotary_pct": 0.25, "rotary_emb_base": 8000, "torch_dtype": "float32", "rope_scaling": None}),
    Example("gpt_neox", "linear rope", neox(rope_parameters=turned(1.0) | LINEAR)),
    Example("gpt_neox", "dynamic rope", neox(rope_parameters=turned(0.5) | DYNAMIC)),
    Example("gpt_neox", "yarn", neox(rope_parameters=turned(0.5) | YARN)),
)

GRANITE = (
    Example("granite", "multipliers", plain(
        embedding_multiplier=3.5, residual_multiplier=0.22, logits_scaling=1.7, attention_multiplier=0.11,
        rms_norm_eps=1e-5, head_dim=16, attention_bias=True), whole=True),
    Example("granite", "biases, tied, older form", plain(
        head_dim=16, mlp_bias=True, tie_word_embeddings=True, embedding_multiplier=12, attention_multiplier=0.3,
        rope_parameters=LLAMA3), older=True),
)

QWEN2 = (
    Example("qwen2", "window of later layers", plain(
        use_sliding_window=True, sliding_window=11, max_window_layers=1, num_hidden_layers=3, head_dim=20,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}), whole=True),
    Example("qwen2", "window switched off, tied", plain(head_dim=16, sliding_window=11, tie_word_embeddings=True)),
    Example("qwen2", "older yarn", plain(head_dim=16, rope_parameters=YARN, max_position_embeddings=64), older=True,
            drop=("layer_types",)),
    Example("qwen2", "layer types", plain(
        use_sliding_window=True, sliding_window=7, num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"])),
)

QWEN3 = (
    Example("qwen3", "yarn", plain(rope_parameters=YARN), whole=True),
    Example("qwen3", "biases, window, tied", plain(
        attention_bias=True, use_sliding_window=True, sliding_window=9, max_window_layers=0,
        tie_word_embeddings=True, head_dim=28)),
    Example("qwen3", "older form", plain(rope_parameters=LINEAR), older=True, drop=("layer_types",)),
)

DENSE = (*GPT2, *GPT_NEOX, *LLAMA, *GRANITE, *QWEN2, *QWEN3)
