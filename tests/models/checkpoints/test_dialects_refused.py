"""Quantised checkpoints that cannot be kept exactly, or do not fit themselves: one clear error each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic.errors import BundleError, InputError
from omnic.models.checkpoints.checkpoint import open_checkpoint
from tests.models.checkpoints import quantised as made
from tests.models.checkpoints.test_dialects import AO, AWQ, BNB, GPTQ

STEM = "model.layers.0.self_attn.q_proj"


def _refused(folder: Path, kind: type[Exception] = InputError) -> Any:
    with pytest.raises(kind) as caught:
        open_checkpoint(folder)
    return caught.value


def _changed(folder: Path, drop: tuple[str, ...] = (), **parts: Any) -> None:
    """Drop tensors of one module, or replace them."""
    path = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if n not in {f"{STEM}.{part}" for part in drop}}
    save_file(tensors | {f"{STEM}.{part}": array for part, array in parts.items()}, path)


def test_an_unknown_method_names_the_known_ones(tmp_path: Path) -> None:
    made.write(tmp_path, {"quant_method": "aqlm"}, made.gptq())
    error = _refused(tmp_path)
    assert error.message == f"{tmp_path / 'config.json'}: omnic does not know the quantisation 'aqlm'"
    assert error.hint == (
        "known: awq, bitsandbytes, gptq, mxfp4, torchao; or fetch the checkpoint that is not quantised"
    )


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (GPTQ | {"bits": 3}, "omnic cannot read GPTQ codes of 3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "omnic cannot read GPTQ tensors in the layout 'marlin'"),
        (AWQ | {"version": "gemv"}, "omnic cannot read AWQ tensors in the layout 'gemv'"),
        (AWQ | {"bits": 8}, "omnic cannot express quantization_config.bits = 8"),
        (AWQ | {"zero_point": False}, "omnic cannot express quantization_config.zero_point = false"),
    ],
)
def test_layouts_that_are_not_read(about: dict[str, Any], message: str, tmp_path: Path) -> None:
    made.write(tmp_path, about, made.awq() if about["quant_method"] == "awq" else made.gptq())
    assert _refused(tmp_path).message == f"{tmp_path / 'config.json'}: {message}"


@pytest.mark.parametrize(("about", "method"), [(GPTQ, made.gptq()), (AWQ, made.awq())])
def test_parts_of_a_module_that_are_missing_or_of_another_size(about: Any, method: Any, tmp_path: Path) -> None:
    made.write(tmp_path, about, method)
    _changed(tmp_path, drop=("scales",))
    error = _refused(tmp_path, BundleError)
    assert error.message.endswith(f"tensors of a quantised module are missing: {STEM}.scales")
    _changed(tmp_path, scales=np.ones((3, 64), np.float16))
    error = _refused(tmp_path, BundleError)
    assert f"{STEM}.scales is [3, 64], not [2, 64]" in error.message
    assert error.hint == "the configuration is of another quantisation than the tensors"


def test_groups_of_unequal_sizes(tmp_path: Path) -> None:
    made.write(tmp_path, GPTQ, made.gptq())
    _changed(tmp_path, g_idx=np.array([0] * 30 + [1] * 34, np.int32))
    assert _refused(tmp_path, BundleError).message == f"{STEM}.g_idx does not have 32 inputs in every group"


def test_levels_of_fp4_in_bitsandbytes_are_not_those_of_any_type(tmp_path: Path) -> None:
    made.write(tmp_path, BNB, made.bnb_nf4())
    path = tmp_path / "model.safetensors"
    save_file({n.replace("__nf4", "__fp4"): t for n, t in load_file(path).items()}, path)
    error = _refused(tmp_path)
    assert "is bitsandbytes' fp4, whose levels no type of omnic has" in error.message
    assert "bnb_4bit_quant_type='nf4'" in error.hint


def test_blocks_that_rows_cut_too_short(tmp_path: Path) -> None:
    def method(random: np.random.Generator, rows: int, columns: int) -> made.Made:
        return made.bnb_nf4(block=20)(random, rows, columns)

    made.write(tmp_path, BNB, method)
    error = _refused(tmp_path)
    said = "down_proj.weight has 96 inputs: rows cut its blocks of 20 in pieces of 4, whose scales would take more room"
    assert said in error.message
    assert "int4-packing: {kind: nf4}" in error.hint


def test_a_damaged_state_of_bitsandbytes(tmp_path: Path) -> None:
    made.write(tmp_path, BNB, made.bnb_nf4())
    _changed(tmp_path, **{"weight.quant_state.bitsandbytes__nf4": np.frombuffer(b"{", np.uint8)})
    assert f"{STEM}.weight.quant_state.bitsandbytes__nf4 is damaged" in _refused(tmp_path, BundleError).message


def test_rows_of_int8_in_a_kernels_own_layout(tmp_path: Path) -> None:
    made.write(tmp_path, BNB | {"load_in_8bit": True}, made.bnb_int8)
    _changed(tmp_path, weight_format=np.array(2, np.uint8))
    assert "lies in the layout of a kernel, not row by row" in _refused(tmp_path).message


def _entry(kind: str, parts: tuple[str, ...] = ("qdata", "scale", "zero_point"), **data: Any) -> Any:
    about = {"_type": kind, "_data": {"block_size": [1, 32], **data}, "_tensor_data_names": parts}
    return lambda stem: {f"{stem}.weight": json.dumps(about)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry("Float8Tensor"), "is torchao's Float8Tensor, whose numbers omnic has no type for"),
        (_entry("Int8Tensor", act_quant_kwargs={}), "rounds its activations too, which omnic decides by a pass"),
        (_entry("Int8Tensor", block_size=[64, 32]), "has a scale for each block of [64, 32]"),
    ],
)
def test_tensors_of_torchao_that_have_no_type(entry: Any, message: str, tmp_path: Path) -> None:
    made.write(tmp_path, AO, made.torchao_intx(8), entry)
    assert message in _refused(tmp_path).message


def test_torchao_without_its_metadata(tmp_path: Path) -> None:
    made.write(tmp_path, AO, made.torchao_intx())
    error = _refused(tmp_path, BundleError)
    assert error.message.endswith("the files say nothing of torchao's tensors in their metadata")


def test_an_order_of_columns_that_experts_would_need(tmp_path: Path) -> None:
    from omnic.ir.graph import Recipe
    from omnic.ir.types import DType
    from omnic.ir.weights import SafetensorsSource
    from omnic.models.checkpoints.config import Config
    from omnic.models.checkpoints.dialects import quantised_source
    from omnic.models.checkpoints.source import CheckpointSource

    made.write(tmp_path, GPTQ, made.gptq(act_order=True))
    config = Config(GPTQ, "config.json")
    source = quantised_source(SafetensorsSource(tmp_path), config, "config.json")
    stack = Recipe(
        "stack", {}, tuple(Recipe("load", {"name": f"model.layers.{i}.self_attn.q_proj.weight"}) for i in (0, 1))
    )
    with pytest.raises(BundleError) as caught:
        CheckpointSource(source, {"experts": stack}, DType.F16, "a checkpoint")
    assert "is quantised with inputs in an order of its own, and joined with others" in caught.value.message
    assert "desc_act=False" in str(caught.value.hint)
