"""Views: what needs no copy, and what does."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.ir.dims import Dim, evaluate, symbol
from omnic.ir.types import DType
from omnic.targets.tvm.views import Buffer, View, contiguous_strides

B, T = symbol("B"), symbol("T")
SIZES = {"B": 2, "T": 3}


def whole(*shape: Dim) -> View:
    size: Dim = 1
    for one in shape:
        size = size * one
    return View(Buffer("x", DType.F32, size), shape, contiguous_strides(shape))


def taken(view: View, numbers: np.ndarray) -> np.ndarray:
    """The elements that a view names, for B = 2 and T = 3."""
    shape = [evaluate(d, SIZES) for d in view.shape]
    strides = [4 * evaluate(s, SIZES) for s in view.strides]
    begin = evaluate(view.offset, SIZES)
    return np.lib.stride_tricks.as_strided(numbers[begin:], shape, strides)


def test_heads_of_a_product_are_a_view_and_so_is_their_merging() -> None:
    numbers = np.arange(2 * 3 * 8, dtype=np.float32)
    heads = whole(B, T, 8).reshape((B, T, 4, 2))
    assert heads is not None
    turned = heads.transpose((0, 2, 1, 3))
    assert np.array_equal(taken(turned, numbers), numbers.reshape(2, 3, 4, 2).transpose(0, 2, 1, 3))
    back = turned.transpose((0, 2, 1, 3)).reshape((B, T, 8))
    assert back is not None and back.contiguous and back.whole
    assert turned.reshape((B, T, 8)) is None


def test_a_piece_of_the_columns_is_rows_with_a_stride() -> None:
    numbers = np.arange(2 * 3 * 8, dtype=np.float32)
    piece = whole(B, T, 8).slice(-1, 5, 8)
    rows = piece.rows()
    assert rows is not None and (rows.count, rows.width, rows.stride) == (B * T, 3, 8)
    assert np.array_equal(taken(rows.view, numbers), numbers.reshape(6, 8)[:, 5:])
    assert piece.reshape((B, T * 3)) is None


def test_a_broadcast_repeats_by_a_stride_of_0() -> None:
    numbers = np.arange(3, dtype=np.float32)
    view = whole(T, 1).broadcast((B, T, 5))
    assert np.array_equal(taken(view, numbers), np.broadcast_to(numbers[None, :, None], (2, 3, 5)))


@pytest.mark.parametrize("shape", [(B, 1, T, 4), (B * T, 4), (B, T * 4), (1, B, T, 2, 2)])
def test_a_value_in_order_takes_any_shape(shape: tuple[Dim, ...]) -> None:
    view = whole(B, T, 4).reshape(shape)
    assert view is not None and view.shape == shape
    numbers = np.arange(24, dtype=np.float32)
    assert np.array_equal(taken(view, numbers).reshape(-1), numbers)
