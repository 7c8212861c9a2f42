"""Tensor types: the numbers of the gguf package to the bit, codes that come back, rounding as llama.cpp's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.ir import packing
from omnic.models.gguf import codecs
from omnic.models.gguf.codecs import CODECS

PACK = {"Q8_0": codecs.pack_q8_0, "Q4_0": codecs.pack_q4_0, "Q5_0": codecs.pack_q5_0}
ROUND = {"Q8_0": codecs.encode_q8_0, "Q4_0": codecs.encode_q4_0}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    wide = [np.ascontiguousarray(x, np.float32) for x in (a, b)]
    nan = np.isnan(wide[0]) & np.isnan(wide[1])
    return bool(((wide[0].view(np.uint32) == wide[1].view(np.uint32)) | nan).all())


def test_the_types_are_those_of_the_gguf_package():
    for name, codec in CODECS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (codec.identity, (codec.values, codec.bytes)) == (int(kind), gguf.GGML_QUANT_SIZES[kind])
    for number, name in codecs.TYPE_NAMES.items():
        if number in set(gguf.GGMLQuantizationType):
            assert gguf.GGMLQuantizationType(number).name == name


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 4))
def test_any_bytes_are_the_numbers_of_the_gguf_package(name, seed, rows, blocks):
    codec = CODECS[name]
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks * codec.bytes), np.uint8)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data.copy(), gguf.GGMLQuantizationType[name])
        found = codec.numbers(data)
    assert found.shape == (rows, blocks * codec.values)
    assert same_bits(found, want)


@pytest.mark.parametrize("name", [n for n, c in CODECS.items() if c.storage is not None])
@given(seed=st.integers(0, 2**32 - 1))
def test_codes_stand_for_the_same_numbers(name, seed):
    codec = CODECS[name]
    data = np.random.default_rng(seed).integers(0, 256, (3, 2 * codec.bytes), np.uint8)
    q = codec.packed(data)
    assert q.codes.shape == (3, 2 * codec.values)
    with np.errstate(all="ignore"):
        assert same_bits(packing.decode(q), codec.numbers(data))
    if name in PACK:
        assert np.array_equal(PACK[name](q), data)


@pytest.mark.parametrize("name", ROUND)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-30, 1e-7, 1e-3, 1.0, 30.0, 60000.0]),
    kind=st.sampled_from(["normal", "halves", "zeros", "signs"]),
)
def test_numbers_are_rounded_as_llama_cpp_does(name, seed, scale, kind):
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal((4, 64)) * scale
    if kind == "halves":
        numbers = np.round(numbers / scale * 8) / 2 * scale
    elif kind == "zeros":
        numbers[rng.random((4, 64)) < 0.9] = 0
    elif kind == "signs":
        numbers = np.sign(numbers) * scale
    numbers = numbers.astype(np.float32)
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[name])
        assert np.array_equal(PACK[name](ROUND[name](numbers)), want)
