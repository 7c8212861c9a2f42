"""Panels hold what the IR has, to the bit."""

import ml_dtypes
import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.packing import QTensor, decode, quantise
from omnic.ir.types import DType, parse_element
from omnic.runtime.kernels.packing import PanelType, pack, pack_slices, panel_type, part_bytes, unpack

EXACT = ("i8<row>", "i8<g32, f32>", "i8<g24, asym>", "i8<head>", "i6<g32>", "i6<g20, asym>", "i5<g32, e8m0>",
         "i4<g32>", "i4<g32, s4>", "i4<g40, asym>", "i4<g64, asym, s4>", "i4<row, one>", "i4<head, asym>", "i3<g32>",
         "i3<g16, asym, f32>", "i2<g32>", "i2<g64, asym>", "i2<g32, s4>", "t2<row>", "t2<g64, f32>", "fp4<g32, e8m0>",
         "fp4<g16>", "fp4<g32, s4>")


@pytest.mark.parametrize("element", EXACT)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (37, 100), (48, 193)])
def test_a_quantised_matrix_comes_back_to_the_bit(element, n, k):
    type = parse_element(element)
    q = quantise(np.random.default_rng(n * k).standard_normal((n, k)).astype(np.float32), type)
    packed = pack(q)
    assert {name: part.nbytes for name, part in packed.parts().items()} == part_bytes(packed.type, n, k)
    back = unpack(packed, type)
    assert isinstance(back, QTensor)
    assert np.array_equal(decode(back, np.float64), decode(q, np.float64))
    for name, part in q.parts().items():
        if name != "codes" or type.kind != "fp4":  # -0 of fp4 becomes 0
            assert part.dtype == back.parts()[name].dtype
            assert np.array_equal(part, back.parts()[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (32, 8), (19, 33)])
def test_a_plain_matrix_comes_back_to_the_bit(dtype, n, k):
    w = np.random.default_rng(1).standard_normal((n, k)).astype(dtype)
    back = unpack(pack(w))
    assert back.dtype == w.dtype
    assert np.array_equal(back, w)


def test_the_layouts_are_those_of_the_header():
    rng = np.random.default_rng(2)
    q = quantise(rng.standard_normal((40, 150)).astype(np.float32), parse_element("i4<g32, s4>"))
    packed = pack(q)
    codes = packed.codes.reshape(3, 5, 4, 16, 4)
    steps = packed.scales.reshape(3, 5, 8)
    for n, k in rng.integers((0, 0), (40, 150), (200, 2)):
        byte = codes[n // 16, k // 32, k % 32 // 8, n % 16, k % 4]
        assert (byte >> (4 * (k // 4 % 2)) & 15) == q.codes[n, k] + 8
        assert (steps[n // 16, k // 32, n % 8] >> (4 * (n % 16 // 8)) & 15) == q.scale[n, k // 32]
    q = quantise(rng.standard_normal((17, 70)).astype(np.float32), parse_element("i2<g64>"))
    codes = pack(q).codes.reshape(2, 2, 4, 16, 4)
    for n, k in rng.integers((0, 0), (17, 70), (200, 2)):
        assert (codes[n // 16, k // 64, k % 64 // 16, n % 16, k % 4] >> (2 * (k // 4 % 4)) & 3) == q.codes[n, k] + 2
    q = quantise(rng.standard_normal((17, 70)).astype(np.float32), parse_element("i8<row>"))
    codes = pack(q).codes.view(np.int8).reshape(2, 18, 16, 4)
    for n, k in rng.integers((0, 0), (17, 70), (200, 2)):
        assert codes[n // 16, k // 4, n % 16, k % 4] == q.codes[n, k]


def test_padding_stands_for_zero():
    q = quantise(np.ones((3, 10), np.float32), parse_element("i4<g32>"))
    packed = pack(q)
    nibbles = packed.codes.reshape(4, 16, 4)
    assert (nibbles[2:] == 0x88).all()
    assert (nibbles[:, 3:] == 0x88).all()
    assert (packed.scales.view(np.float16).reshape(16)[3:] == 0).all()


@pytest.mark.parametrize("element", ["nf4<g32>", "i4<g32, axis-2>"])
def test_what_no_code_can_say_lies_decoded(element):
    type = parse_element(element)
    q = quantise(np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32), type)
    assert panel_type(type) == PanelType("f32")
    assert np.array_equal(unpack(pack(q)), decode(q))


@pytest.mark.parametrize("element", ["i4<g32, s4>", "i8<g64, asym>", "i2<g32>"])
def test_slices_of_rows_put_together_are_the_whole(element):
    type = parse_element(element)
    q = quantise(np.random.default_rng(4).standard_normal((90, 130)).astype(np.float32), type)
    whole = pack(q).parts()
    slices = list(pack_slices(q.pick(slice(at, at + 32)) for at in range(0, 90, 32)))
    for name, part in whole.items():
        assert np.array_equal(np.concatenate([s.parts()[name] for s in slices]), part)


def test_wrong_input_is_refused():
    w = np.zeros((4, 4), np.float32)
    with pytest.raises(InputError, match=r"panels hold a matrix \[n, k\], got the shape \[4\]"):
        pack(w[0])
    with pytest.raises(InputError, match="a matrix of int64 has no panels"):
        pack(np.zeros((4, 4), np.int64))
    with pytest.raises(InputError, match="i64 is no type of a product's weight"):
        panel_type(DType.I64)
    with pytest.raises(InputError, match="a slice of 20 rows is not the last: slices have a multiple of 16 rows"):
        list(pack_slices([np.zeros((20, 4), np.float32), w]))
    packed = pack(quantise(np.ones((16, 32), np.float32), parse_element("i4<g32>")))
    with pytest.raises(InputError, match="do not hold i4<g64>"):
        unpack(packed, parse_element("i4<g64>"))
    with pytest.raises(InputError, match=r"codes of panels \[17, 32\] are 512 bytes, got 256"):
        unpack(type(packed)(packed.type, 17, 32, packed.codes, packed.scales), parse_element("i4<g32>"))
