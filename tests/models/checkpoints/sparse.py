"""Configurations of the families with mixtures of experts, with awkward dims."""

from __future__ import annotations

from typing import Any

from tests.models.checkpoints.making import Example

__all__ = ["SPARSE"]

YARN = {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 9000.0, "factor": 2.5}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 9000.0, "factor": 2.5}
DEEPSEEK = YARN | {"mscale": 0.8, "mscale_all_dim": 0.7, "beta_fast": 24, "beta_slow": 2}


def longrope(dims: int) -> dict[str, Any]:
    """Factors for ``dims`` rotated dims."""
    short, long = ([1 + i / by for i in range(dims // 2)] for by in (50, 3))
    return {"rope_type": "longrope", "rope_theta": 8000.0, "factor": 4.0, "original_max_position_embeddings": 80,
            "short_factor": short, "long_factor": long}


def base(**keys: Any) -> dict[str, Any]:
    """Keys that all have: three layers, 6 heads over a width of 84, an odd vocabulary."""
    return {
        "vocab_size": 197,
        "hidden_size": 84,
        "intermediate_size": 58,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "num_experts_per_tok": 2,
    } | keys


def mixtral(**keys: Any) -> dict[str, Any]:
    """Mixtral with 5 experts."""
    return base(num_local_experts=5, head_dim=18, num_hidden_layers=2) | keys


def qwen2(**keys: Any) -> dict[str, Any]:
    """Qwen2-MoE with 7 experts of 30 dims and a shared one of 46."""
    own = base(num_experts=7, moe_intermediate_size=30, num_experts_per_tok=3, shared_expert_intermediate_size=46)
    return own | keys


def qwen3(**keys: Any) -> dict[str, Any]:
    """Qwen3-MoE with 7 experts of 30 dims."""
    return base(num_experts=7, moe_intermediate_size=30, head_dim=18, num_experts_per_tok=3) | keys


def granite(**keys: Any) -> dict[str, Any]:
    """Granite MoE with every multiplier."""
    return base(num_local_experts=5, num_hidden_layers=2, embedding_multiplier=7.5, residual_multiplier=0.31,
                attention_multiplier=0.21, logits_scaling=3.3) | keys


def gpt_oss(**keys: Any) -> dict[str, Any]:
    """gpt-oss: every other layer slides."""
    return base(num_local_experts=5, head_dim=18, sliding_window=9, num_hidden_layers=4) | keys


def deepseek(**keys: Any) -> dict[str, Any]:
    """DeepSeek-V2 and V3: latents of 28, heads of 14 + 10 and 12 dims, 12 experts, the first layer dense."""
    return base(num_key_value_heads=6, n_routed_experts=12, n_shared_experts=2, moe_intermediate_size=26,
                kv_lora_rank=28, q_lora_rank=34, qk_nope_head_dim=14, qk_rope_head_dim=10, v_head_dim=12,
                first_k_dense_replace=1, num_experts_per_tok=3, routed_scaling_factor=1.7) | keys


def glm(**keys: Any) -> dict[str, Any]:
    """GLM-4.5: half of 20 dims rotate, 12 experts."""
    return base(n_routed_experts=12, n_shared_experts=1, moe_intermediate_size=26, head_dim=20, first_k_dense_replace=1,
                num_experts_per_tok=3, routed_scaling_factor=1.3) | keys


SPARSE = (
    Example("mixtral", "window", mixtral(sliding_window=11), whole=True),
    Example("mixtral", "older form, tied, yarn", mixtral(tie_word_embeddings=True, rope_parameters=YARN), older=True),
    Example("mixtral", "linear rope, gelu, all experts",
            mixtral(hidden_act="gelu", rope_parameters=LINEAR, num_experts_per_tok=5)),
    Example("qwen2_moe", "shared expert", qwen2(), whole=True),
    Example("qwen2_moe", "older form, tied, every second layer",
            qwen2(tie_word_embeddings=True, decoder_sparse_step=2, norm_topk_prob=True, num_hidden_layers=4),
            older=True, drop=("layer_types", "qkv_bias")),
    Example("qwen2_moe", "windows, no biases, a plain layer, yarn",
            qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=3, num_hidden_layers=4, qkv_bias=False,
                  mlp_only_layers=[1], rope_parameters=YARN)),
    Example("qwen3_moe", "norm of heads", qwen3(norm_topk_prob=True), whole=True),
    Example("qwen3_moe", "older form, plain layers, gates of all", qwen3(mlp_only_layers=[0, 2]), older=True),
    Example("qwen3_moe", "window, biases, llama3 rope",
            qwen3(use_sliding_window=True, sliding_window=9, attention_bias=True, rope_parameters=LLAMA3,
                  tie_word_embeddings=True)),
    Example("granitemoe", "multipliers", granite(tie_word_embeddings=True), whole=True),
    Example("granitemoe", "older form, biases, dynamic rope",
            granite(attention_bias=True, rope_parameters=DYNAMIC, num_key_value_heads=6), older=True),
    Example("gpt_oss", "sinks and windows", gpt_oss(max_position_embeddings=131072), whole=True, context=256),
    Example("gpt_oss", "older form, no biases, tied",
            gpt_oss(attention_bias=False, tie_word_embeddings=True, swiglu_limit=0.7,
                    rope_parameters=YARN | {"truncate": False}),
            older=True, drop=("layer_types",)),
    Example("gpt_oss", "three windows in a row, long rope",
            gpt_oss(layer_types=["sliding_attention"] * 3 + ["full_attention"], rope_parameters=longrope(18),
                    swiglu_alpha=1.2), context=80),
    Example("deepseek_v2", "limited groups, yarn",
            deepseek(topk_method="group_limited_greedy", n_group=4, topk_group=2, rope_parameters=DEEPSEEK),
            whole=True),
    Example("deepseek_v2", "older form, greedy, no query latent, biases",
            deepseek(q_lora_rank=None, attention_bias=True,
                     rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}),
            older=True, add={"moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": False, "ep_size": 1,
                             "aux_loss_alpha": 0.001, "seq_aux": True, "pretraining_tp": 1}),
    Example("deepseek_v2", "plain rope, tied, no dense layer",
            deepseek(first_k_dense_replace=0, tie_word_embeddings=True, n_shared_experts=1, num_hidden_layers=2)),
    Example("deepseek_v3", "limited groups, yarn",
            deepseek(n_group=4, topk_group=2, rope_parameters=DEEPSEEK), whole=True),
    Example("deepseek_v3", "older form, one group, no query latent",
            deepseek(n_group=1, topk_group=1, q_lora_rank=None, norm_topk_prob=False,
                     rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}), older=True,
            add={"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "ep_size": 1,
                 "aux_loss_alpha": 0.001, "seq_aux": True}),
    Example("deepseek_v3", "halves rotate, all groups, biases",
            deepseek(n_group=3, topk_group=3, rope_interleave=False, attention_bias=True, rope_parameters=LINEAR)),
    Example("glm4_moe", "half of the dims rotate", glm(attention_bias=True, use_qk_norm=True), whole=True),
    Example("glm4_moe", "older form, limited groups, tied",
            glm(n_group=4, topk_group=2, tie_word_embeddings=True, norm_topk_prob=False), older=True),
    Example("glm4_moe", "yarn over a quarter",
            glm(rope_parameters=YARN | {"partial_rotary_factor": 0.25}, n_shared_experts=2, num_hidden_layers=2,
                first_k_dense_replace=0, head_dim=24)),
)
