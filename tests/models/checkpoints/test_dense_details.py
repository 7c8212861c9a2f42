"""Names that published files of a family differ in, tensors without meaning, and numbers of 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic.errors import BundleError
from omnic.ir.types import DType
from omnic.ir.weights import WeightStore
from omnic.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from tests.models.checkpoints.dense import DENSE
from tests.models.checkpoints.making import Example, write_checkpoint

BY_NAME = {str(e): e for e in DENSE}
FILE = "model.safetensors"


def made(name: str, folder: Path) -> Path:
    example: Example = BY_NAME[name]
    return write_checkpoint(example, folder)


def numbers(found: Checkpoint) -> dict[str, np.ndarray]:
    store = WeightStore.loaded(found.module, found.source)
    return {name: store.array(name) for name in store.module.weights}


def renamed(folder: Path, rename: Callable[[str], str], extra: dict[str, np.ndarray] | None = None) -> None:
    tensors = load_file(folder / FILE)
    save_file({rename(n): t for n, t in tensors.items()} | (extra or {}), folder / FILE)


MASK = np.ones((1, 1, 4, 4), np.float32)
OTHER_NAMES: dict[str, tuple[Callable[[str], str], dict[str, np.ndarray]]] = {
    "gpt2-tied": (lambda n: n.removeprefix("transformer."), {"h.0.attn.bias": MASK, "h.1.attn.masked_bias": MASK}),
    "gpt_neox-parallel": (
        lambda n: n,
        {"gpt_neox.layers.0.attention.bias": MASK, "gpt_neox.layers.1.attention.rotary_emb.inv_freq": np.ones(4)},
    ),
    "llama-llama3_rope": (lambda n: n, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(10)}),
    "gemma3-with_pictures": (
        lambda n: n.replace("language_model.model.", "model.language_model.").replace("vision_", "model.vision_"),
        {},
    ),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_are_the_same_weights(name: str, tmp_path: Path) -> None:
    rename, extra = OTHER_NAMES[name]
    folder = made(name, tmp_path)
    wanted = numbers(open_checkpoint(folder))
    before = set(load_file(folder / FILE))
    renamed(folder, rename, extra)
    assert set(load_file(folder / FILE)) != before
    found = numbers(open_checkpoint(folder))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[n], wanted[n]) for n in wanted)


def test_a_tensor_that_means_something_is_no_extra(tmp_path: Path) -> None:
    folder = made("llama-llama3_rope", tmp_path)
    renamed(folder, lambda n: n, {"model.layers.0.self_attn.q_proj.bias": np.ones(120, np.float32)})
    with pytest.raises(BundleError, match=r"1 that the architecture does not have: model\.layers\.0\.self_attn\.q_pr"):
        open_checkpoint(folder)


def test_gemmas_norms_become_f32_in_a_model_of_16_bits(tmp_path: Path) -> None:
    folder = made("gemma2-softcaps_window", tmp_path)
    half = {n: t.astype(ml_dtypes.bfloat16) for n, t in load_file(folder / FILE).items()}
    save_file(half, folder / FILE)
    found = open_checkpoint(folder)
    store = WeightStore.loaded(found.module, found.source)
    assert found.spec.dtype == "bf16"
    kinds = {name: weight.type.element for name, weight in store.module.weights.items()}
    assert {kinds[n] for n in kinds if n.endswith("norm")} == {DType.F32}
    assert {kinds[n] for n in kinds if not n.endswith("norm")} == {DType.BF16}
    theirs = half["model.layers.1.pre_feedforward_layernorm.weight"].astype(np.float32)
    assert np.array_equal(store.array("blocks.1.ffn_norm"), 1 + theirs)


def test_nanochats_heads_are_turned_by_their_halves(tmp_path: Path) -> None:
    folder = made("nanochat-grouped_heads", tmp_path)
    theirs, ours = load_file(folder / FILE), numbers(open_checkpoint(folder))
    for name, heads in (("q", 6), ("k", 2)):
        swapped = theirs[f"model.layers.1.self_attn.{name}_proj.weight"].reshape(heads, 2, 10, 96)[:, ::-1]
        assert np.array_equal(ours[f"blocks.1.attn.{name}"], swapped.reshape(heads * 20, 96))
    assert np.array_equal(ours["blocks.1.attn.v"], theirs["model.layers.1.self_attn.v_proj.weight"])
