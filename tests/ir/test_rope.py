"""Rotary frequencies against the papers' closed forms, and the rotation itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.decompose import decompose
from omnic.ir.op import find_op
from omnic.ir.reference import Interpreter
from omnic.ir.rope import SCALINGS, rope_frequencies
from tests.ir.composite_cases import module_of

PLAIN = np.array([10000.0 ** (-2 * i / 64) for i in range(32)])


def frequencies(scaling: str, factor: float, **options: Any) -> tuple[np.ndarray, float]:
    inverse, magnitude = rope_frequencies(10000.0, 64, scaling, factor, original_context=256, **options)
    return np.array(inverse), magnitude


def test_plain_frequencies() -> None:
    inverse, magnitude = frequencies("none", 8.0)
    np.testing.assert_allclose(inverse, PLAIN, rtol=1e-15)
    assert magnitude == 1.0


def test_linear_divides_every_frequency() -> None:
    inverse, magnitude = frequencies("linear", 8.0)
    np.testing.assert_allclose(inverse * 8, PLAIN, rtol=1e-14)
    assert magnitude == 1.0


def test_ntk_keeps_the_highest_and_divides_the_lowest() -> None:
    inverse, magnitude = frequencies("ntk", 8.0)
    ratio = inverse / PLAIN
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(1 / 8, rel=1e-12)
    np.testing.assert_allclose(ratio, [8 ** (-2 * i / 62) for i in range(32)], rtol=1e-12)
    assert magnitude == 1.0


def test_yarn_ramp_and_temperature() -> None:
    inverse, magnitude = frequencies("yarn", 8.0)
    ratio = inverse / PLAIN
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.125
    assert np.all(np.diff(ratio) <= 1e-15)
    assert magnitude == pytest.approx(0.1 * math.log(8) + 1)
    assert round(magnitude, 3) == 1.208
    # The ramp's ends: the frequencies that turn 32 times and once within 256 tokens.
    low = 64 * math.log(256 / (32 * 2 * math.pi)) / (2 * math.log(10000))
    high = 64 * math.log(256 / (2 * math.pi)) / (2 * math.log(10000))
    ramp = np.clip((np.arange(32) - math.floor(low)) / (math.ceil(high) - math.floor(low)), 0, 1)
    np.testing.assert_allclose(inverse, PLAIN / 8 * ramp + PLAIN * (1 - ramp), rtol=1e-13)
    turns = 256 * PLAIN / (2 * math.pi)
    assert np.all(ratio[turns < 1][1:] == 0.125)
    assert np.all(ratio[turns > 32] == 1.0)


@pytest.mark.slow
def test_yarn_is_what_transformers_computes() -> None:
    from transformers import LlamaConfig, modeling_rope_utils

    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0}
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=2048, rope_theta=10000.0,
                          rope_parameters=scaling)
    theirs, their_magnitude = modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    ours, magnitude = frequencies("yarn", 8.0)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    assert magnitude == pytest.approx(their_magnitude)


def test_an_unrounded_ramp_begins_between_frequencies() -> None:
    inverse, magnitude = frequencies("yarn", 8.0, truncate=False)
    low = 64 * math.log(256 / (32 * 2 * math.pi)) / (2 * math.log(10000))
    high = 64 * math.log(256 / (2 * math.pi)) / (2 * math.log(10000))
    ramp = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(inverse, PLAIN / 8 * ramp + PLAIN * (1 - ramp), rtol=1e-13)
    assert magnitude == pytest.approx(0.1 * math.log(8) + 1)
    assert not np.allclose(inverse, frequencies("yarn", 8.0)[0], rtol=1e-3)


def test_llama3_mixes_by_turns() -> None:
    inverse, magnitude = frequencies("llama3", 8.0, beta_fast=4.0)
    turns = 256 * PLAIN / (2 * math.pi)
    np.testing.assert_allclose(inverse[turns >= 4], PLAIN[turns >= 4], rtol=1e-15)
    np.testing.assert_allclose(inverse[turns <= 1] * 8, PLAIN[turns <= 1], rtol=1e-15)
    between = (turns > 1) & (turns < 4)
    kept = (turns[between] - 1) / 3
    np.testing.assert_allclose(inverse[between], PLAIN[between] * (kept + (1 - kept) / 8), rtol=1e-13)
    assert magnitude == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("scaling", "theirs", "options"), [
    ("yarn", {"rope_type": "yarn", "truncate": False}, {"truncate": False}),
    ("llama3", {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}, {"beta_fast": 4.0}),
])
def test_both_are_what_transformers_computes(scaling: str, theirs: dict[str, Any], options: dict[str, Any]) -> None:
    from transformers import LlamaConfig, modeling_rope_utils

    given = {"factor": 8.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0, **theirs}
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=2048, rope_parameters=given)
    wanted, magnitude = modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    ours, gain = frequencies(scaling, 8.0, **options)
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-5)
    assert gain == pytest.approx(magnitude)


def test_the_attention_factor_replaces_the_temperature() -> None:
    assert frequencies("yarn", 8.0, attention_factor=1.0)[1] == 1.0


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_factor_of_one_is_the_identity(scaling: str) -> None:
    inverse, magnitude = frequencies(scaling, 1.0, factors=(1.0,) * 32)
    np.testing.assert_allclose(inverse, PLAIN, rtol=1e-15)
    assert magnitude == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dims": 7}, "rotated dims come in pairs: 7 is not a positive even number"),
    ({"dims": 0}, "rotated dims come in pairs: 0 is not a positive even number"),
    ({"scaling": "yarm"}, "unknown rope scaling 'yarm'"),
    ({"scaling": "linear", "factor": 0.5}, "rope scaling factor must be at least 1, got 0.5"),
    ({"scaling": "yarn", "factor": 2.0}, "yarn needs the context the model was trained with"),
    ({"scaling": "llama3", "factor": 2.0}, "llama3 needs the context the model was trained with"),
])
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        rope_frequencies(**{"base": 10000.0, "dims": 8, **arguments})
    assert caught.value.message == message


def rotate(x: Any, positions: Any, **attrs: Any) -> Any:
    definition = find_op("rope")
    return definition.reference(x, positions, **definition.bind(attrs))


def test_the_rotation_is_a_complex_product() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 100, 1000]])
    angle = positions[:, None, :, None] * np.array([100.0 ** (-2 * i / 6) for i in range(3)])
    turn = np.exp(1j * angle)
    half = rotate(x, positions, dims=6, base=100.0)
    z = (x[..., :3] + 1j * x[..., 3:6]) * turn
    np.testing.assert_allclose(half, np.concatenate([z.real, z.imag, x[..., 6:]], -1), atol=1e-12)
    pairs = rotate(x, positions, dims=6, base=100.0, interleaved=True)
    z = (x[..., 0:6:2] + 1j * x[..., 1:6:2]) * turn
    np.testing.assert_allclose(pairs[..., 0:6:2], z.real, atol=1e-12)
    np.testing.assert_allclose(pairs[..., 1:6:2], z.imag, atol=1e-12)
    assert np.array_equal(pairs[..., 6:], x[..., 6:])


def test_products_depend_on_the_distance_only() -> None:
    q, k = np.random.default_rng(1).standard_normal((2, 1, 1, 8))
    near = [rotate(x[None], np.array([[p]]), dims=8) for x, p in ((q, 9), (k, 4))]
    far = [rotate(x[None], np.array([[p]]), dims=8) for x, p in ((q, 1009), (k, 1004))]
    assert np.sum(near[0] * near[1]) == pytest.approx(np.sum(far[0] * far[1]), abs=1e-10)


def test_the_decomposition_in_f32_is_exact_far_from_the_start() -> None:
    """Positions times frequencies lose 1e-3 radians in f32 at 32768; the split products of the decomposition do not."""
    x = np.random.default_rng(2).standard_normal((1, 1, 64, 32))
    positions = np.arange(32768 - 64, 32768)[None]
    module = module_of("rope", [x, positions], {}, dims=32)
    inputs = {"p0": x, "p1": positions}
    exact = Interpreter(module, {}).run(inputs)["y"]
    split = Interpreter(decompose(module), {}, np.float32).run(inputs)["y"]
    assert np.max(np.abs(split - exact)) < 5e-6
