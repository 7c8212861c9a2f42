"""Numbers of the core ops against plain Python."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.op import find_op
from omnic.ir.types import DType

RANDOM = np.random.default_rng(7)


def run(name: str, *arrays: Any, **attrs: Any) -> Any:
    op = find_op(name)
    return op.reference(*op.arrange(tuple(np.asarray(a) for a in arrays)), **op.bind(attrs))


def test_erf_is_the_error_function() -> None:
    x = np.concatenate([np.linspace(-7, 7, 2001), [0.46875, -0.46875, 4.0, -4.0, 1e-300, 40.0, -np.inf, np.inf]])
    assert np.allclose(run("erf", x), [math.erf(v) for v in x], rtol=4e-16, atol=4e-16)
    assert np.isnan(run("erf", np.array([np.nan])))[0]
    assert run("erf", x.astype(np.float32)).dtype == np.float32


def test_softmax_of_masked_rows() -> None:
    x = np.array([[1.0, -np.inf, 1.0], [-np.inf] * 3, [800.0, 0.0, -800.0]])
    assert run("softmax", x, axis=-1).tolist() == [[0.5, 0, 0.5], [0, 0, 0], [1, 0, 0]]
    column = RANDOM.standard_normal((4, 3))
    assert np.allclose(run("softmax", column, axis=0), np.exp(column) / np.exp(column).sum(0))


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        y = run("sigmoid", np.array([-1e4, -2.0, 0.0, 1e4]))
    assert np.allclose(y, [0, 1 / (1 + math.exp(2)), 0.5, 1])


def test_round_takes_a_half_to_the_even_number() -> None:
    assert run("round", np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4])).tolist() == [0, 2, 2, 0, -2, 2]


def test_integer_division_rounds_down_and_mod_has_the_sign_of_the_divisor() -> None:
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    assert run("floordiv", a, b).tolist() == [7 // 2, -7 // 2, 7 // -2, -7 // -2]
    assert run("mod", a, b).tolist() == [7 % 2, -7 % 2, 7 % -2, -7 % -2]


@pytest.mark.parametrize(("element", "kind"), [(DType.F16, np.float16), (DType.BF16, ml_dtypes.bfloat16)])
def test_cast_rounds_to_the_16_bit_type_and_keeps_the_reference_dtype(element: DType, kind: Any) -> None:
    x = RANDOM.standard_normal(100)
    y = run("cast", x, to=element)
    assert y.dtype == np.float64
    assert (y == x.astype(kind).astype(np.float64)).all()
    assert not (y == x).all()
    assert (run("cast", x, to=DType.F32) == x).all(), "the reference does not lose precision to f32"


def test_cast_of_floats_to_integers_drops_the_fraction() -> None:
    assert run("cast", np.array([1.9, -1.9, 0.0]), to=DType.I32).tolist() == [1, -1, 0]
    assert run("cast", np.array([1.9, -1.9, 0.0]), to=DType.BOOL).tolist() == [True, True, False]
    assert run("cast", np.array([True, False]), to=DType.F32).tolist() == [1.0, 0.0]


def test_gather_reads_along_one_axis_and_broadcasts_the_others() -> None:
    x, index = RANDOM.standard_normal((2, 5, 3)), RANDOM.integers(0, 5, (2, 4, 1))
    y = run("gather", x, index, axis=1)
    assert y.shape == (2, 4, 3)
    assert all(y[b, i, c] == x[b, index[b, i, 0], c] for b in range(2) for i in range(4) for c in range(3))


def test_index_select_takes_slices() -> None:
    x, index = RANDOM.standard_normal((2, 5, 3)), RANDOM.integers(0, 5, (2, 2))
    y = run("index_select", x, index, axis=1)
    assert all((y[:, i, j] == x[:, index[i, j]]).all() for i in range(2) for j in range(2))


@pytest.mark.parametrize("name", ["gather", "index_select"])
@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_an_input_error(name: str, index: int) -> None:
    with pytest.raises(InputError, match=rf"{name}: index {index} is not in 0\.\.4"):
        run(name, np.zeros(5), np.array([0, index]), axis=0)


def test_scatter_puts_and_adds_repeats() -> None:
    x, index, updates = np.ones(4), np.array([2, 0, 2]), np.array([10.0, 20.0, 30.0])
    assert run("scatter", x, index, updates, axis=0, reduce="add").tolist() == [21, 1, 41, 1]
    assert run("scatter", x, index[:2], updates[:2], axis=0).tolist() == [20, 1, 10, 1]
    assert x.tolist() == [1, 1, 1, 1], "operands are not changed"


def test_topk_and_sort_are_stable() -> None:
    x = np.array([1, 3, 3, 2, 3, 0])
    values, indices = run("topk", x, k=4)
    assert (values.tolist(), indices.tolist()) == ([3, 3, 3, 2], [1, 2, 4, 3])
    assert run("sort", x)[1].tolist() == [5, 0, 3, 1, 2, 4]
    assert run("sort", x, descending=True)[1].tolist() == [1, 2, 4, 3, 0, 5]
    assert run("topk", x.astype(np.uint8), k=2)[0].tolist() == [3, 3]


def test_argmax_takes_the_lowest_index_of_equals() -> None:
    assert run("argmax", np.array([[1, 5, 5], [7, 7, 7]]), axis=1).tolist() == [1, 0]


def test_matmul_matches_einsum_for_every_orientation() -> None:
    a, b = RANDOM.standard_normal((2, 3, 4)), RANDOM.standard_normal((4, 5))
    want = np.einsum("bmk,kn->bmn", a, b)
    assert np.allclose(run("matmul", a, b), want)
    assert np.allclose(run("matmul", a.swapaxes(1, 2), b, ta=True), want)
    assert np.allclose(run("matmul", a, b.T, tb=True), want)
    assert np.allclose(run("matmul", a.swapaxes(1, 2), b.T, ta=True, tb=True), want)


def test_depthwise_conv_is_a_sliding_dot_product_of_each_channel() -> None:
    x, w, bias = RANDOM.standard_normal((2, 6, 3)), RANDOM.standard_normal((3, 4)), RANDOM.standard_normal(3)
    y = run("depthwise_conv1d", x, w, bias)
    assert y.shape == (2, 3, 3)
    assert np.allclose(y[1, 2], [bias[c] + sum(w[c, k] * x[1, 2 + k, c] for k in range(4)) for c in range(3)])


def test_slice_checks_symbolic_bounds_when_they_are_known() -> None:
    with pytest.raises(InputError, match=r"slice: 2\.\.9 is not within the 4 of dim 0"):
        run("slice", np.zeros(4), axis=0, start=(2,), stop=(9,))


def test_constant_fills_or_lists() -> None:
    assert run("constant", values=(2.0,), shape=(2, 2), type=DType.F32).tolist() == [[2, 2], [2, 2]]
    assert run("constant", values=(1, 2, 3), shape=(3,), type=DType.I64).dtype == np.int64
    assert run("constant", values=(0.1,), shape=(), type=DType.F16) == float(np.float16(0.1))
