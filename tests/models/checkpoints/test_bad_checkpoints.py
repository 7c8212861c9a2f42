"""Folders that are no checkpoint omnic can read: one clear error each, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnic.errors import BundleError, InputError, OmnicError
from omnic.models.checkpoints.checkpoint import open_checkpoint
from omnic.models.checkpoints.family import families

CONFIG = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BLOCK = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (61, 24),
    "model.norm.weight": (24,),
    "lm_head.weight": (61, 24),
    f"{BLOCK}input_layernorm.weight": (24,),
    f"{BLOCK}post_attention_layernorm.weight": (24,),
    **{f"{BLOCK}self_attn.{n}_proj.weight": (24, 24) for n in "qkvo"},
    f"{BLOCK}mlp.gate_proj.weight": (40, 24),
    f"{BLOCK}mlp.up_proj.weight": (40, 24),
    f"{BLOCK}mlp.down_proj.weight": (24, 40),
}


def config(folder: Path, drop: str = "", **keys: Any) -> Path:
    values = {k: v for k, v in (CONFIG | keys).items() if k != drop}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def tensors(folder: Path, shapes: dict[str, tuple[int, ...]], name: str = "model.safetensors") -> Path:
    save_file({n: np.ones(s, np.float32) for n, s in shapes.items()}, folder / name)
    return folder


def error(folder: Path, kind: type[OmnicError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(folder)
    assert type(caught.value) is kind
    return caught.value.render().replace(str(folder), "DIR")


# -- the folder ---------------------------------------------------------------------------------------------
def test_no_folder(tmp_path: Path) -> None:
    assert error(tmp_path / "gone", BundleError) == (
        "error: DIR is not a folder\n  name the folder that holds config.json and the .safetensors files"
    )


def test_no_configuration(tmp_path: Path) -> None:
    assert error(tensors(tmp_path, SHAPES), BundleError) == (
        "error: DIR is not a model: it has no config.json\n  name the folder that holds it"
    )


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert error(tmp_path, BundleError) == (
        "error: DIR/config.json is not a checkpoint's configuration: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)\n  fetch the file again"
    )


def test_a_configuration_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    assert error(tmp_path, BundleError) == (
        "error: DIR/config.json is not a checkpoint's configuration: it holds no object\n  fetch the file again"
    )


# -- the family ---------------------------------------------------------------------------------------------
def test_no_family(tmp_path: Path) -> None:
    assert error(config(tmp_path, drop="model_type")) == (
        "error: DIR/config.json has no 'model_type'\n  it is not the configuration of a transformers checkpoint"
    )


def test_an_unknown_family(tmp_path: Path) -> None:
    known = ", ".join(sorted(families()))
    assert error(config(tmp_path, model_type="lama")) == (
        "error: DIR/config.json: omnic knows no family 'lama'; did you mean 'llama'?\n"
        f"  known: {known}; a package can add one (docs/models.md)"
    )
    assert error(config(tmp_path, model_type="whisper")).startswith(
        "error: DIR/config.json: omnic knows no family 'whisper'\n  known: "
    )


# -- the keys -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key(tmp_path: Path, key: str) -> None:
    assert error(tensors(config(tmp_path, drop=key), SHAPES)) == (
        f"error: DIR/config.json has no '{key}'\n  the file is of another model, or damaged"
    )


CANNOT = "error: DIR/config.json: omnic cannot express"
BUILD = "error: DIR/config.json describes a model that omnic cannot express:"
SLIDING = ["sliding_attention"]
WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "a whole number": ({"hidden_size": "24"}, 'error: DIR/config.json: hidden_size is "24", not a whole number'),
    "no fraction": ({"hidden_size": 24.0}, "error: DIR/config.json: hidden_size is 24.0, not a whole number"),
    "no truth": ({"vocab_size": True}, "error: DIR/config.json: vocab_size is true, not a whole number"),
    "at least one": ({"hidden_size": 0}, "error: DIR/config.json: hidden_size is 0, less than 1"),
    "not negative": ({"vocab_size": -3}, "error: DIR/config.json: vocab_size is -3, less than 0"),
    "a number": ({"rms_norm_eps": "1e-5"}, 'error: DIR/config.json: rms_norm_eps is "1e-5", not a number'),
    "above nought": (
        {"model_type": "granite", "logits_scaling": 0},
        "error: DIR/config.json: logits_scaling is 0, not above 0",
    ),
    "true or false": ({"attention_bias": 1}, "error: DIR/config.json: attention_bias is 1, not true or false"),
    "a mapping": ({"rope_scaling": [2]}, "error: DIR/config.json: rope_scaling is [2], not a mapping"),
    "a list of words": (
        {"model_type": "mistral", "layer_types": "all"},
        'error: DIR/config.json: layer_types is "all", not a list of words',
    ),
    "a list of numbers": (
        {"model_type": "smollm3", "no_rope_layers": [None]},
        "error: DIR/config.json: no_rope_layers is [null], not a list of numbers",
    ),
    "activation": (
        {"hidden_act": "tanh"},
        f'{CANNOT} hidden_act = "tanh"\n'
        '  it knows "silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new"',
    ),
    "rope": (
        {"rope_scaling": {"type": "proportional", "factor": 2}},
        f'{CANNOT} rope_scaling.type = "proportional"\n'
        '  it knows "default", "linear", "dynamic", "yarn", "llama3", "longrope", "su"',
    ),
    "rope without a factor": (
        {"rope_parameters": {"rope_type": "linear"}},
        "error: DIR/config.json has no 'rope_parameters.factor'\n  the file is of another model, or damaged",
    ),
    "odd dims": (
        {"head_dim": 7},
        "error: DIR/config.json: omnic cannot rotate 7 of the 7 dims of a head\n"
        "  rope turns pairs of dims: head_dim times partial_rotary_factor has to be even",
    ),
    "interleaved": (
        {"rope_interleaved": True},
        f"{CANNOT} rope_interleaved = true\n  only false: the halves of a head rotate against each other",
    ),
    "both directions": (
        {"model_type": "gemma2", "use_bidirectional_attention": True},
        f"{CANNOT} use_bidirectional_attention = true\n  only false: each token attends to what is before it",
    ),
    "a kind of layer": (
        {"model_type": "mistral", "layer_types": ["chunked_attention"]},
        f"{CANNOT} a layer of the kind 'chunked_attention' in layer_types\n"
        "  it knows sliding_attention, full_attention",
    ),
    "too few kinds": (
        {"model_type": "mistral", "num_hidden_layers": 2, "layer_types": SLIDING},
        "error: DIR/config.json: layer_types names 1 layers of 2",
    ),
    "no window": (
        {"model_type": "gemma2", "layer_types": SLIDING, "sliding_window": None},
        "error: DIR/config.json: layer_types has sliding_attention, and there is no sliding_window",
    ),
    "a factor that norms undo": (
        {"model_type": "nanochat", "rope_scaling": {"type": "yarn", "factor": 4}},
        f"{CANNOT} yarn rope for nanochat\n"
        "  its heads are normed after the rotation, which undoes the factor that this scaling puts on them",
    ),
    "heads": ({"num_key_value_heads": 3}, f"{BUILD} kv_heads 3 does not divide heads 4\n  divisors of 4: 1, 2, 4"),
    "two things": (
        {"rms_norm_eps": 0, "rope_theta": -1},
        f"{BUILD} norm.eps must be more than 0, not 0.0; blocks[0].attention.rope.base must be more than 0, not -1.0",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_value_that_does_not_do(tmp_path: Path, name: str) -> None:
    keys, words = WORDS[name]
    assert error(tensors(config(tmp_path, **keys), SHAPES)) == words


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "budget.context 128 is beyond the trained context of 64, and rope is not scaled"),
        ({"rope_scaling": {"type": "yarn", "factor": 1.5}},
         "factor 1.5 reaches 96 tokens, less than budget.context 128"),
        ({"model_type": "gpt2", "n_positions": 64, "n_embd": 24, "n_head": 4, "n_layer": 1},
         "the table of positions has 64 rows, the states hold 128 tokens"),
    ],
    ids=["plain", "yarn", "table"],
)
def test_more_tokens_than_the_positions_reach(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_checkpoint(tensors(config(tmp_path, **keys), SHAPES), context=128)
    assert caught.value.render() == f"error: --context 128: {words}\n  ask for fewer tokens"


def test_keys_that_nobody_knows_are_named_and_the_model_is_read(tmp_path: Path) -> None:
    folder = tensors(config(tmp_path, flux=3, rope_parameters={"rope_type": "default", "turns": 2}), SHAPES)
    found = open_checkpoint(folder)
    assert found.unread == ("flux", "rope_parameters.turns")
    unknown = {e.key: e.value for e in found.effects if not e.effect}
    assert unknown == {"flux": 3, "rope_parameters.turns": 2}


# -- the tensors --------------------------------------------------------------------------------------------
def test_missing_extra_and_misshapen_tensors_are_listed_together(tmp_path: Path) -> None:
    shapes = SHAPES | {f"{BLOCK}mlp.up_proj.weight": (41, 24), "model.extra": (3,), "model.norm.bias": (24,)}
    del shapes["lm_head.weight"], shapes[f"{BLOCK}self_attn.q_proj.weight"]
    assert error(tensors(config(tmp_path), shapes), BundleError) == (
        "error: DIR/model.safetensors: tensors do not fit the configuration: 2 missing: lm_head.weight, "
        "model.layers.0.self_attn.q_proj.weight; 1 of another shape than the configuration says: "
        "model.layers.0.mlp.up_proj.weight [41, 24] (for blocks.0.ffn.up [40, 24]); 2 that the architecture does not "
        "have: model.extra, model.norm.bias\n  the files are of another model than config.json, or incomplete"
    )


def test_no_weights(tmp_path: Path) -> None:
    assert error(config(tmp_path), BundleError) == (
        "error: DIR holds no .safetensors file\n  fetch the weights, or name the folder they lie in"
    )


def test_pickled_weights(tmp_path: Path) -> None:
    (config(tmp_path) / "pytorch_model.bin").write_bytes(b"PK")
    assert error(tmp_path, BundleError) == (
        "error: the weights of DIR are Python pickles (pytorch_model.bin): reading one runs code from it\n"
        "  save it again where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT), which "
        "writes safetensors"
    )


def test_a_truncated_shard(tmp_path: Path) -> None:
    folder, names = config(tmp_path), list(SHAPES)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in parts.items():
        tensors(folder, {n: SHAPES[n] for n in part}, file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(folder).unread == ()
    whole = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(whole[:-10])
    assert error(folder, BundleError) == (
        f"error: DIR/b.safetensors is truncated: tensor 'model.layers.0.self_attn.v_proj.weight' ends at byte "
        f"{len(whole)}, the file has {len(whole) - 10}\n  fetch or write the file again"
    )
    (folder / "b.safetensors").unlink()
    assert error(folder, BundleError) == (
        "error: DIR/model.safetensors.index.json names b.safetensors, which does not lie beside it\n"
        "  fetch the missing shard"
    )
