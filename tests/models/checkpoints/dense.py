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

DENSE = (*LLAMA,)
