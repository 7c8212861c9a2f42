"""rope against the IR's op: angles in f64 at any position, both layouts, every scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.ir.op import find_op
from omnic.ir.rope import rope_frequencies
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.library import Kernels, address

PLAIN: dict[str, Any] = dict(base=10000.0, scaling="none", factor=1.0, original_context=0, beta_fast=32.0,
                             beta_slow=1.0, attention_factor=None, truncate=True, factors=())
OPTIONS: dict[str, dict[str, Any]] = {
    "all of a head": dict(dims=64),
    "part of a head": dict(dims=24),
    "few pairs": dict(dims=2),
    "many pairs": dict(dims=200),
    "large base": dict(dims=64, base=5e5),
    "yarn": dict(dims=64, scaling="yarn", factor=8.0, original_context=4096),
}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rope_is_the_op(built: Any, pooled: Kernels, options: dict[str, Any], interleaved: bool) -> None:
    attrs = {**PLAIN, **options}
    rng = np.random.default_rng(0)
    d = max(attrs["dims"], 70)
    x = rng.standard_normal((2, 3, 5, d)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [131072, 7, 1048575, 99999, 65536]])
    frequencies, magnitude = rope_frequencies(**attrs)
    want = find_op("rope").reference(x.astype(float), positions, interleaved=interleaved, **attrs)
    found = [
        calls.rope(k, x, positions, np.array(frequencies), magnitude=magnitude, interleaved=interleaved)
        for k in (built.kernels("generic"), built.kernels(), pooled)
    ]
    assert np.max(np.abs(found[0] - want)) < 6e-7
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_heads_beside_each_other_and_in_place(kernels: Kernels) -> None:
    frequencies, _ = rope_frequencies(**{**PLAIN, "dims": 16})
    x = np.random.default_rng(1).standard_normal((1, 4, 2, 16)).astype(np.float32)
    positions = np.array([[3, 4]])
    want = calls.rope(kernels, x, positions, np.array(frequencies))
    beside = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    assert not beside.flags.c_contiguous
    np.testing.assert_array_equal(calls.rope(kernels, beside, positions, np.array(frequencies)), want)
    view, where, freq = calls.view(beside), positions.astype(np.int64), np.array(frequencies)
    kernels.run("rope", 1, 4, 2, 16, 16, address(freq), 1.0, 0, address(where), view, view)
    np.testing.assert_array_equal(beside, want)
