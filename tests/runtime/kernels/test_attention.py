"""Attention and absorbed MLA over every kind of cache and mask, against the ops' own reference in f64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.caches import hold
from omnic.runtime.kernels.library import Kernels
from tests.runtime.kernels.attended import Case, case, stored

#: f32 sums of a few thousand products of unit normals
BOUND = 3e-6
CASES: dict[str, dict[str, Any]] = {
    "one query of one head": dict(batch=1, heads=1, groups=1, tokens=1),
    "grouped heads": dict(heads=8, groups=2, tokens=7),
    "odd sizes": dict(heads=6, groups=3, tokens=7, d=33, dv=50, slots=131),
    "more queries than a task": dict(heads=4, groups=1, tokens=40, slots=77),
    "several chunks": dict(heads=4, groups=2, tokens=3, slots=2500),
    "window": dict(tokens=9, window=17),
    "window beyond a chunk": dict(tokens=2, window=1500, slots=4200, full=True),
    "softcap": dict(softcap=3.0),
    "sinks": dict(sinks=True),
    "tree": dict(tokens=12, tree=True),
    "tree, window, sinks": dict(tokens=12, tree=True, window=6, sinks=True),
    "ring": dict(tokens=6, slots=25, ring=True, window=20),
    "pages": dict(paged=7),
    "pages of a long context": dict(tokens=2, slots=1500, paged=64, element="f16"),
    "f16": dict(element="f16"),
    "bf16": dict(element="bf16", d=40),
    "i8": dict(element="i8<g32>"),
    "i8 rows, f32 scales": dict(element="i8<row, f32>", d=36, dv=20),
    "i8 asymmetric": dict(element="i8<g8, asym>", d=24),
    "i4": dict(element="i4<g32>"),
    "i4 asymmetric, pages": dict(element="i4<g64, asym, f32>", paged=5),
    "i4 of odd groups": dict(element="i4<g20>", d=44, dv=30),
}
MLA: dict[str, dict[str, Any]] = {
    "decoding": dict(heads=8, tokens=1, d=128, dv=32, slots=300),
    "odd heads and sizes": dict(heads=5, tokens=3, d=50, dv=18),
    "several chunks": dict(batch=1, heads=16, tokens=2, d=64, dv=32, slots=2500),
    "tree": dict(heads=4, tokens=10, tree=True),
    "window, softcap": dict(heads=4, tokens=6, window=9, softcap=4.0),
    "ring": dict(heads=3, tokens=4, slots=16, ring=True, window=13),
    "pages of i8": dict(heads=8, d=96, dv=32, element="i8<g32, asym>", paged=16),
    "f16": dict(heads=8, element="f16"),
    "i4": dict(heads=8, element="i4<g32>"),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_attention_is_the_ops(kernels: Kernels, options: dict[str, Any]) -> None:
    tried = case(1, **options)
    assert tried.error(tried.run(kernels)) < BOUND


@pytest.mark.parametrize("options", MLA.values(), ids=MLA)
def test_mla_is_the_ops(kernels: Kernels, options: dict[str, Any]) -> None:
    tried = case(2, mla=True, **options)
    assert tried.error(tried.run(kernels)) < BOUND


@pytest.mark.parametrize("options", [*CASES.values(), *(dict(mla=True, **o) for o in MLA.values())],
                         ids=[*CASES, *(f"mla {name}" for name in MLA)])
def test_levels_and_threads_give_the_same_bits(built: Any, pooled: Kernels, options: dict[str, Any]) -> None:
    tried = case(3, **options)
    want = tried.run(built.kernels("generic"))
    for other in (built.kernels(), pooled):
        np.testing.assert_array_equal(tried.run(other), want)


@pytest.mark.parametrize("options", [dict(heads=4, groups=1), dict(heads=3, groups=3, element="i8<g32>"),
                                     dict(heads=8, mla=True, dv=32), dict(heads=4, window=21, slots=1200)],
                         ids=["shared keys", "a head each", "mla", "window"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_row_does_not_depend_on_the_rest_of_the_call(pooled: Kernels, options: dict[str, Any], batch: int) -> None:
    whole = case(4, batch=batch, tokens=16, full=True, **options)
    want = whole.run(pooled)
    for row in range(batch):
        for first, last in ((0, 1), (0, 5), (3, 4), (7, 16), (15, 16)):
            part = whole.part(slice(row, row + 1), slice(first, last)).run(pooled)
            np.testing.assert_array_equal(part[0], want[row, :, first:last])


@pytest.mark.parametrize("tokens", range(1, 17))
def test_every_number_of_tokens_gives_the_same_rows(pooled: Kernels, tokens: int) -> None:
    whole = case(5, batch=2, tokens=16, full=True, slots=1100)
    part = whole.part(slice(None), slice(0, tokens)).run(pooled)
    np.testing.assert_array_equal(part, whole.run(pooled)[:, :, :tokens])


def test_a_query_that_sees_nothing_gives_zero(kernels: Kernels) -> None:
    tried = case(6, batch=1, tokens=4, slots=8)
    none = Case(tried.q, None, tried.k, tried.v, np.array([3]), np.array([0]))
    assert not none.run(kernels).any()


def test_slots_nobody_sees_are_not_read(kernels: Kernels) -> None:
    tried = case(7, batch=1, tokens=2, slots=40, full=False)
    end = int(tried.start[0] + tried.length[0])
    assert isinstance(tried.k, np.ndarray)
    assert isinstance(tried.v, np.ndarray)
    want = tried.run(kernels)[:, :, : tried.length[0]]
    tried.k[:, :, end:] = np.nan
    tried.v[:, :, end:] = np.nan
    np.testing.assert_array_equal(tried.run(kernels)[:, :, : tried.length[0]], want)


def test_caches_the_kernels_lack_are_refused() -> None:
    with pytest.raises(InputError, match=r"a cache holds f32, f16, bf16, i8 or i4, not float64"):
        hold(np.zeros((1, 1, 4, 8)))
    with pytest.raises(InputError, match=r"the kernels have no cache of nf4<g8>"):
        hold(stored(np.zeros((1, 1, 4, 8), np.float32), "nf4<g8>"))
    with pytest.raises(InputError, match=r"rows of an even number of codes, not 7"):
        hold(stored(np.zeros((1, 1, 4, 7), np.float32), "i4<g8>"))
    with pytest.raises(InputError, match=r"a cache is \[B, S, D\] or \[B, G, S, D\], not \[4, 8\]"):
        hold(np.zeros((4, 8), np.float32))


def test_queries_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    tried = case(8)
    k, v = hold(tried.k), hold(tried.v)
    with pytest.raises(InputError, match=r"attention: q \[2, 3, 5, 64\] does not fit keys \[2, 2, 100, 64\]"):
        calls.attention(kernels, tried.q[:, :3], k, v, tried.start, tried.length, scale=1.0)
    with pytest.raises(InputError, match=r"mla: queries of 64 and 32 do not fit caches of 64 and 64"):
        calls.mla(kernels, tried.q, tried.q[..., :32], k, v, tried.start, tried.length, scale=1.0)
