"""The shortlist of a head: always the answer of the full head, with fewer products where its bound is sharp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.shortlist import holds, reach_of
from omnic.ir.types import parse_element
from omnic.runtime.kernels.abi import Activation
from omnic.runtime.kernels.calls import head_shortlist, linear
from omnic.runtime.kernels.library import Kernels, kernels
from omnic.runtime.kernels.packing import Packed, pack

SCREEN = parse_element("i8<g32>")
ACTS = [(Activation.F32, 0), (Activation.I8_GROUP, 32), (Activation.I8_ROW, 0), (Activation.BF16, 0)]
Array = np.ndarray[Any, Any]


def packed(numbers: Array, element: str) -> tuple[Packed, Array]:
    """Return a matrix in panels and its numbers as products read them."""
    type = parse_element(element)
    if element in ("f32", "f16", "bf16"):
        held = numbers.astype(type.numpy)  # type: ignore[union-attr]
        return pack(held), held.astype(np.float32)
    codes = packing.quantise(numbers, type)  # type: ignore[arg-type]
    return pack(codes), packing.decode(codes)


class Head:
    """A head [n, k] whose rows lie mostly in ``dims`` directions, with its shortlist."""

    def __init__(self, rng: np.random.Generator, n: int, k: int, dims: int, element: str, spread: float) -> None:
        self.basis = np.linalg.qr(rng.normal(size=(k, dims)))[0].T.astype(np.float32)
        rows = rng.normal(size=(n, dims)) @ self.basis + spread * rng.normal(size=(n, k)) / np.sqrt(k)
        rows[n // 2 :: 7] = rows[0]  # equals: the lowest id wins
        self.head, self.numbers = packed(rows.astype(np.float32), element)
        screen = packing.quantise((self.numbers @ self.basis.T).astype(np.float32), SCREEN)
        self.screen, self.decoded = pack(screen), packing.decode(screen)
        self.reach = reach_of(self.numbers, self.basis, self.decoded)

    def ask(self, with_: Kernels, x: Array, act: Activation, group: int, reach: Array | None = None) -> Any:
        bounds = self.reach if reach is None else reach
        return head_shortlist(with_, self.head, pack(self.basis), self.screen, bounds, x, act=act, act_group=group)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), element=st.sampled_from(["f32", "bf16", "i8<g32>", "i4<g32, s4>", "i4<g32>"]),
       which=st.sampled_from(ACTS), spread=st.sampled_from([0.0, 0.05, 1.0, 30.0]), threads=st.sampled_from([1, 2]))
def test_the_answer_is_that_of_the_full_head(seed: int, element: str, which: Any, spread: float, threads: int) -> None:
    rng = np.random.default_rng(seed)
    n, k, dims = int(rng.integers(1, 700)), int(rng.choice([32, 64, 96, 160])), 32
    head = Head(rng, n, k, dims, element, spread)
    x = (rng.normal(size=(6, dims)) @ head.basis + spread * rng.normal(size=(6, k)) / np.sqrt(k)).astype(np.float32)
    x[1] *= 1e4 * rng.random()
    x[2] = 0
    x[3] = head.numbers[rng.integers(n)]
    act, group = which
    for level in (None, "generic"):
        with_ = kernels(level, threads)
        ids, logits, panels = head.ask(with_, x, act, group)
        full = linear(with_, head.head, x, act=act, act_group=group)
        assert np.array_equal(ids, full.argmax(1))
        assert np.array_equal(logits, full.max(1))
        assert ((panels >= 1) & (panels <= -(-n // 16))).all()


def test_a_sharp_bound_leaves_most_panels_out_and_a_false_one_gives_a_false_answer() -> None:
    rng = np.random.default_rng(3)
    head = Head(rng, 4096, 256, 32, "bf16", 0.02)
    x = (rng.normal(size=(64, 32)) @ head.basis).astype(np.float32)
    full = linear(kernels(), head.head, x)
    ids, _, panels = head.ask(kernels(), x, Activation.F32, 0)
    assert np.array_equal(ids, full.argmax(1))
    assert panels.mean() < 0.2 * 256
    loose = Head(rng, 4096, 256, 32, "bf16", 1.0)
    x = rng.normal(size=(64, 256)).astype(np.float32)
    full = linear(kernels(), loose.head, x)
    assert np.array_equal(loose.ask(kernels(), x, Activation.F32, 0)[0], full.argmax(1))
    wrong = loose.ask(kernels(), x, Activation.F32, 0, np.zeros_like(loose.reach))[0]
    assert not np.array_equal(wrong, full.argmax(1))


def test_numbers_that_are_none_multiply_the_whole_head() -> None:
    head = Head(np.random.default_rng(4), 320, 64, 32, "f32", 0.1)
    x = np.full((1, 64), np.nan, np.float32)
    assert head.ask(kernels(), x, Activation.F32, 0)[2] == 20


def test_bounds_that_are_too_small_are_seen() -> None:
    head = Head(np.random.default_rng(5), 64, 64, 32, "f32", 0.1)
    assert holds(head.numbers, head.basis, head.decoded, head.reach)
    for part in range(3):
        less = head.reach.copy()
        less[part, 7] *= 0.999
        assert not holds(head.numbers, head.basis, head.decoded, less)


def test_parts_of_different_heads_are_refused() -> None:
    head = Head(np.random.default_rng(6), 64, 64, 32, "f32", 0.1)
    x = np.zeros((1, 64), np.float32)
    with pytest.raises(InputError, match=r"head_shortlist: x \[1, 64\], a head \[64, 64\]"):
        head.ask(kernels(), x, Activation.F32, 0, head.reach[:, :5])
    with pytest.raises(InputError, match="do not fit"):
        head.ask(kernels(), x[:, :32], Activation.F32, 0)
    head.screen = replace(head.screen, n=63)
    with pytest.raises(InputError, match="do not fit"):
        head.ask(kernels(), x, Activation.F32, 0)
