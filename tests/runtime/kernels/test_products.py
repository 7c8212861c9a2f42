"""Products of plain C and of this machine's best level: against exact arithmetic, to the bit against each other, row by
row.  Every other level is held to plain C by check_products.c."""

import ctypes
import re

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.abi import Activation, Level, Tuning
from omnic.runtime.kernels.library import Kernels, Library, Pool, address
from tests.runtime.kernels.products import ELEMENTS, linear, matrix, pointers, rounded, view

ACTS = ((Activation.F32, 0), (Activation.I8_ROW, 0), (Activation.I8_GROUP, 32), (Activation.I8_GROUP, 64),
        (Activation.BF16, 0))
#: odd sizes: panels and blocks that are not full, a group that is cut, rows of one number
SHAPES = ((1, 1, 1), (2, 17, 33), (3, 40, 100), (5, 64, 256), (13, 83, 129))


def numbers(rng, m, k):
    """Activations with one far larger than the rest, and a row of zeros."""
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[0, 0] = 40
    if m > 2:
        x[2] = 0
    return x


def bound(x, w, k):
    """The error of a chain of k f32 operations, twice over for the scales."""
    return (k + 8) * 2.0**-23 * (np.abs(x) @ np.abs(w.T)) + 1e-30


def tiles(kernels, act):
    """Whether a level multiplies in bf16."""
    return kernels.level == Level.AMX and act == Activation.BF16


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_product_is_that_of_exact_arithmetic(kernels: Kernels, element):
    rng = np.random.default_rng(4)
    for m, n, k in SHAPES:
        weight, x = matrix(element, n, k, rng), numbers(rng, m, k)
        for act, group in ACTS:
            seen = rounded(x, act, group)
            error = np.abs(linear(kernels, weight, x, act, group) - seen @ weight.numbers.T)
            slack = 2.0**-8 * (np.abs(seen) @ np.abs(weight.numbers.T)) if tiles(kernels, act) else 0
            assert (error <= bound(seen, weight.numbers, k) + slack).all(), (m, n, k, act, group)


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_level_gives_the_bits_of_plain_c(built: Library, element):
    rng = np.random.default_rng(5)
    plain, kernels = built.kernels(Level.GENERIC), built.kernels()
    for m, n, k in (*SHAPES, (20, 33, 96), (1, 90, 200)):
        weight, x = matrix(element, n, k, rng), numbers(rng, m, k)
        for act, group in ACTS:
            if not tiles(kernels, act):
                want = linear(plain, weight, x, act, group)
                assert np.array_equal(linear(kernels, weight, x, act, group), want), (m, n, k, act, group)


@pytest.mark.parametrize("element", ["f32", "f16", "bf16", "i8<row>", "i8<g64, asym>", "i4<g32>", "i4<g32, s4>",
                                     "i4<row, f32>", "i4<g128, s4>", "i2<g32>", "t2<row>"])
def test_a_row_does_not_depend_on_the_others(built: Library, element):
    rng = np.random.default_rng(6)
    kernels, k = built.kernels(), 320
    weight, x = matrix(element, 75, k, rng), numbers(rng, 64, k)
    for act, group in ACTS:
        whole = linear(kernels, weight, x, act, group)
        for m in (*range(1, 17), 24, 33):
            assert np.array_equal(linear(kernels, weight, x[7 : 7 + m], act, group), whole[7 : 7 + m]), (m, act, group)


@pytest.mark.parametrize("element", ["f32", "i4<g32, s4>", "i8<row>"])
def test_threads_and_chunks_change_nothing(built: Library, element):
    rng = np.random.default_rng(7)
    weight, x = matrix(element, 150, 96, rng), numbers(rng, 140, 96)
    alone = built.kernels()
    with Pool(built, 3) as pool:
        for act, group in ACTS:
            one = linear(alone, weight, x, act, group)
            assert np.array_equal(linear(built.kernels(pool=pool), weight, x, act, group), one)
            assert np.array_equal(linear(alone, weight, x[130:], act, group), one[130:])


@pytest.mark.parametrize("element", ["bf16", "i4<g32, s4>", "i4<g64, asym>", "i8<g32, f32>", "i2<g32>"])
def test_no_tuning_changes_a_bit(built: Library, element):
    rng = np.random.default_rng(12)
    weight = matrix(element, 150, 416, rng)
    tunings = [Tuning(), Tuning(panels=1, prefetch=0, k_block=64, chunk=16, threads=1),
               Tuning(panels=4, prefetch=1 << 20, k_block=2048, chunk=512, threads=2),
               *(Tuning(*(int(v) for v in rng.integers(-1, 4000, 5))) for _ in range(4))]
    with Pool(built, 3) as pool:
        kernels = built.kernels(pool=pool)
        for m in (1, 2, 7, 300):
            x = numbers(rng, m, 416)
            for act, group in ACTS:
                want = calls.linear(built.kernels(), weight.packed, x, act=act, act_group=group)
                for tuning in tunings:
                    y = calls.linear(kernels, weight.packed, x, act=act, act_group=group, tuning=tuning)
                    assert np.array_equal(y, want), (m, act, group)


def test_calls_say_what_does_not_fit(kernels: Kernels):
    weight = matrix("i4<g32>", 48, 64, np.random.default_rng(13)).packed
    x = np.ones((2, 64), np.float32)
    for what, arguments in (
        ("linear: x [2, 32] does not fit a weight [48, 64]", {"x": x[:, :32]}),
        ("linear: bias [2] is not [48]", {"x": x, "bias": np.ones(2)}),
        ("linear: residual [1, 48] is not [2, 48]", {"x": x, "residual": np.ones((1, 48))}),
        ("linear: activations in codes by groups of 0", {"x": x, "act": Activation.I8_GROUP}),
    ):
        with pytest.raises(InputError, match=re.escape(what)):
            calls.linear(kernels, weight, **arguments)


@pytest.mark.parametrize("element", ["f16", "i4<g32>"])
def test_bias_then_residual_are_one_addition_each(kernels: Kernels, element):
    rng = np.random.default_rng(8)
    weight, x = matrix(element, 37, 64, rng), numbers(rng, 5, 64)
    bias, residual = rng.standard_normal(37).astype(np.float32), rng.standard_normal((5, 40)).astype(np.float32)
    for act, group in ACTS:
        bare = linear(kernels, weight, x, act, group)
        assert np.array_equal(linear(kernels, weight, x, act, group, bias=bias), bare + bias)
        both = linear(kernels, weight, x, act, group, bias=bias, residual=residual)
        assert np.array_equal(both, residual[:, :37] + (bare + bias))


def test_the_residual_may_be_the_result(kernels: Kernels):
    rng = np.random.default_rng(9)
    weight, x = matrix("i4<g32, s4>", 37, 64, rng), numbers(rng, 5, 64)
    y = rng.standard_normal((5, 37)).astype(np.float32)
    want = y + linear(kernels, weight, x, Activation.I8_GROUP, 32)
    kernels.run("linear", ctypes.byref(weight.c), address(x), 5, 64, int(Activation.I8_GROUP), 32, None, address(y), 37,
                address(y), 37, scratch=kernels.scratch_linear(weight.c, 5, int(Activation.I8_GROUP), 32))
    assert np.array_equal(y, want)


def test_long_rows_with_outliers_are_exact(kernels: Kernels):
    """Whole sums at the ends of their ranges: codes all at an end, and x at +-127, in every layout."""
    rng = np.random.default_rng(10)
    plain = kernels.library.kernels(Level.GENERIC)
    for element in ("i8<row>", "i8<g32, asym>", "i4<row, f32>", "i4<g128, s4>", "i4<g32, asym>", "i2<row>",
                    "i2<g64, asym>"):
        weight, k = matrix(element, 18, 1088, rng), 1088
        for code in (0x00, 0xFF, 0x80, 0x7F):
            weight.packed.codes[:] = code
            for zero in (0, 255 if element.startswith("i8") else 15):
                if weight.packed.zeros is not None:
                    weight.packed.zeros[:] = zero
                x = np.where(rng.random((9, k)) < 0.5, -3.0, 3.0).astype(np.float32)
                x[:4] = np.abs(x[:4])
                for act, group in ACTS[1:4]:
                    assert np.array_equal(linear(kernels, weight, x, act, group), linear(plain, weight, x, act, group))


def test_several_weights_share_their_activations(kernels: Kernels):
    rng = np.random.default_rng(11)
    x = numbers(rng, 6, 96)
    weights = [matrix(element, n, 96, rng) for element, n in (("i4<g32>", 40), ("f32", 17), ("i8<row>", 130))]
    bias = rng.standard_normal(17).astype(np.float32)
    with Pool(kernels.library, 2) as pool:
        kernels = kernels.library.kernels(kernels.level, pool)
        for act, group in ACTS:
            y = [np.empty((6, w.packed.n), np.float32) for w in weights]
            biases = (ctypes.c_void_p * 3)(None, bias.ctypes.data, None)
            ldy = np.array([w.packed.n for w in weights], np.int64)
            scratch = sum(kernels.scratch_linear(w.c, 6, int(act), group) for w in weights)
            kernels.run("linear_many", pointers(weights), 3, address(x), 6, 96, int(act), group, biases,
                        (ctypes.c_void_p * 3)(*(a.ctypes.data for a in y)), address(ldy), scratch=scratch)
            for i, weight in enumerate(weights):
                alone = linear(kernels, weight, x, act, group, bias=bias if i == 1 else None)
                assert np.array_equal(y[i], alone)


@pytest.mark.parametrize("element", ["f32", "bf16", "i8<row>"])
def test_products_of_heads(kernels: Kernels, element):
    rng = np.random.default_rng(12)
    batch, heads, tokens, k, n = 2, 3, 70, 24, 21
    weights = [matrix(element, n, k, rng) for _ in range(heads)]
    x = rng.standard_normal((batch, tokens, heads, k + 5)).astype(np.float32).transpose(0, 2, 1, 3)[..., :k]
    y = np.full((batch, heads, tokens, n), np.nan, np.float32)
    kernels.run("linear_heads", pointers(weights), heads, batch, tokens, view(x), view(y))
    for h, weight in enumerate(weights):
        want = linear(kernels, weight, np.ascontiguousarray(x[:, h]).reshape(-1, k), Activation.F32)
        assert np.array_equal(y[:, h].reshape(-1, n), want)


@pytest.mark.parametrize("element", ELEMENTS)
def test_rows_of_a_table(kernels: Kernels, element):
    rng = np.random.default_rng(13)
    weight = matrix(element, 53, 100, rng)
    ids = np.array([0, 52, 16, -1, 53, 7, 7, 31, 2, 51], np.int64)
    y = np.full((10, 104), 7.0, np.float32)
    with Pool(kernels.library, 2) as pool:
        pooled = kernels.library.kernels(kernels.level, pool)
        pooled.run("embed", ctypes.byref(weight.c), address(ids), 10, address(y), 104)
    assert (y[:, 100:] == 7).all()
    assert (y[3:5, :100] == 0).all()
    real = (ids >= 0) & (ids < 53)
    want = weight.numbers[ids[real]]
    assert (np.abs(y[real, :100] - want) <= 2.0**-22 * np.abs(want)).all()


@pytest.mark.parametrize("element", ["f16", "i4<g32, s4>", "i8<row>"])
def test_the_largest_of_a_head(kernels: Kernels, element):
    rng = np.random.default_rng(14)
    weight = matrix(element, 1003, 64, rng)
    x = numbers(rng, 150, 64)  # row 2 is zeros: all are equal, and 0 wins
    for threads in (1, 2):
        with Pool(kernels.library, threads) as pool:
            kernels = kernels.library.kernels(kernels.level, pool)
            for act, group in ACTS:
                want = linear(kernels, weight, x, act, group)
                for m in (1, 3, 150):
                    ids, logits = np.empty(m, np.int64), np.empty(m, np.float32)
                    for softcap in (0.0, 30.0):
                        kernels.run("head_argmax", ctypes.byref(weight.c), address(x), m, 64, int(act), group, softcap,
                                    address(ids), address(logits),
                                    scratch=kernels.scratch_linear(weight.c, m, int(act), group))
                        assert np.array_equal(ids, np.argmax(want[:m], axis=1))
                        top = want[:m].max(axis=1)
                        if softcap:
                            assert np.allclose(logits, 30 * np.tanh(top / 30), rtol=2e-6)
                        else:
                            assert np.array_equal(logits, top)
