"""Files of a checkpoint: shards and their index, damage told in one error, memory far below the model's size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic.errors import BundleError
from omnic.ir.weights import WeightStore
from omnic.models.checkpoints.checkpoint import open_checkpoint
from tests.models.checkpoints import quantised as made

Q = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def _plain(folder: Path) -> dict[str, Any]:
    def method(random: np.random.Generator, rows: int, columns: int) -> made.Made:
        weight = (random.standard_normal((rows, columns)) / 8).astype(np.float16)
        return {"weight": weight}, weight.astype(np.float64)

    numbers = made.write(folder, {}, method)
    (folder / "config.json").write_text(json.dumps(made.CONFIG))
    return numbers


def _sharded(folder: Path) -> dict[str, str]:
    """Cut the checkpoint in two shards with an index; return where each tensor lies."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in halves.items():
        save_file({n: tensors[n] for n in held}, folder / file)
    where = {n: file for file, held in halves.items() for n in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def _error(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        open_checkpoint(folder)
    return caught.value


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    numbers = _plain(tmp_path)
    _sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    store = WeightStore.loaded(checkpoint.module, checkpoint.source)
    np.testing.assert_array_equal(store.array("blocks.0.attn.q"), numbers[Q])
    np.testing.assert_array_equal(store.array("head", (7, 9)), numbers["lm_head.weight"][7:9])


def test_a_truncated_shard(tmp_path: Path) -> None:
    _plain(tmp_path)
    _sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    error = _error(tmp_path)
    assert error.message.startswith(f"{shard} is truncated: tensor '")
    assert error.hint == "fetch or write the file again"


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    _plain(tmp_path)
    _sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    error = _error(tmp_path)
    assert error.message == f"{tmp_path / INDEX} names model-00002-of-00002.safetensors, which does not lie beside it"
    assert error.hint == "fetch the missing shard"


def test_a_tensor_that_lies_in_two_shards(tmp_path: Path) -> None:
    _plain(tmp_path)
    _sharded(tmp_path)
    first, second = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(second) | {"lm_head.weight": np.zeros((101, 64), np.float16)}, second)
    assert _error(tmp_path).message == f"tensor 'lm_head.weight' is in {first} and in {second}"


def test_an_index_that_is_damaged(tmp_path: Path) -> None:
    _plain(tmp_path)
    _sharded(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": ')
    assert _error(tmp_path).message.startswith(f"{tmp_path / INDEX} is not an index of safetensors files: ")


def test_a_tensor_that_the_index_has_and_no_shard(tmp_path: Path) -> None:
    _plain(tmp_path)
    where = _sharded(tmp_path)
    shard = tmp_path / where[Q]
    save_file({n: t for n, t in load_file(shard).items() if n != Q}, shard)
    assert f"1 missing: {Q}" in _error(tmp_path).message


def test_missing_extra_and_misshapen_tensors_are_told_together(tmp_path: Path) -> None:
    _plain(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[Q], tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:90]
    tensors["model.layers.5.mlp.up_proj.weight"] = np.ones((96, 64), np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert _error(tmp_path).message.split("configuration: ")[1] == (
        f"2 missing: model.norm.weight, {Q}; 1 of another shape than the configuration says: "
        "lm_head.weight [90, 64] (for head [101, 64]); 1 that the architecture does not have: "
        "model.layers.5.mlp.up_proj.weight"
    )


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    _plain(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    error = _error(tmp_path)
    assert error.message == (
        f"the weights of {tmp_path} are Python pickles (pytorch_model.bin): reading one runs code from it"
    )
    assert "save_pretrained(OUT), which writes safetensors" in str(error.hint)


def test_a_bias_of_zeros_that_quantisers_write_is_no_difference(tmp_path: Path) -> None:
    _plain(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = "model.layers.0.self_attn.q_proj.bias"
    save_file(tensors | {bias: np.zeros(64, np.float16)}, tmp_path / "model.safetensors")
    open_checkpoint(tmp_path)
    save_file(tensors | {bias: np.ones(64, np.float16)}, tmp_path / "model.safetensors")
    assert f"1 that the architecture does not have: {bias}" in _error(tmp_path).message


_IMPORT = """
import sys
from pathlib import Path
from omnic.compiler.importing import import_checkpoint
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM of /proc")
def test_an_import_holds_three_of_the_largest_tensor_at_most(tmp_path: Path) -> None:
    """1.5 GB of bf16 in five shards; the largest tensor has 100 MB."""
    folder, width, hidden, layers, vocab = tmp_path / "model", 2048, 8192, 9, 25600
    folder.mkdir()
    keys = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
    (folder / "config.json").write_text(json.dumps(made.CONFIG | keys))
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    where: dict[str, str] = {}
    pool = (np.random.default_rng(0).standard_normal(vocab * width, np.float32) / 50).astype(ml_dtypes.bfloat16)

    def put(file: str, tensors: dict[str, tuple[int, ...]]) -> None:
        held = {n: pool[: int(np.prod(s))].reshape(s) for n, s in tensors.items()}
        save_file(held, folder / file)
        where.update(dict.fromkeys(held, file))

    put(
        "model-0.safetensors",
        {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width), "model.norm.weight": (width,)},
    )
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        norms = {f"{stem}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
        put(f"model-{layer + 1}.safetensors", norms | {f"{stem}.{n}.weight": s for n, s in shapes.items()})
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert total > 1.4e9
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    peak, largest = 1024 * int(done.stdout.split()[-1]), vocab * width * 2
    print(f"peak {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, checkpoint {total / 1e6:.0f} MB")
    assert peak <= 3 * largest + 500e6
