"""GPTQ, AWQ and HQQ on matrices: what each promises about its own objective, and the repacking of what they give."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.types import DType, Storage, parse_element
from omnic.passes.quantise.awq import channel_scales, clipped, taken_out
from omnic.passes.quantise.calibrate import Inputs
from omnic.passes.quantise.gptq import gptq, output_error
from omnic.passes.quantise.grid import by_groups, fit_range, padded
from omnic.passes.quantise.hqq import hqq, power_error

TYPES = ["i4<g32>", "i4<g32, asym>", "i4<g32, s4>", "i4<g32, asym, s4>", "i4<g32, f32>", "i3<g32, asym>", "i2<g32>",
         "nf4<g32>", "fp4<g32>", "t2<g32>", "i8<row>", "i4<row>"]


def storage(text: str) -> Storage:
    element = parse_element(text)
    assert isinstance(element, Storage)
    return element


def matrix(rows: int = 24, columns: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.05)


def correlated(columns: int = 96, seed: int = 1) -> Inputs:
    """Inputs that lie mostly in a few directions, some channels much larger than others."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2000, 12)) @ random.standard_normal((12, columns)) + random.standard_normal(
        (2000, columns)) * 0.3
    x = (x * np.exp(random.standard_normal(columns))).astype(np.float32)
    return Inputs((x.T @ x / len(x)).astype(np.float32), np.abs(x).mean(0), len(x))


@pytest.mark.parametrize("text", TYPES)
def test_the_grid_rounds_as_the_packing_does(text: str) -> None:
    # A ternary group that is short counts its padding here, as methods fit their own scales anyway.
    type, w = storage(text), matrix(columns=96 if text.startswith("t2") else 80)
    groups = by_groups(padded(w, type), type)
    grid = fit_range(groups, type)
    mine = grid.tensor(grid.codes(groups).reshape(len(w), -1), w.shape[1])
    theirs = packing.quantise(w, type)
    if type.scale == "s4":  # the packing chooses a step by the error, methods by their own measure
        wide = by_groups(padded(w, type), type)
        assert np.square(w - packing.decode(theirs)).sum() < np.square(wide - grid.rounded(wide)).sum()
        return
    for name, part in theirs.parts().items():
        assert np.array_equal(mine.parts()[name], part), name


@pytest.mark.parametrize("columns", [96, 80])
def test_gptq_with_4_bit_scales_errs_no_more_than_with_f16_ones(columns: int) -> None:
    w, inputs = matrix(columns=columns), correlated(columns)
    w[2] = 0
    found = {text: gptq(w, inputs.gram, storage(text)) for text in ("i4<g32>", "i4<g32, s4>")}
    steps = found["i4<g32, s4>"]
    assert steps.row is not None and steps.scale.dtype == np.uint8
    assert steps.scale.min() >= 1 and steps.scale.max() <= 15
    assert not packing.decode(steps)[2].any()
    error = {text: output_error(w, packing.decode(q), inputs.gram) for text, q in found.items()}
    assert error["i4<g32, s4>"] <= error["i4<g32>"]
    whole = gptq(w, inputs.gram, storage("i4<g32, s4>"), clip=False)
    assert error["i4<g32, s4>"] < output_error(w, packing.decode(whole), inputs.gram)


@pytest.mark.parametrize("text", TYPES)
def test_gptq_changes_the_outputs_less_than_rounding(text: str) -> None:
    type, w, inputs = storage(text), matrix(), correlated()
    rounded = output_error(w, packing.decode(packing.quantise(w, type)), inputs.gram)
    found = gptq(w, inputs.gram, type)
    assert found.type == type and found.shape == w.shape
    packing.pack_codes(found.codes, type)
    share = 0.75 if text != "i8<row>" else 0.95
    assert output_error(w, packing.decode(found), inputs.gram) < share * rounded


def test_gptq_on_inputs_without_correlation_is_rounding() -> None:
    w, type = matrix(), storage("i4<g32, asym>")
    found = gptq(w, np.eye(96, dtype=np.float32), type, clip=False)
    assert np.array_equal(found.codes, packing.quantise(w, type).codes)


def test_order_keeps_codes_in_their_places_and_sweeps_only_help() -> None:
    w, type, inputs = matrix(), storage("i4<g32>"), correlated()
    plain, ordered, swept = (output_error(w, packing.decode(gptq(w, inputs.gram, type, **options)), inputs.gram)
                             for options in ({}, {"order": True}, {"sweeps": 3}))
    rounded = output_error(w, packing.decode(packing.quantise(w, type)), inputs.gram)
    assert ordered < 0.75 * rounded
    assert swept <= plain * 1.001


def test_gptq_takes_a_ragged_last_group_and_dead_inputs() -> None:
    w, type, inputs = matrix(columns=80), storage("i4<g32, asym>"), correlated(80)
    gram = inputs.gram.copy()
    gram[5], gram[:, 5] = 0, 0
    found = gptq(w, gram, type)
    assert found.codes.shape == (24, 80) and found.scale.shape == (24, 3)
    assert np.isfinite(packing.decode(found)).all()


def test_nan_inputs_are_named() -> None:
    with pytest.raises(InputError) as caught:
        gptq(matrix(), np.full((96, 96), np.nan, np.float32), storage("i4<g32>"))
    assert caught.value.message == "the inputs of a weight hold NaN or infinite numbers on the calibration text"
    assert caught.value.hint == "the weights are damaged, or the training that made them diverged"


@pytest.mark.parametrize("text", ["i4<g32>", "i4<g32, asym>", "i2<g32, asym>", "nf4<g32>", "t2<g32>", "i4<g32, s4>"])
def test_no_group_of_hqq_has_a_larger_power_error_than_rounding(text: str) -> None:
    type, w = storage(text), matrix(seed=3)
    w[0, :4] *= 20
    mine, theirs = (by_groups(w - packing.decode(q), type) for q in (hqq(w, type), packing.quantise(w, type)))
    # s4 shares one factor over a row, so only the row's sum is promised.
    a, b = power_error(mine), power_error(theirs)
    if type.scale == "s4":
        a, b = a.sum(-1), b.sum(-1)
    assert (a <= b * (1 + 1e-5)).all()
    assert a.sum() < 0.99 * b.sum()


def test_channel_scales_are_never_worse_than_none_and_clipping_helps() -> None:
    type, w, inputs = storage("i4<g32>"), matrix(), correlated()
    scale = channel_scales([(w, type, inputs)])
    assert scale.shape == (96,) and (scale > 0).all()
    plain = output_error(w, packing.decode(packing.quantise(w, type)), inputs.gram)
    scaled = output_error(w, packing.decode(packing.quantise(w * scale, type)) / scale, inputs.gram)
    assert scaled <= plain
    assert output_error(w, packing.decode(clipped(w, type, inputs.gram)), inputs.gram) < plain


def test_awq_divides_a_norm_of_16_bits_without_loss() -> None:
    random = np.random.default_rng(0)
    norm = (random.standard_normal(64) + 1).astype(DType.BF16.numpy).astype(np.float32)
    norm[7] = 0
    wanted = np.exp(random.standard_normal(64)).astype(np.float32)
    scale = taken_out(norm, wanted, DType.BF16)
    held = (norm / scale).astype(DType.BF16.numpy).astype(np.float32)
    assert np.abs(held * scale - norm).max() <= 2e-7 * np.abs(norm).max()
    assert np.abs(scale / wanted - 1).max() <= 2**-8 and scale[7] == wanted[7]
    assert not np.array_equal((norm / wanted).astype(DType.BF16.numpy).astype(np.float32) * wanted, norm)
