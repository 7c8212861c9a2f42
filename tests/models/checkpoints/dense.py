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
    Example("qwen2", "older yarn", plain(head_dim=16, rope_parameters=YARN, max_position_embeddings=128), older=True,
            drop=("layer_types",)),
    Example("qwen2", "beyond the trained length", plain(
        head_dim=16, rope_parameters=YARN, max_position_embeddings=64), context=256, tokens=90),
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

SLIDING, FULL = "sliding_attention", "full_attention"


def gemma(**keys: Any) -> dict[str, Any]:
    """Gemma's names; heads of 28 dims, queries scaled as if they had 24."""
    return plain(head_dim=28, query_pre_attn_scalar=24, sliding_window=11) | keys


GEMMA2 = (
    Example("gemma2", "softcaps, window", gemma(attn_logit_softcapping=3.0, final_logit_softcapping=2.5), whole=True),
    Example("gemma2", "no softcaps, biases, untied", gemma(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, tie_word_embeddings=False,
        num_hidden_layers=3, rope_parameters=LINEAR)),
    Example("gemma2", "older form", gemma(num_hidden_layers=3), older=True,
            drop=("layer_types", "tie_word_embeddings", "attn_logit_softcapping", "final_logit_softcapping"),
            add={"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
    Example("gemma2", "layer types", gemma(num_hidden_layers=3, layer_types=[SLIDING, SLIDING, FULL])),
)

GEMMA3_ROPE = {SLIDING: {"rope_type": "default", "rope_theta": 900.0}, FULL: LINEAR}
GEMMA3 = (
    Example("gemma3_text", "two ropes, window", gemma(layer_types=[SLIDING, FULL], rope_parameters=GEMMA3_ROPE),
            whole=True),
    Example("gemma3_text", "scaled local rope, softcaps, untied", gemma(
        layer_types=[FULL, SLIDING, SLIDING], num_hidden_layers=3, tie_word_embeddings=False,
        attn_logit_softcapping=3.0, final_logit_softcapping=2.5, attention_bias=True,
        rope_parameters={SLIDING: YARN, FULL: {"rope_type": "default", "rope_theta": 1e5}})),
    Example("gemma3_text", "older form", gemma(num_hidden_layers=3), drop=("layer_types", "rope_parameters"),
            add={"sliding_window_pattern": 3, "rope_theta": 50000.0, "rope_local_base_freq": 700.0,
                 "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "cache_implementation": "hybrid"}),
    Example("gemma3_text", "bases beside the ropes", gemma(), drop=("layer_types", "rope_parameters"),
            add={"_sliding_window_pattern": 2, "sliding_window_pattern": 2, "rope_theta": 50000.0,
                 "rope_local_base_freq": 700.0, "rope_parameters": {
                     FULL: {"rope_type": "linear", "factor": 8.0}, SLIDING: {"rope_type": "default"}}}),
    Example("gemma3_text", "all layers slide", gemma(layer_types=[SLIDING, SLIDING], rope_parameters=GEMMA3_ROPE)),
    Example("gemma3_text", "window of the whole length", gemma(
        layer_types=[SLIDING, FULL], sliding_window=256, rope_parameters=GEMMA3_ROPE)),
    Example("gemma3_text", "no layer slides", gemma(layer_types=[FULL, FULL], rope_parameters=GEMMA3_ROPE)),
    Example("gemma3", "with pictures", {
        "text_config": gemma(layer_types=[SLIDING, FULL], rope_parameters=GEMMA3_ROPE),
        "vision_config": {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4}),
)

SHORT, LONG = [1.0, 1.1, 1.3, 1.7, 2.0, 2.5], [1.0, 2.0, 4.0, 6.5, 9.0, 12.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 9000.0, "short_factor": SHORT, "long_factor": LONG,
            "partial_rotary_factor": 0.75}


def phi(**keys: Any) -> dict[str, Any]:
    """Phi's names; heads of 16 dims, of which a share rotates.  Its padding token has to be one of the vocabulary."""
    return {k: v for k, v in plain(pad_token_id=0).items() if k != "head_dim"} | keys


PHI3 = (
    Example("phi3", "long rope, window", phi(
        rope_parameters=LONGROPE, original_max_position_embeddings=8, sliding_window=11), whole=True),
    Example("phi3", "short rope", phi(rope_parameters=LONGROPE, original_max_position_embeddings=128), context=128),
    Example("phi3", "older long rope, tied", phi(
        rope_parameters=LONGROPE, original_max_position_embeddings=8, tie_word_embeddings=True), older=True,
        add={"sliding_window": 262144, "lm_head_bias": False, "attention_bias": False, "mlp_bias": False,
             "full_attn_mod": 1, "interpolate_factor": 1}),
    Example("phi3", "long rope, factors given", phi(
        rope_parameters=LONGROPE | {"factor": 3.0, "attention_factor": 1.2}, original_max_position_embeddings=8)),
    Example("phi3", "plain rope", phi(num_key_value_heads=6)),
)

OLMO2 = (
    Example("olmo2", "full norms", phi(rope_parameters=LLAMA3), whole=True),
    Example("olmo2", "biases, tied, older form", phi(
        attention_bias=True, tie_word_embeddings=True, num_key_value_heads=6, rms_norm_eps=1e-6), older=True),
)

STARCODER2 = (
    Example("starcoder2", "window", plain(sliding_window=11, rope_parameters=LINEAR), whole=True),
    Example("starcoder2", "no biases, untied", plain(use_bias=False, tie_word_embeddings=False, hidden_act="gelu")),
    Example("starcoder2", "older form", plain(norm_epsilon=1e-4), older=True,
            drop=("tie_word_embeddings",),
            add={"mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True,
                 "attention_softmax_in_fp32": True, "layer_norm_epsilon": 1e-5}),
)


def smol(**keys: Any) -> dict[str, Any]:
    """SmolLM3's names, and a padding token of the vocabulary."""
    return plain(pad_token_id=0) | keys


SMOLLM3 = (
    Example("smollm3", "no positions", smol(
        num_hidden_layers=3, no_rope_layers=[1, 0, 1], rope_parameters={"rope_type": "default", "rope_theta": 5e4}),
        whole=True),
    Example("smollm3", "window without positions", smol(
        num_hidden_layers=5, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9,
        attention_bias=True)),
    Example("smollm3", "every kind of layer", smol(
        num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], layer_types=[FULL, SLIDING, SLIDING, FULL],
        use_sliding_window=True, sliding_window=9, mlp_bias=True, tie_word_embeddings=False)),
    Example("smollm3", "older form", smol(num_hidden_layers=4, rope_parameters=YARN), older=True,
            drop=("layer_types", "no_rope_layers"), add={"max_window_layers": 28}),
)

NANOCHAT = (
    Example("nanochat", "grouped heads", plain(rope_parameters={"rope_type": "default", "rope_theta": 3000.0}),
            whole=True),
    Example("nanochat", "biases, tied, no softcap", plain(
        attention_bias=True, tie_word_embeddings=True, final_logit_softcapping=None, rms_norm_eps=1e-3)),
    Example("nanochat", "linear rope, default softcap", plain(rope_parameters=LINEAR), older=True,
            drop=("final_logit_softcapping",)),
)

DENSE = (*GPT2, *GPT_NEOX, *LLAMA, *GRANITE, *QWEN2, *QWEN3, *GEMMA2, *GEMMA3, *PHI3, *OLMO2, *STARCODER2, *SMOLLM3,
         *NANOCHAT)
