"""LoRA adapters merge as PEFT merges them: w + (alpha / r) B A, whatever a family does to the tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnic.compiler.adapters import parse_adapter, with_adapters
from omnic.compiler.importing import import_checkpoint
from omnic.compiler.pipeline import CompileRequest, compile_spec, open_weights
from omnic.errors import BundleError, InputError
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.models.checkpoints.checkpoint import open_checkpoint
from omnic.models.checkpoints.lora import open_adapter
from omnic.spec import load_spec
from tests.models.checkpoints import quantised as made

RANK = 4
Q, DOWN, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens"


def _base(folder: Path) -> dict[str, Any]:
    """Write a plain checkpoint in f16; return its numbers."""

    def method(random: np.random.Generator, rows: int, columns: int) -> made.Made:
        weight = (random.standard_normal((rows, columns)) / 8).astype(np.float16)
        return {"weight": weight}, weight.astype(np.float64)

    numbers = made.write(folder, {}, method)
    (folder / "config.json").write_text(json.dumps(made.CONFIG))
    return numbers


def _adapter(folder: Path, modules: Mapping[str, tuple[int, int]], **keys: Any) -> dict[str, tuple[Any, Any]]:
    """Write an adapter of random numbers; return A and B of each module in f64."""
    random, tensors, parts = np.random.default_rng(1), {}, dict[str, tuple[Any, Any]]()
    for module, (outputs, inputs) in modules.items():
        rank = keys.get("rank_pattern", {}).get(module.rsplit(".", 1)[-1], RANK)
        a = random.standard_normal((rank, inputs)).astype(np.float32)
        b = random.standard_normal((outputs, rank)).astype(np.float32)
        names = (".lora_embedding_A", ".lora_embedding_B") if module == EMBED else (".lora_A.weight", ".lora_B.weight")
        tensors |= {f"base_model.model.{module}{n}": x for n, x in zip(names, (a, b), strict=True)}
        parts[module] = (a.astype(np.float64), b.astype(np.float64))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 6,
        "bias": "none",
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.1,
        "use_dora": False,
        "modules_to_save": None,
    } | keys
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return parts


def _merged(model: Path, *adapters: tuple[Path, float]) -> WeightStore:
    checkpoint = open_checkpoint(model)
    source = with_adapters(checkpoint.spec, checkpoint.module, checkpoint.source, adapters)
    return WeightStore.loaded(checkpoint.module, source)


def _near(found: Any, wanted: Any) -> None:
    """f16 weights hold the sum rounded once; the sum in f32 may fall on the other side of a tie."""
    np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=1e-6)


def test_weights_are_the_sum_that_peft_makes(tmp_path: Path) -> None:
    numbers = _base(tmp_path / "model")
    parts = _adapter(tmp_path / "adapter", {Q: (64, 64), DOWN: (64, 96)})
    store = _merged(tmp_path / "model", (tmp_path / "adapter", 1.0))
    for module, ours in ((Q, "blocks.0.attn.q"), (DOWN, "blocks.1.ffn.down")):
        a, b = parts[module]
        wanted = numbers[f"{module}.weight"] + 6 / RANK * (b @ a)
        _near(store.array(ours), wanted)
        _near(store.array(ours, (5, 9)), wanted[5:9])
    np.testing.assert_array_equal(store.array("blocks.1.attn.q"), numbers[Q.replace(".0.", ".1.") + ".weight"])


def test_scales_follow_patterns_rslora_and_strength(tmp_path: Path) -> None:
    numbers = _base(tmp_path / "model")
    keys = {"rank_pattern": {"down_proj": 9}, "alpha_pattern": {"layers.1.mlp.down_proj": 2}, "use_rslora": True}
    parts = _adapter(tmp_path / "adapter", {Q: (64, 64), DOWN: (64, 96)}, **keys)
    store = _merged(tmp_path / "model", (tmp_path / "adapter", 0.5), (tmp_path / "adapter", 0.25))
    for module, ours, scale in ((Q, "blocks.0.attn.q", 6 / 2), (DOWN, "blocks.1.ffn.down", 2 / 3)):
        a, b = parts[module]
        _near(store.array(ours), numbers[f"{module}.weight"] + 0.75 * scale * (b @ a))


def test_an_embedding_adds_the_turned_product(tmp_path: Path) -> None:
    numbers = _base(tmp_path / "model")
    a, b = _adapter(tmp_path / "adapter", {EMBED: (made.CONFIG["hidden_size"], made.CONFIG["vocab_size"])})[EMBED]
    store = _merged(tmp_path / "model", (tmp_path / "adapter", 1.0))
    _near(store.array("embed"), numbers[f"{EMBED}.weight"] + 6 / RANK * (b @ a).T)


def test_tensors_that_a_family_turns_and_cuts(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=24, n_head=2, n_layer=1, vocab_size=53, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "model")
    module = "transformer.h.0.attn.c_attn"
    a, b = _adapter(tmp_path / "adapter", {module: (72, 24)}, fan_in_fan_out=True)[module]
    store = _merged(tmp_path / "model", (tmp_path / "adapter", 1.0))
    fused = model.transformer.h[0].attn.c_attn.weight.detach().double().numpy().T + 6 / RANK * (b @ a)
    for i, name in enumerate("qkv"):
        np.testing.assert_allclose(
            store.array(f"blocks.0.attn.{name}"), fused[24 * i : 24 * i + 24], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("link", [True, False])
def test_an_imported_model_takes_adapters_by_their_published_names(link: bool, tmp_path: Path) -> None:
    numbers = _base(tmp_path / "checkpoint")
    a, b = _adapter(tmp_path / "adapter", {Q: (64, 64)})[Q]
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "model", link=link)
    spec = load_spec(tmp_path / "model" / "spec.yaml")
    store, origin = open_weights(build(spec), spec, None, None, None, ((tmp_path / "adapter", 1.0),))
    _near(store.array("blocks.0.attn.q"), numbers[f"{Q}.weight"] + 6 / RANK * (b @ a))
    assert origin["lora"][0]["strength"] == 1.0
    assert origin["sha256"] != open_weights(build(spec), spec, None, None)[1]["sha256"]


def test_a_compile_merges_before_it_quantises(tmp_path: Path) -> None:
    _base(tmp_path / "checkpoint")
    _adapter(tmp_path / "adapter", {Q: (64, 64)})
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "model")
    spec = load_spec(tmp_path / "model" / "spec.yaml")
    lora = ((tmp_path / "adapter", 1.0),)
    bundle = compile_spec(CompileRequest(spec, "torch", tmp_path / "bundle", threads=1, lora=lora))
    assert bundle.json("parity.json")["ok"]


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    about = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    made.write(tmp_path / "model", about, made.gptq())
    _adapter(tmp_path / "adapter", {Q: (64, 64)})
    with pytest.raises(InputError) as caught:
        _merged(tmp_path / "model", (tmp_path / "adapter", 1.0))
    assert "blocks.0.attn.q is quantised (i4<g32>), and what an adapter adds to it has no place" in caught.value.message
    assert caught.value.hint == (
        "import the checkpoint that is not quantised, and quantise after merging: --pass int4-packing"
    )


@pytest.mark.parametrize(
    ("modules", "keys", "message"),
    [
        ({Q.replace(".0.", ".7."): (64, 64)}, {}, "the model has no model.layers.7.self_attn.q_proj"),
        ({Q: (64, 32)}, {}, r"it adds \[64, 32\] to model.layers.0.self_attn.q_proj.weight, which is \[64, 64\]"),
        ({Q: (64, 64)}, {"use_dora": True}, "cannot merge an adapter with use_dora: DoRA scales the columns"),
        ({Q: (64, 64)}, {"modules_to_save": ["lm_head"]}, "with modules_to_save: it holds whole modules"),
        ({Q: (64, 64)}, {"bias": "all"}, 'cannot merge an adapter with bias = "all"'),
        ({Q: (64, 64)}, {"peft_type": "LOHA"}, "is a 'LOHA' adapter; omnic merges LORA"),
        ({Q: (64, 64)}, {"r": 8}, r"is \[4, 64\] and .* \[64, 4\], not \[8, inputs\] and \[outputs, 8\]"),
        ({Q: (64, 64)}, {"init_lora_weights": "pissa_niter_4"}, "was trained from a changed base"),
        ({Q: (64, 64)}, {"use_magic": True}, "omnic does not know the key 'use_magic'"),
    ],
)
def test_what_cannot_be_merged_is_refused(modules: Any, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    _base(tmp_path / "model")
    _adapter(tmp_path / "adapter", modules, **keys)
    with pytest.raises((InputError, BundleError), match=message):
        _merged(tmp_path / "model", (tmp_path / "adapter", 1.0))


def test_a_folder_that_is_no_adapter_and_a_pickled_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a LoRA adapter: it has no adapter_config\.json"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"has no adapter_model\.safetensors"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="are a Python pickle"):
        open_adapter(tmp_path)


def test_the_strength_is_a_number_behind_an_equals_sign() -> None:
    assert parse_adapter("a/b") == (Path("a/b"), 1.0)
    assert parse_adapter("a=b/c=0.5") == (Path("a=b/c"), 0.5)
    with pytest.raises(InputError, match="--lora a=much: 'much' is not a number"):
        parse_adapter("a=much")
