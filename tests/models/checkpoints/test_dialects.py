"""Quantised checkpoints: codes are the file's codes, numbers the method's own, and every backend runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic.compiler.importing import import_checkpoint
from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.errors import BundleError
from omnic.ir import packing
from omnic.ir.graph import Recipe
from omnic.ir.reference import ReferenceSession
from omnic.ir.types import DType
from omnic.ir.weights import SafetensorsSource, WeightStore
from omnic.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects import quantised_source
from omnic.models.checkpoints.source import CheckpointSource
from omnic.passes.base import make_pass, run_pass
from omnic.passes.context import PassContext
from omnic.spec import load_spec
from tests.models.checkpoints import quantised as made

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
AO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}}


def _about(kind: str, **data: Any) -> Callable[[str], dict[str, str]]:
    entry = {
        "_type": kind,
        "_data": {"block_size": [1, 32], **data},
        "_tensor_data_names": ["qdata", "scale", "zero_point"],
    }
    return lambda stem: {f"{stem}.weight": json.dumps(entry)}


#: name -> (quantization_config, method, metadata, type of q, type of down)
METHODS: Mapping[str, tuple[dict[str, Any], Any, Any, str, str]] = {
    "gptq-sym": (GPTQ, made.gptq(), None, "i4<g32>", "i4<g32>"),
    "gptq-asym": (GPTQ | {"sym": False}, made.gptq(sym=False), None, "i4<g32, asym>", "i4<g32, asym>"),
    "gptq-v2": (
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        made.gptq(sym=False, v2=True),
        None,
        "i4<g32, asym>",
        "i4<g32, asym>",
    ),
    "gptq-8-bit": (GPTQ | {"bits": 8, "sym": False}, made.gptq(8, sym=False), None, "i8<g32, asym>", "i8<g32, asym>"),
    "gptq-2-bit": (GPTQ | {"bits": 2, "sym": False}, made.gptq(2, sym=False), None, "i2<g32, asym>", "i2<g32, asym>"),
    "gptq-whole-rows": (GPTQ | {"group_size": -1}, made.gptq(group=-1), None, "i4<row>", "i4<row>"),
    "gptq-act-order": (
        GPTQ | {"desc_act": True, "sym": False},
        made.gptq(sym=False, act_order=True),
        None,
        "i4<g32, asym>",
        "i4<g32, asym>",
    ),
    "awq": (AWQ, made.awq(), None, "i4<g32, asym>", "i4<g32, asym>"),
    "nf4": (BNB, made.bnb_nf4(), None, "nf4<row, f32>", "nf4<g32, f32>"),
    "nf4-double": (
        BNB | {"bnb_4bit_use_double_quant": True},
        made.bnb_nf4(32, double=True),
        None,
        "nf4<g32, f32>",
        "nf4<g32, f32>",
    ),
    "nf4-in-bf16": (BNB, made.bnb_nf4(storage=ml_dtypes.bfloat16), None, "nf4<row, f32>", "nf4<g32, f32>"),
    "int8": (BNB | {"load_in_4bit": False, "load_in_8bit": True}, made.bnb_int8, None, "i8<row, f32>", "i8<row, f32>"),
    "torchao-int4": (AO, made.torchao_int4, _about("Int4Tensor"), "i4<g32, f32>", "i4<g32, f32>"),
    "torchao-intx": (
        AO,
        made.torchao_intx(),
        _about("IntxUnpackedToInt8Tensor", target_dtype={"_data": "int4"}),
        "i4<g32, f32>",
        "i4<g32, f32>",
    ),
    "torchao-intx-asym": (
        AO,
        made.torchao_intx(asym=True),
        _about("IntxUnpackedToInt8Tensor", target_dtype={"_data": "int4"}),
        "i4<g32, asym, f32>",
        "i4<g32, asym, f32>",
    ),
    "torchao-int8": (AO, made.torchao_intx(8), _about("Int8Tensor"), "i8<g32, f32>", "i8<g32, f32>"),
}


def _opened(name: str, folder: Path) -> tuple[Checkpoint, WeightStore, dict[str, Any]]:
    about, method, metadata, *_ = METHODS[name]
    numbers = made.write(folder, about, method, metadata)
    checkpoint = open_checkpoint(folder, name="quantised")
    return checkpoint, WeightStore.loaded(checkpoint.module, checkpoint.source), numbers


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_those_of_the_methods_own_formula(name: str, tmp_path: Path) -> None:
    checkpoint, store, numbers = _opened(name, tmp_path)
    assert not checkpoint.unread
    have = set(store.module.weights)
    for layer in range(made.LAYERS):
        for module, ours in made.PRODUCTS.items():
            weight = f"blocks.{layer}.{ours}"
            found = packing.decode(store.quantised(weight), np.float64)
            if f"{weight}.offset" in have:
                found = found + np.repeat(store.array(f"{weight}.offset").astype(np.float64), 32, axis=1)
            if f"{weight}.order" in have:
                turned = np.empty_like(found)
                turned[:, store.array(f"{weight}.order")] = found
                found = turned
            np.testing.assert_array_equal(found, numbers[f"model.layers.{layer}.{module}.weight"])
    np.testing.assert_array_equal(store.array("embed"), numbers["model.embed_tokens.weight"])
    assert str(store.module.weights["blocks.0.attn.q"].type.element) == METHODS[name][3]
    assert str(store.module.weights["blocks.0.ffn.down"].type.element) == METHODS[name][4]


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_read_alone_as_they_are_among_all(name: str, tmp_path: Path) -> None:
    _, store, _ = _opened(name, tmp_path)
    whole = store.parts("blocks.1.attn.k")
    for start, stop in ((0, 1), (3, 14), (31, 32)):
        for suffix, part in store.parts("blocks.1.attn.k", (start, stop)).items():
            np.testing.assert_array_equal(part, whole[suffix][start:stop])
    source = store.source
    assert source is not None
    for suffix, part in whole.items():
        box = tuple((0, d) for d in part.shape)
        np.testing.assert_array_equal(source.read(f"blocks.1.attn.k{suffix}", box), part)


def test_codes_are_the_codes_of_the_file(tmp_path: Path) -> None:
    _, store, _ = _opened("gptq-asym", tmp_path)
    words = load_file(tmp_path / "model.safetensors")["model.layers.0.self_attn.q_proj.qweight"].view(np.uint32)
    found = store.quantised("blocks.0.attn.q").codes
    for inputs, row in ((0, 0), (13, 5), (63, 63)):
        assert found[row, inputs] + 8 == words[inputs // 8, row] >> np.uint32(4 * (inputs % 8)) & np.uint32(15)


def _logits(folder: Path) -> Any:
    checkpoint = open_checkpoint(folder, name="model")
    store = WeightStore.loaded(checkpoint.module, checkpoint.source)
    session = ReferenceSession(store.module, store, batch=2)
    tokens = np.random.default_rng(3).integers(0, made.VOCAB, (2, 9))
    return session.forward(tokens).logits


@pytest.mark.parametrize("name", ["gptq-act-order", "torchao-int4", "nf4"])
def test_logits_are_those_of_the_unquantised_model_of_these_numbers(name: str, tmp_path: Path) -> None:
    _, _, numbers = _opened(name, tmp_path / "quantised")
    made.plain(tmp_path / "plain", numbers)
    np.testing.assert_allclose(_logits(tmp_path / "quantised"), _logits(tmp_path / "plain"), rtol=2e-6, atol=2e-6)


#: of each way a backend decodes, one that the fast suite compiles
COMPILED = ("gptq-act-order", "awq", "nf4", "torchao-int4")


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_every_backend_runs_them_in_class(name: str, target: str, tmp_path: Path) -> None:
    _opened(name, tmp_path / "checkpoint")
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "model")
    spec = load_spec(tmp_path / "model" / "spec.yaml")
    bundle = compile_spec(CompileRequest(spec, target, tmp_path / "bundle", threads=1))
    parity = bundle.json("parity.json")
    assert parity["ok"], parity


def test_packing_leaves_what_is_quantised_and_says_so(tmp_path: Path) -> None:
    _, store, _ = _opened("torchao-int4", tmp_path)
    result = run_pass(store.module, make_pass("int4-packing", {"method": "rtn"}), PassContext(weights=store))
    before, after = store.module.weights, result.module.weights
    assert all(before[n].type == after[n].type for n in before if n not in ("embed", "head"))
    assert any("14 weights stay i4<g32, f32>: they are quantised already" in r.message for r in result.remarks)


def _stack(folder: Path, **parts: Any) -> tuple[Any, Any]:
    tensors, numbers = made.mxfp4(np.random.default_rng(5), (3, 8, 64))
    named = {f"experts.gate_up_proj{part}": array for part, array in tensors.items()} | parts
    save_file(named, folder / "model.safetensors")
    config = Config({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "config.json")
    return quantised_source(SafetensorsSource(folder / "model.safetensors"), config, "config.json"), numbers


def test_mxfp4_is_e2m1_numbers_times_powers_of_two(tmp_path: Path) -> None:
    source, numbers = _stack(tmp_path)
    assert str(source.typed("experts.gate_up_proj")) == "fp4<g32, e8m0>[3, 8, 64]"
    found = source.quantised("experts.gate_up_proj", (0, 3))
    np.testing.assert_array_equal(packing.decode(found, np.float64), numbers)
    np.testing.assert_array_equal(source.quantised("experts.gate_up_proj", (1, 2)).codes, found.codes[1:2])


def test_mxfp4_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    import torch
    from transformers.integrations import mxfp4

    tensors, numbers = made.mxfp4(np.random.default_rng(5), (3, 8, 64))
    blocks, scales = (torch.from_numpy(tensors[part]) for part in ("_blocks", "_scales"))
    turned = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float64)
    np.testing.assert_array_equal(turned.numpy().swapaxes(1, 2), numbers)


def test_gate_and_up_of_mxfp4_are_every_other_row_as_codes(tmp_path: Path) -> None:
    source, numbers = _stack(tmp_path)
    both = Recipe("load", {"name": "experts.gate_up_proj"})
    recipe = Recipe("slice", {"axis": 1, "start": 1, "stop": 8, "step": 2}, (both,))
    up = CheckpointSource(source, {"up": recipe}, DType.BF16, "a checkpoint")
    assert str(up.typed("up")) == "fp4<g32, e8m0>[3, 4, 64]"
    np.testing.assert_array_equal(packing.decode(up.quantised("up", (0, 3)), np.float64), numbers[:, 1::2])


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    bad = np.full((3, 8, 2), 255, np.uint8)
    source, _ = _stack(tmp_path, **{"experts.gate_up_proj_scales": bad})
    up = CheckpointSource(source, {"up": Recipe("load", {"name": "experts.gate_up_proj"})}, DType.BF16, "a checkpoint")
    with pytest.raises(BundleError, match=r"'experts.gate_up_proj.scale' of .* holds NaN or infinite scales"):
        up.quantised("up", (0, 3))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["int4", "int8"])
def test_what_torchao_saves_is_read_as_it_dequantises(config: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from torchao import quantization

    keys = {k: v for k, v in made.CONFIG.items() if k not in ("model_type", "architectures")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    how = (
        quantization.IntxWeightOnlyConfig(torch.int4, quantization.PerGroup(32))
        if config == "int4"
        else quantization.Int8WeightOnlyConfig()
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.bfloat16, quantization_config=transformers.TorchAoConfig(how)
    )
    theirs.save_pretrained(tmp_path / "quantised")
    checkpoint = open_checkpoint(tmp_path / "quantised")
    store = WeightStore.loaded(checkpoint.module, checkpoint.source)
    assert not checkpoint.unread
    for module, ours in made.PRODUCTS.items():
        weight = theirs.get_submodule(f"model.layers.1.{module}").weight
        wanted = weight.dequantize().float().numpy()
        # torchao rounds its product to bf16; ours is the product itself.
        found = torch.from_numpy(store.array(f"blocks.1.{ours}")).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(found, wanted)
