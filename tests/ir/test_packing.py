"""Storage types: exact rounding rules, error bounds, canonical bytes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.packing import QTensor, decode, pack_codes, pack_scales, quantise, unpack_codes, unpack_scales
from omnic.ir.types import Storage, parse_element

EVERY = [
    "i8<row>", "i8<g32>", "i8<head>", "i8<g8, asym>", "i8<g8, asym, f32>", "i8<g8, s4>", "i8<g4, axis-2>",
    "i4<row>", "i4<g32>", "i4<g8, asym>", "i4<g8, s4>", "i4<g8, asym, s4>", "i4<g8, f32>", "i4<g4, axis-2>", "i4<head>",
    "i6<g8>", "i6<g8, asym>", "i5<row>", "i5<g8, asym, s4>", "i3<g8>", "i3<g8, asym>", "i3<g4, axis-2>", "i3<g8, s4>",
    "i2<g8>", "i2<g8, asym>", "nf4<g16>", "nf4<g16, s4>", "fp4<g16>", "fp4<g16, f32>", "t2<g16>", "t2<row, f32>",
]


def storage(text: str) -> Storage:
    element = parse_element(text)
    assert isinstance(element, Storage)
    return element


def sample(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scalar_i4(group: Any) -> tuple[list[int], float]:
    """The rule of i4 for one group, number by number."""
    scale = np.float16(np.float32(max(abs(float(v)) for v in group)) / np.float32(7))
    codes = []
    for value in group:
        unit = np.float32(value) / np.float32(scale)
        codes.append(int(min(max(np.rint(unit), -8), 7)))
    return codes, float(scale)


def test_i4_follows_its_rule_number_by_number() -> None:
    x = sample((3, 40))
    q = quantise(x, storage("i4<g16>"))
    assert q.scale.shape == (3, 3) and q.scale.dtype == np.float16, "a ragged tail is a group"
    for row in range(3):
        for g, start in enumerate(range(0, 40, 16)):
            codes, scale = scalar_i4(x[row, start : start + 16])
            assert q.codes[row, start : start + 16].tolist() == codes
            assert float(q.scale[row, g]) == scale


def test_halves_round_to_even_codes() -> None:
    x = np.array([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -6.5, -7.0]], np.float32)
    assert quantise(x, storage("i4<g8>")).codes.tolist() == [[7, 0, 2, 2, 0, -2, -6, -7]]


def test_asymmetric_i4_keeps_zero_and_both_ends() -> None:
    x = np.array([[-1.0, 0.0, 2.0, 0.26]], np.float32)
    q = quantise(x, storage("i4<g4, asym, f32>"))
    assert q.scale.tolist() == [[np.float32(3) / np.float32(15)]]
    assert q.zero is not None and q.zero.tolist() == [[5]]
    # Codes are kept minus 8: 0, 5, 15 and 5 + round(0.26 / 0.2) = 6.
    assert q.codes.tolist() == [[-8, -3, 7, -2]]
    assert np.allclose(decode(q, np.float64), [[-1, 0, 2, 0.2]])


def test_a_positive_group_keeps_zero_exact_in_asym() -> None:
    q = quantise(np.array([[3.0, 4.0]], np.float32), storage("i4<g2, asym>"))
    assert q.zero is not None and q.zero.tolist() == [[0]]
    assert np.abs(decode(q) - [[3, 4]]).max() <= float(q.scale[0, 0]) / 2


def test_s4_scales_are_whole_multiples_of_one_row_factor() -> None:
    x = sample((4, 64)) * np.float32(0.02)
    x[1, :32] = 0
    q = quantise(x, storage("i4<g8, s4>"))
    assert q.row is not None and q.row.dtype == np.float32 and q.row.shape == (4,)
    assert q.scale.dtype == np.uint8 and q.scale.min() >= 1 and q.scale.max() <= 15
    peak = np.abs(x).max(1)
    assert np.allclose(q.row, peak / 105, rtol=1e-6)
    # Code times scale is a whole number within int8, the exact product that matrix units take.
    assert np.abs(q.codes.reshape(4, 8, 8).astype(int) * q.scale[..., None]).max() <= 120


@pytest.mark.parametrize("text", ["i4<g8, s4>", "i4<g8, asym, s4>", "nf4<g16, s4>"])
def test_no_step_of_s4_beside_the_chosen_one_errs_less(text: str) -> None:
    type = storage(text)
    x = sample((6, 64)) * np.float32(0.02)
    q = quantise(x, type)
    assert q.row is not None
    own = np.square(decode(q) - x).reshape(6, -1, type.group).sum(-1)
    # The steps as round to nearest would take them: the smallest that hold the range.
    low, high = ((f(x.reshape(6, -1, type.group), -1)) for f in (np.min, np.max))
    peak = {"i4": 7.0, "nf4": 1.0}[type.kind]
    value = (np.maximum(high, 0) - np.minimum(low, 0)) / 15 if type.asym else np.maximum(-low, high) / peak
    holding = np.clip(np.ceil(value / q.row[:, None]), 1, 15).astype(np.uint8)
    assert ((holding.astype(int) - q.scale >= -1) & (holding.astype(int) - q.scale <= 2)).all()
    assert (q.scale < holding).any(), "some group is better off clipped"
    if not type.asym:
        levels = (packing.NF4_LEVELS if type.kind == "nf4" else np.arange(-8, 8)).astype(np.float32)
        scale = (holding * q.row[:, None])[..., None, None]
        gaps = np.abs(x.reshape(6, -1, type.group, 1) - levels * scale).min(-1)
        assert (own <= np.square(gaps).sum(-1) * (1 + 1e-5)).all()


def test_nf4_takes_the_nearest_level() -> None:
    x = np.concatenate([sample((2, 15)), [[1.0], [-3.0]]], axis=1).astype(np.float32)
    q = quantise(x, storage("nf4<row, f32>"))
    levels = packing.NF4_LEVELS.astype(np.float64)
    units = x / q.scale
    assert (q.codes == np.abs(units[..., None] - levels).argmin(-1)).all()
    assert decode(q)[1, 15] == -3.0


def test_fp4_rounds_as_e2m1() -> None:
    units = np.concatenate([np.linspace(-6, 6, 97), [6.0]]).astype(np.float32)[None]
    q = quantise(units, storage("fp4<row, f32>"))
    want = units.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert (decode(q) == want).all()
    assert not (q.codes == 8).any(), "minus zero has the code of zero"


def test_ternary_uses_the_mean_and_does_not_count_the_filling_of_a_ragged_tail() -> None:
    x = np.array([[1.0, -1.0, 0.2, 0.2, 3.0]], np.float32)
    q = quantise(x, storage("t2<g4, f32>"))
    assert np.allclose(q.scale, [[0.6, 3.0]])
    assert q.codes.tolist() == [[1, -1, 0, 0, 1]]


def test_a_head_has_one_scale() -> None:
    x = sample((3, 4, 6))
    q = quantise(x, storage("i8<head>"))
    assert q.scale.shape == (3,)
    assert (q.scale == (np.abs(x).max((1, 2)) / np.float32(127)).astype(np.float16)).all()


def test_another_axis_is_the_transposed_tensor() -> None:
    x = sample((2, 12, 5))
    across = quantise(x, storage("i4<g4, axis-2>"))
    along = quantise(x.swapaxes(1, 2), storage("i4<g4>"))
    assert across.scale.shape == (2, 5, 3)
    assert (across.codes == along.codes.swapaxes(1, 2)).all()
    assert (decode(across) == decode(along).swapaxes(1, 2)).all()
    assert (pack_codes(across.codes, across.type) == pack_codes(along.codes, along.type)).all()


@pytest.mark.parametrize("text", EVERY)
@given(data=st.data())
def test_error_is_at_most_half_a_step(text: str, data: st.DataObject) -> None:
    type = storage(text)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40)))
    x = sample(shape, data.draw(st.integers(0, 1000))) * np.float32(10.0 ** data.draw(st.integers(-2, 2)))
    q = quantise(x, type)
    found = decode(q, np.float64)
    assert found.shape == shape and q.codes.dtype == np.int8
    if type.kind == "t2":
        return
    # Half of the widest gap between neighbours, in units of the largest number of the tensor.
    gap = {"i8": 1 / 127, "i6": 1 / 31, "i5": 1 / 15, "i4": 1 / 7, "i3": 1 / 3, "i2": 1.0, "nf4": 0.31, "fp4": 2 / 6}[
        type.kind]
    gap *= 1.02 if type.asym or type.scale != "s4" else 1.08
    steps = 2**type.bits - 1
    gap *= (steps - 1) / steps if type.asym else 1
    if type.scale == "s4":  # the squared error decides: never more than that of a step that clips nothing
        error = np.square(found - x).sum()
        assert error <= x.size * np.square(gap / 2 * 1.15 * np.abs(x).max())
        return
    assert np.abs(found - x).max() <= (gap / 2 * 1.01 + (0.002 if type.scale == "f16" else 0)) * np.abs(x).max()


@pytest.mark.parametrize("text", EVERY)
def test_decoding_is_the_same_in_f32_and_f64(text: str) -> None:
    q = quantise(sample((2, 3, 40)), storage(text))
    assert np.allclose(decode(q, np.float32), decode(q, np.float64), rtol=1e-6, atol=0)
    assert decode(q, np.float32).dtype == np.float32


@pytest.mark.parametrize("text", EVERY)
@given(data=st.data())
def test_packing_round_trips_and_has_the_stated_size(text: str, data: st.DataObject) -> None:
    type = storage(text)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7)), data.draw(st.integers(1, 70)))
    q = quantise(sample(shape, data.draw(st.integers(0, 1000))), type)
    packed = pack_codes(q.codes, type)
    assert packed.dtype == np.uint8
    assert (unpack_codes(packed, type, shape) == q.codes).all()
    scale = q.scale if q.row is None else pack_scales(q.scale)
    if q.row is not None:
        assert (unpack_scales(scale, q.scale.shape[-1]) == q.scale).all()
    parts = [packed, scale, *(p for p in (q.zero, q.row) if p is not None)]
    assert sum(p.nbytes for p in parts) == type.bytes(shape) == q.nbytes
    layout = packing.layout(type, shape)
    assert [(p.dtype, p.shape) for p in parts] == list(layout.values())


def test_packed_bytes_have_the_lowest_index_in_the_lowest_bits() -> None:
    assert pack_codes(np.array([[-8, 7, 0]], np.int8), storage("i4<row>")).tolist() == [[0xF0, 0x08]]
    assert pack_codes(np.array([[-2, -1, 0, 1, 1]], np.int8), storage("i2<row>")).tolist() == [[0b11100100, 3]]
    # 000 then 111 then 100: codes of three bits run on over the end of a byte.
    assert pack_codes(np.array([[-4, 3, 0]], np.int8), storage("i3<row>")).tolist() == [[0b00111000, 0b1]]
    assert pack_codes(np.array([[-16, 15]], np.int8), storage("i5<row>")).tolist() == [[0b11100000, 0b11]]
    assert pack_codes(np.array([[31, -32]], np.int8), storage("i6<row>")).tolist() == [[0b00111111, 0]]
    assert pack_codes(np.array([[-1, 0, 1, 0]], np.int8), storage("t2<row>")).tolist() == [[0b01100100]]
    assert pack_codes(np.array([[-1, 127]], np.int8), storage("i8<row>")).tolist() == [[255, 127]]
    assert pack_codes(np.array([[15, 1]], np.int8), storage("nf4<row>")).tolist() == [[0x1F]]
    assert pack_scales(np.array([[1, 15, 7]], np.uint8)).tolist() == [[0xF1, 7]]


@pytest.mark.parametrize("text", EVERY)
def test_zeros_decode_to_zero(text: str) -> None:
    type = storage(text)
    assert not decode(packing.zeros(type, (2, 3, 16))).any()
    q = quantise(np.zeros((2, 3, 16), np.float32), type)
    assert not decode(q).any()
    empty, full = packing.zeros(type, (2, 3, 16)).parts(), q.parts()
    assert {k: (v.dtype, v.shape) for k, v in empty.items()} == {k: (v.dtype, v.shape) for k, v in full.items()}


@pytest.mark.parametrize(("text", "x", "message"), [
    ("nf4<g2, asym>", np.ones((2, 2)), "nf4<g2, asym>: nf4 has no zero point"),
    ("t2<g2, s4>", np.ones((2, 2)), "t2<g2, s4>: s4 scales need groups along a row and a kind other than t2"),
    ("i8<head, s4>", np.ones((2, 2)), "i8<head, s4>: s4 scales need groups along a row and a kind other than t2"),
    ("i8<head>", np.ones(3), "i8<head>: a tensor of 1 dims has no such dim to group"),
    ("i4<g2, axis-3>", np.ones((2, 2)), "i4<g2, axis-3>: a tensor of 2 dims has no such dim to group"),
    ("i4<g2>", np.array([[1.0, np.nan]]), "i4<g2>: cannot quantise a tensor with NaN or infinite numbers"),
    ("i4<g2>", np.array([[1e6, 0.0]]), "i4<g2>: the scale 1.43e+05 is beyond f16"),
])
def test_what_has_no_meaning_is_refused(text: str, x: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantise(x, storage(text))
    assert caught.value.message == message


def test_unpacking_other_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"packed codes of i4<row> for \[2, 5\] are u8 \[2, 3\], got uint8 \[2, 2\]"):
        unpack_codes(np.zeros((2, 2), np.uint8), storage("i4<row>"), (2, 5))


def test_pick_and_copy_keep_every_part() -> None:
    q = quantise(sample((4, 3, 16)), storage("i4<g8, asym, s4>"))
    assert (decode(q.pick(slice(1, 3))) == decode(q)[1:3]).all()
    twin: QTensor = q.copy()
    twin.codes[:] = 0
    assert q.codes.any() and twin.zero is not q.zero and twin.row is not q.row
