"""The configuration as a spec, the table against the model, and a key that nobody knows."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnic.errors import BundleError, InputError
from omnic.models.checkpoints.checkpoint import open_checkpoint

CONFIG = {
    "model_type": "arcee", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 5000.0,
}


def checkpoint(folder, **keys):
    shapes = {"model.embed_tokens": (61, 24), "model.norm": (24,), "lm_head": (61, 24)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{n}": (24,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}.self_attn.{n}_proj": (24 if n in "qo" else 12, 24) for n in "qkvo"}
        shapes |= {f"{prefix}.mlp.up_proj": (40, 24), f"{prefix}.mlp.down_proj": (24, 40)}
    random = np.random.default_rng(0)
    save_file({f"{n}.weight": random.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
              folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | keys))
    return folder


def test_it_is_read_whole(tmp_path):
    found = open_checkpoint(checkpoint(tmp_path))
    assert found.unread == ()
    assert [(a.heads, a.kv_heads, a.head_dim, a.rope.base) for a in [found.spec.layers()[1].attention]] == [
        (4, 2, 6, 5000.0)
    ]
    assert found.spec.layers()[1].ffn.activation == "relu2"


def test_a_key_that_nobody_knows_is_named(tmp_path):
    assert open_checkpoint(checkpoint(tmp_path, mlp_gain=2)).unread == ("mlp_gain",)


def test_what_it_cannot_say_is_refused(tmp_path):
    with pytest.raises(InputError, match='omnic cannot express hidden_act = "silu"'):
        open_checkpoint(checkpoint(tmp_path, hidden_act="silu"))


def test_tensors_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BundleError, match=r"8 missing: model\.layers\.0\.self_attn\.q_proj\.bias"):
        open_checkpoint(checkpoint(tmp_path, attention_bias=True))
