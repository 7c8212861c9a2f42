"""Experts: against the op's reference in f64, plain C and the best level to the bit, whatever else is in the call."""

import numpy as np
import pytest

from omnic.ir.ops.composite import activate, gated
from omnic.runtime.kernels.abi import Activation, Kind, Level
from omnic.runtime.kernels.library import Kernels, Library, Pool
from tests.runtime.kernels.products import matrix, moe, rounded

ACTS = ((Activation.F32, 0), (Activation.I8_ROW, 0), (Activation.I8_GROUP, 32))
EXPERTS, WIDTH, HIDDEN, TOP = 5, 40, 67, 2


def experts(element, rng):
    """Tables of gate, up and down; expert 3 is nowhere, and no token chooses it."""
    tables = [[matrix(element, n, k, rng) for _ in range(EXPERTS)]
              for n, k in ((HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN))]
    return [[None if e == 3 else weight for e, weight in enumerate(table)] for table in tables]


def choices(rng, m):
    indices = np.stack([rng.permutation([0, 1, 2, 4])[:TOP] for _ in range(m)])
    return indices, rng.random((m, TOP)).astype(np.float32)


def in_f64(gate, up, down, x, indices, gates, kind, act, group, biases, extras=(1.0, 0.0, None)):
    """Return the result, and the size of what was summed."""
    seen = rounded(x, act, group)
    y, size = np.zeros((len(x), WIDTH)), np.zeros((len(x), WIDTH))
    for i, chosen in enumerate(indices):
        for j, e in enumerate(chosen):
            inner = seen[i] @ up[e].numbers.T + (biases[1][e] if biases else 0)
            if gate is None:
                hidden = activate(inner, kind)
            else:
                hidden = gated(seen[i] @ gate[e].numbers.T + (biases[0][e] if biases else 0), inner, kind,
                               *extras)
            hidden = rounded(hidden[None].astype(np.float32), act, group)[0]
            out = hidden @ down[e].numbers.T + (biases[2][e] if biases else 0)
            y[i] += gates[i, j] * out
            size[i] += np.abs(gates[i, j]) * (np.abs(hidden) @ np.abs(down[e].numbers.T) + 1)
    return y, size


@pytest.mark.parametrize("element", ["f32", "i4<g32, s4>", "i8<row>"])
@pytest.mark.parametrize(("kind", "with_gate"), [("silu", True), ("gelu", True), ("relu2", False)])
def test_experts_are_those_of_the_reference(kernels: Kernels, element, kind, with_gate):
    rng = np.random.default_rng(1)
    gate, up, down = experts(element, rng)
    biases = tuple([rng.standard_normal(n).astype(np.float32) for _ in range(EXPERTS)] for n in (HIDDEN, HIDDEN, WIDTH))
    for m in (1, 9, 150):
        x = rng.standard_normal((m, WIDTH)).astype(np.float32)
        indices, gates = choices(rng, m)
        for act, group in ACTS:
            for extra in (None, biases):
                opening = gate if with_gate else None
                y = moe(kernels, opening, up, down, x, indices, gates, Kind[kind.upper()], act, group, extra)
                want, size = in_f64(opening, up, down, x, indices, gates, kind, act, group, extra)
                # A hidden number near the middle of two codes may take either: one step of one of 67 codes.
                step = 0 if act == Activation.F32 else 2 / 127
                assert (np.abs(y - want) <= (1e-5 + step) * size).all()


@pytest.mark.parametrize("element", ["bf16", "i4<g32, s4>", "i4<g32>"])
def test_plain_c_threads_and_neighbours_change_nothing(built: Library, element):
    rng = np.random.default_rng(2)
    gate, up, down = experts(element, rng)
    x = rng.standard_normal((40, WIDTH)).astype(np.float32)
    indices, gates = choices(rng, 40)
    for act, group in ACTS:
        plain = moe(built.kernels(Level.GENERIC), gate, up, down, x, indices, gates, Kind.SILU, act, group)
        assert np.array_equal(moe(built.kernels(), gate, up, down, x, indices, gates, Kind.SILU, act, group), plain)
        with Pool(built, 3) as pool:
            threads = moe(built.kernels(pool=pool), gate, up, down, x, indices, gates, Kind.SILU, act, group)
        assert np.array_equal(threads, plain)
        for m in (1, 2, 16):
            some = slice(3, 3 + m)
            few = moe(built.kernels(), gate, up, down, x[some], indices[some], gates[some], Kind.SILU, act, group)
            assert np.array_equal(few, plain[some])


@pytest.mark.parametrize(("kind", "alpha", "beta", "limit"), [
    ("silu", 1.702, 1.0, 0.5), ("silu", 1.0, 0.0, 0.25), ("silu", 0.5, -0.5, None), ("gelu", 1.0, 1.0, 1.0)])
def test_the_gate_has_a_slope_an_offset_and_a_limit(kernels: Kernels, kind, alpha, beta, limit):
    rng = np.random.default_rng(4)
    gate, up, down = experts("f32", rng)
    x = rng.standard_normal((9, WIDTH)).astype(np.float32)
    indices, gates = choices(rng, 9)
    bare = moe(kernels, gate, up, down, x, indices, gates, Kind[kind.upper()])
    y = moe(kernels, gate, up, down, x, indices, gates, Kind[kind.upper()], extras=(alpha, beta, limit or 0.0))
    want, size = in_f64(gate, up, down, x, indices, gates, kind, Activation.F32, 0, None, (alpha, beta, limit))
    assert (np.abs(y - want) <= 1e-5 * size).all()
    assert not np.allclose(bare, y, rtol=1e-3)


def test_an_index_that_is_no_expert_adds_nothing(kernels: Kernels):
    rng = np.random.default_rng(3)
    gate, up, down = experts("i8<row>", rng)
    x = rng.standard_normal((3, WIDTH)).astype(np.float32)
    indices, gates = choices(rng, 3)
    one = moe(kernels, gate, up, down, x[:1], indices[:1, :1], gates[:1, :1], Kind.SILU)
    indices[0, 1], indices[1] = EXPERTS, -1
    y = moe(kernels, gate, up, down, x, indices, gates, Kind.SILU)
    assert np.array_equal(y[0], one[0])
    assert (y[1] == 0).all()
    assert (y[2] != 0).any()
