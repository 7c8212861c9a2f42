"""Linear and ring caches against a plain Python list of tokens, rollback and compaction included."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.op import find_op
from omnic.ir.types import Storage, parse_element


def call(name: str, *arrays: Any, ring: bool) -> Any:
    return find_op(name).reference(*(np.asarray(a) if isinstance(a, list) else a for a in arrays), ring=ring)


class NaiveRow:
    """One row of a cache: the tokens by logical index, and how many slots keep them."""

    def __init__(self, slots: int, ring: bool) -> None:
        self.slots, self.ring = slots, ring
        self.tokens: list[Any] = []
        self.where: dict[int, int] = {}

    def write(self, tokens: list[Any]) -> None:
        for token in tokens:
            slot = len(self.tokens) % self.slots if self.ring else len(self.tokens)
            self.where[slot] = len(self.tokens)
            self.tokens.append(token)

    def rollback(self, length: int) -> None:
        self.tokens = self.tokens[:length]


@given(data=st.data())
def test_any_sequence_of_writes_and_rollbacks_matches_the_naive_cache(data: st.DataObject) -> None:
    """A window of W keys in a ring of W + T_max - 1 slots survives rollbacks of up to T_max tokens."""
    ring = data.draw(st.booleans())
    window, chunk, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    slots = window + chunk - 1 if ring else 24
    state = np.zeros((batch, 2, slots, 3))
    rows = [NaiveRow(slots, ring) for _ in range(batch)]
    newest = np.zeros(batch, np.int64)
    start = np.zeros(batch, np.int64)
    count = 0.0
    for _ in range(data.draw(st.integers(1, 8))):
        length = np.array([data.draw(st.integers(0, chunk if ring else min(chunk, slots - int(s)))) for s in start])
        x = np.full((batch, 2, chunk, 3), 99.0)
        for b in range(batch):
            for i in range(length[b]):
                count += 1
                x[b, :, i] = count + np.arange(6).reshape(2, 3) / 10
            rows[b].write([x[b, :, i].copy() for i in range(length[b])])
        before = state.copy()
        after = call("cache_write", state, x, start, length, ring=ring)
        assert (state == before).all(), "a state is not changed in place"
        state = after
        y, index = call("cache_read", state, start, length, ring=ring)
        start = start + length
        newest = np.maximum(newest, start)
        for b, row in enumerate(rows):
            visible = [j for j in range(int(start[b])) if not ring or j > start[b] - 1 - window]
            seen = {int(j): s for s, j in enumerate(index[b]) if j >= 0}
            assert set(visible) <= set(seen)
            assert all((y[b, :, seen[j]] == row.tokens[j]).all() for j in visible)
            assert len(seen) == min(int(start[b]), slots)
            assert all(j % slots == s if ring else j == s for j, s in seen.items())
        back = np.array(
            [
                data.draw(st.integers(max(0, int(n) - chunk) if ring else 0, int(s))) if n - s <= chunk else int(s)
                for n, s in zip(newest, start, strict=True)
            ]
        )
        for b, row in enumerate(rows):
            row.rollback(int(back[b]))
        start = back
        if not ring:
            newest = start.copy()


def test_an_empty_ring_has_no_token() -> None:
    y, index = call("cache_read", np.zeros((2, 4, 3)), [0, 1], [0, 0], ring=True)
    assert y.shape == (2, 4, 3)
    assert index.tolist() == [[-1, -1, -1, -1], [0, -1, -1, -1]]
    assert call("cache_read", np.zeros((1, 4, 3)), [5], [1], ring=True)[1].tolist() == [[4, 5, 2, 3]]


def test_more_tokens_than_slots_leave_the_last_ones() -> None:
    x = np.arange(5.0).reshape(1, 5, 1)
    state = call("cache_write", np.zeros((1, 3, 1)), x, [4], [5], ring=True)
    # Tokens 4..8 hold 0..4; tokens 6, 7, 8 stay, in slots 0, 1, 2.
    assert state[0, :, 0].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("start", "length", "ring", "message"),
    [
        ([0], [3], False, r"cache_write: length \[3\] is not in 0..2"),
        ([-1], [1], False, r"cache_write: start \[-1\] is negative"),
        ([3], [2], False, "cache_write: 5 tokens do not fit a state of 4 slots"),
        ([0], [-1], True, r"cache_write: length \[-1\] is not in 0..2"),
    ],
)
def test_writes_that_do_not_fit_are_input_errors(start: list[int], length: list[int], ring: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call("cache_write", np.zeros((1, 4, 1)), np.zeros((1, 2, 1)), start, length, ring=ring)


@given(data=st.data())
def test_move_reads_before_it_writes(data: st.DataObject) -> None:
    ring, pairs = data.draw(st.booleans()), data.draw(st.integers(1, 5))
    state = np.arange(2 * 6 * 2, dtype=float).reshape(2, 6, 2)
    high = 11 if ring else 5
    source = np.array(data.draw(st.lists(st.integers(-1, high), min_size=2 * pairs, max_size=2 * pairs))).reshape(
        2, pairs
    )
    target = np.array([data.draw(st.permutations(range(-1, 5)))[:pairs] for _ in range(2)])
    want = state.copy()
    for b in range(2):
        for s, t in zip(source[b], target[b], strict=True):
            if s >= 0 and t >= 0:
                want[b, t % 6] = state[b, s % 6]
    assert (call("cache_move", state, source, target, ring=ring) == want).all()


def test_move_compacts_the_accepted_path_of_a_tree() -> None:
    state = np.arange(8.0).reshape(1, 8, 1)
    moved = call("cache_move", state, [[4, 7, -1]], [[3, 4, 5]], ring=False)
    assert moved[0, :, 0].tolist() == [0, 1, 2, 4, 7, 5, 6, 7]
    with pytest.raises(InputError, match=r"cache_move: a target index is not in -1\.\.7"):
        call("cache_move", state, [[0]], [[8]], ring=False)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_states_hold_rounded_numbers(kind: Any) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 3))
    state = call("cache_write", np.zeros((1, 4, 3), kind), x, [1], [2], ring=False)
    y, _ = call("cache_read", state, [1], [2], ring=False)
    assert state.dtype == kind
    assert (y[:, 1:3] == x.astype(kind).astype(np.float64)).all()


@pytest.mark.parametrize("text", ["i8<row>", "i4<g4>", "i4<g4, asym>", "i4<g4, s4>", "nf4<g8>"])
def test_quantised_states_hold_each_token_as_quantised_alone(text: str) -> None:
    element = parse_element(text)
    assert isinstance(element, Storage)
    random = np.random.default_rng(1)
    state = packing.zeros(element, (2, 2, 5, 8))
    x = random.standard_normal((2, 2, 3, 8))
    state = call("cache_write", state, x, [0, 1], [3, 2], ring=False)
    state = call("cache_write", state, x[:, :, :1], [3, 3], [1, 1], ring=False)
    y, index = call("cache_read", state, [0, 0], [4, 4], ring=False)
    want = packing.decode(packing.quantise(x, element), np.float64)
    assert (y[0, :, :3] == want[0]).all() and (y[0, :, 3] == want[0, :, 0]).all()
    assert (y[1, :, 1:3] == want[1, :, :2]).all() and (y[1, :, 0] == 0).all()
    assert index.tolist() == [[0, 1, 2, 3, -1]] * 2
    assert state.nbytes == element.bytes((2, 2, 5, 8))
