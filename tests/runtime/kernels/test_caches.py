"""cache_write and cache_move against the IR's ops: codes, scales and zero points to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.op import find_op
from omnic.ir.packing import QTensor
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.caches import hold
from omnic.runtime.kernels.library import Kernels
from tests.runtime.kernels.attended import page, stored

ELEMENTS = ("f32", "f16", "bf16", "i8<g32>", "i8<row>", "i8<g16, f32>", "i8<g8, asym>", "i4<g32>", "i4<g16, asym>",
            "i4<row, asym, f32>", "i4<g20>", "i8<g20, asym>")


def same(got: Any, want: Any) -> None:
    if isinstance(want, QTensor):
        assert isinstance(got, QTensor)
        for name, part in want.parts().items():
            np.testing.assert_array_equal(got.parts()[name], part, err_msg=name)
    else:
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def fresh(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return numbers with groups of zeros, of one sign, of subnormals, and halves that round to even."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp(3 * rng.standard_normal((*shape[:-1], 1)))
    x[..., 0, :] = 0
    x[..., 1, :] = np.abs(x[..., 1, :])
    x[..., 2, :] *= 1e-7
    x[..., 3, :] = np.round(x[..., 3, :] * 4) / 8
    return x.astype(np.float32)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("element", ELEMENTS)
def test_writing_is_the_op(kernels: Kernels, element: str, ring: bool) -> None:
    state = stored(fresh((3, 2, 12, 40), 1), element)
    x = fresh((3, 2, 5, 40), 2)
    start, length = np.array([0, 9 if ring else 7, 30 if ring else 4]), np.array([5, 5, 2])
    held = hold(state, ring)
    calls.cache_write(kernels, held, x, start, length)
    same(held.state(), find_op("cache_write").reference(state, x, start, length, ring=ring))


def test_of_two_tokens_for_one_slot_the_later_stays(kernels: Kernels) -> None:
    state, x = np.zeros((1, 1, 3, 4), np.float32), fresh((1, 1, 8, 4), 3)
    held = hold(state, ring=True)
    calls.cache_write(kernels, held, x, np.array([1]), np.array([8]))
    same(held.state(), find_op("cache_write").reference(state, x, np.array([1]), np.array([8]), ring=True))


def test_tokens_beyond_the_capacity_are_not_written(kernels: Kernels) -> None:
    held = hold(np.zeros((1, 1, 4, 4), np.float32))
    calls.cache_write(kernels, held, np.ones((1, 1, 4, 4), np.float32), np.array([2]), np.array([4]))
    state = held.state()
    assert isinstance(state, np.ndarray)
    assert state[0, 0, :, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("element", ELEMENTS)
def test_writing_to_pages_writes_their_slots_alone(kernels: Kernels, element: str) -> None:
    state, x = stored(fresh((2, 2, 10, 40), 4), element), fresh((2, 2, 5, 40), 5)
    start, length = np.array([3, 5]), np.array([5, 4])
    written = find_op("cache_write").reference(state, x, start, length, ring=False)
    paged, want = page(hold(state), 4), page(hold(written), 4)
    calls.cache_write(kernels, paged, x, start, length)
    for got, have in ((paged.data, want.data), (paged.scales, want.scales), (paged.zeros, want.zeros)):
        if have is not None:
            assert got is not None
            assert got.tobytes() == have.tobytes()


def test_a_scale_beyond_f16_is_its_largest_number(kernels: Kernels) -> None:
    held = hold(stored(np.zeros((1, 1, 4, 8), np.float32), "i8<g8>"))
    calls.cache_write(kernels, held, np.full((1, 1, 4, 8), 3e8, np.float32), np.array([0]), np.array([1]))
    state = held.state()
    assert isinstance(state, QTensor)
    assert float(state.scale[0, 0, 0, 0]) == 65504.0
    assert state.codes[0, 0, 0].tolist() == [127] * 8


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("element", ELEMENTS)
def test_moving_is_the_op(kernels: Kernels, element: str, ring: bool) -> None:
    state = stored(fresh((2, 2, 9, 40), 6), element)
    # A cycle, a chain, a pair that is skipped, and in a ring logical indices beyond the slots.
    source = np.array([[1, 2, 0, 5, 6, -1], [8, 7, 3, 4, 2, 2]]) + (9 if ring else 0)
    target = np.array([[2, 0, 1, 6, 7, 3], [7, 8, 4, -1, 0, 1]])
    held = hold(state, ring)
    calls.cache_move(kernels, held, source, target)
    same(held.state(), find_op("cache_move").reference(state, source, target, ring=ring))


def test_too_many_pairs_are_refused(kernels: Kernels) -> None:
    held = hold(np.zeros((1, 1, 4, 4), np.float32))
    pairs = np.zeros((1, 16385), np.int64)
    with pytest.raises(InputError, match="16385 pairs in one call, at most 16384 are taken"):
        calls.cache_move(kernels, held, pairs, pairs)
