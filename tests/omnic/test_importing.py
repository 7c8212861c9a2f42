"""A published checkpoint through `omnic import`: what is written, linked or copied, and wrong inputs word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic.cli import main
from omnic.compiler.importing import import_checkpoint
from omnic.compiler.pipeline import open_weights
from omnic.compiler.weight_files import weight_source, write_weights
from omnic.errors import BundleError, InputError, OmnicError
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import parse_type
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {"model.embed_tokens.weight": (61, 24), "model.norm.weight": (24,), "lm_head.weight": (61, 24)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (24,),
            f"{at}.post_attention_layernorm.weight": (24,),
            f"{at}.self_attn.q_proj.weight": (18, 24),
            f"{at}.self_attn.k_proj.weight": (6, 24),
            f"{at}.self_attn.v_proj.weight": (6, 24),
            f"{at}.self_attn.o_proj.weight": (24, 18),
            f"{at}.mlp.gate_proj.weight": (40, 24),
            f"{at}.mlp.up_proj.weight": (40, 24),
            f"{at}.mlp.down_proj.weight": (24, 40),
        }
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "Some Model 1B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), folder / "model.safetensors")
    return folder


def test_a_copy_holds_the_same_numbers_under_omnics_names(checkpoint: Path, tmp_path: Path) -> None:
    report = import_checkpoint(checkpoint, tmp_path / "out")
    spec = load_spec(str(report.spec))
    assert (spec.model, spec.capacity, spec.dtype) == ("Some-Model-1B", 64, "f32")
    store, _ = open_weights(build(spec), spec, None, None)
    theirs = tensors()
    assert np.array_equal(store.array("blocks.1.ffn.up"), theirs["model.layers.1.mlp.up_proj.weight"])
    assert set(load_file(tmp_path / "out" / "weights.safetensors")) == set(build(spec).weights)
    assert report.unread == ()


def test_a_link_reads_the_checkpoint_where_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    report = import_checkpoint(checkpoint, tmp_path / "out", link=True, context=32)
    spec = load_spec(str(report.spec))
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    assert spec.capacity == 32
    store, origin = open_weights(build(spec), spec, None, None)
    assert np.array_equal(store.array("head"), tensors()["lm_head.weight"])
    save_file(tensors(np.float16), checkpoint / "model.safetensors")
    assert open_weights(build(spec), spec, None, None)[1]["sha256"] != origin["sha256"]


def test_wider_tensors_keep_their_type(checkpoint: Path, tmp_path: Path) -> None:
    numbers = tensors(ml_dtypes.bfloat16)
    exact = np.linspace(1, 1.001, 24, dtype=np.float32)
    numbers["model.norm.weight"] = exact
    save_file(numbers, checkpoint / "model.safetensors")
    report = import_checkpoint(checkpoint, tmp_path / "out")
    spec = load_spec(str(report.spec))
    assert spec.dtype == "bf16"
    store, _ = open_weights(build(spec), spec, None, None)
    assert str(store.module.weights["final_norm"].type) == "f32[24]"
    assert np.array_equal(store.array("final_norm"), exact)
    assert str(store.module.weights["head"].type) == "bf16[61, 24]"


def test_codes_go_through_a_file_unchanged(tmp_path: Path) -> None:
    spec = load_spec("tiny")
    front = build(spec)
    name = "blocks.0.attn.q"
    weight = front.weights[name]
    shape = ", ".join(str(d) for d in weight.type.shape)
    typed = retype_weights(front, {name: (parse_type(f"i4<g32, asym>[{shape}]"), weight.recipe)})
    store = WeightStore.random(typed, 3)
    write_weights(store, tmp_path / "w.safetensors")
    again = WeightStore.loaded(front, weight_source(tmp_path / "w.safetensors"))
    assert str(again.module.weights[name].type) == str(typed.weights[name].type)
    before, after = store.quantised(name).parts(), again.quantised(name).parts()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert np.array_equal(again.array("blocks.1.attn.q"), store.array("blocks.1.attn.q"))


def test_every_key_is_told(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | {"shiny_new_thing": 3, "use_cache": True}))
    assert main(["import", str(checkpoint), "-o", str(tmp_path / "out"), "--explain"]) == 0
    out, error = capsys.readouterr()
    assert "blocks.attention.rope.base" in out
    assert "UNKNOWN: omnic does not know this key" in out
    assert "warning: omnic does not know the key 'shiny_new_thing' of config.json: it may change the model" in error
    assert "use_cache" not in error


def wrong(checkpoint: Path, tmp_path: Path) -> OmnicError:
    with pytest.raises((BundleError, InputError)) as found:
        import_checkpoint(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / "spec.yaml").exists()
    return found.value


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = wrong(tmp_path / "empty", tmp_path)
    assert error.message == f"{tmp_path}/empty is not a model: it has no config.json"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert wrong(tmp_path / "nowhere", tmp_path).message == f"{tmp_path}/nowhere is not a folder"


def test_an_unknown_family(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | {"model_type": "lama"}))
    error = wrong(checkpoint, tmp_path)
    assert error.message == f"{checkpoint}/config.json: omnic knows no family 'lama'; did you mean 'llama'?"


def test_pickled_weights(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    error = wrong(checkpoint, tmp_path)
    assert error.message == (
        f"the weights of {checkpoint} are Python pickles (pytorch_model.bin): reading one runs code from it"
    )
    assert error.hint is not None and "save_pretrained" in error.hint


def test_a_truncated_file(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is truncated: tensor" in wrong(checkpoint, tmp_path).message


def test_missing_extra_and_misshapen_together(checkpoint: Path, tmp_path: Path) -> None:
    numbers = tensors()
    del numbers["model.layers.1.mlp.up_proj.weight"]
    numbers["model.layers.0.self_attn.q_proj.weight"] = np.zeros((24, 18), np.float32)
    numbers["model.layers.0.self_attn.q_proj.bias"] = np.ones(18, np.float32)
    save_file(numbers, checkpoint / "model.safetensors")
    assert wrong(checkpoint, tmp_path).message == (
        f"{checkpoint}/model.safetensors: tensors do not fit the configuration: "
        "1 missing: model.layers.1.mlp.up_proj.weight; 1 of another shape than the configuration says: "
        "model.layers.0.self_attn.q_proj.weight [24, 18] (for blocks.0.attn.q [18, 24]); "
        "1 that the architecture does not have: model.layers.0.self_attn.q_proj.bias"
    )


def test_a_value_that_cannot_be_expressed(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "mish"}))
    assert wrong(checkpoint, tmp_path).message == (
        f'{checkpoint}/config.json: omnic cannot express hidden_act = "mish"'
    )


def test_what_is_there_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, tmp_path / "out")
    with pytest.raises(InputError, match=r"spec\.yaml exists"):
        import_checkpoint(checkpoint, tmp_path / "out")
    import_checkpoint(checkpoint, tmp_path / "out", force=True)
