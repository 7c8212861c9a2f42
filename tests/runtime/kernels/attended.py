"""Cases of attention for kernels and for the IR's reference: random caches, masks and queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from omnic.ir import packing
from omnic.ir.op import find_op
from omnic.ir.packing import QTensor
from omnic.ir.types import parse_element
from omnic.runtime.kernels import calls
from omnic.runtime.kernels.caches import HeldCache, hold
from omnic.runtime.kernels.library import Kernels

Array = np.ndarray[Any, Any]
PLAIN: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def stored(x: Array, element: str) -> Array | QTensor:
    """Return ``x`` rounded to a type of caches."""
    if element in PLAIN:
        return x.astype(PLAIN[element])
    return packing.quantise(x, parse_element(element))  # type: ignore[arg-type]


def numbers(state: Array | QTensor) -> Array:
    """Return what a state stands for, in f64."""
    return packing.decode(state, np.float64) if isinstance(state, QTensor) else state.astype(np.float64)


@dataclass(frozen=True)
class Case:
    """One call.  ``k`` and ``v`` are keys and values, or latents and rotated keys of MLA."""

    q: Array
    q_rope: Array | None
    k: Array | QTensor
    v: Array | QTensor
    start: Array
    length: Array
    ring: bool = False
    window: int = 0
    softcap: float = 0.0
    parents: Array | None = None
    sinks: Array | None = None
    paged: int = 0

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1]) ** -0.5

    def cache(self, state: Array | QTensor) -> HeldCache:
        """Return the state as a cache; a paged one in shuffled blocks."""
        held = hold(state, self.ring)
        return page(held, self.paged) if self.paged else held

    def run(self, kernels: Kernels) -> Array:
        """Return what the kernel gives."""
        common: dict[str, Any] = dict(scale=self.scale, softcap=self.softcap, window=self.window, parents=self.parents)
        k, v = self.cache(self.k), self.cache(self.v)
        if self.q_rope is None:
            return calls.attention(kernels, self.q, k, v, self.start, self.length, sinks=self.sinks, **common)
        return calls.mla(kernels, self.q, self.q_rope, k, v, self.start, self.length, **common)

    def reference(self) -> Array:
        """Return what the op gives in f64; of MLA before the product with w_v."""
        tokens, slots = self.q.shape[2], self.k.shape[-2]
        empty = np.zeros((self.start.size, 1, slots, 1), np.float32)
        _, k_index = find_op("cache_read").reference(empty, self.start, self.length, ring=self.ring)
        q_index = self.start[:, None] + np.arange(tokens)
        tree = (self.parents, self.start if self.parents is not None else None)
        common = dict(scale=self.scale, window=self.window, softcap=self.softcap)
        q, k, v = self.q.astype(np.float64), numbers(self.k), numbers(self.v)
        if self.q_rope is None:
            sinks = None if self.sinks is None else self.sinks.astype(np.float64)
            return find_op("attention").reference(q, k, v, q_index, k_index, sinks, *tree, **common)
        heads, width = q.shape[1], q.shape[3]
        same = np.broadcast_to(np.eye(width), (heads, width, width))
        return find_op("mla").reference(q, self.q_rope.astype(np.float64), k, v, same, same, q_index, k_index, *tree,
                                        None, None, form="absorbed", block=1, keep=0, **common)

    def error(self, y: Array) -> float:
        """Return the largest difference of ``y`` from the reference among the queries there are."""
        there = (np.arange(self.q.shape[2]) < self.length[:, None])[:, None, :, None]
        assert np.isfinite(y).all()
        return float(np.max(np.abs(y - self.reference()) * there))

    def part(self, rows: slice, tokens: slice) -> Case:
        """Return the call of some rows and tokens alone, over the same caches."""
        first = tokens.indices(self.q.shape[2])[0]
        width = len(range(*tokens.indices(self.q.shape[2])))
        cut = replace(
            self, q=self.q[rows, :, tokens], q_rope=None if self.q_rope is None else self.q_rope[rows, :, tokens],
            k=_rows(self.k, rows), v=_rows(self.v, rows), start=self.start[rows] + first,
            length=np.clip(self.length[rows] - first, 0, width))
        assert self.parents is None
        return cut


def _rows(state: Array | QTensor, rows: slice) -> Array | QTensor:
    return state.pick(rows) if isinstance(state, QTensor) else state[rows]


def page(held: HeldCache, block: int) -> HeldCache:
    """Return the same cache in blocks that lie in any order in one pool."""
    batch, heads, slots, d = held.shape
    count = -(-slots // block)
    order = np.random.default_rng(block).permutation(batch * count).astype(np.int32).reshape(batch, count)

    def pooled(part: Array | None) -> Array | None:
        if part is None:
            return None
        pool = np.zeros((1, heads, batch * count * block, part.shape[-1]), part.dtype)
        for row in range(batch):
            for index in range(count):
                have = part[row, :, index * block : (index + 1) * block]
                at = int(order[row, index]) * block
                pool[0, :, at : at + have.shape[1]] = have
        return pool

    data = pooled(held.data)
    assert data is not None
    return HeldCache((batch, heads, slots, d), data, pooled(held.scales), pooled(held.zeros), held.type,
                     held.ring, order, block)


def case(
    seed: int, *, batch: int = 2, heads: int = 4, groups: int = 2, tokens: int = 5, d: int = 64, dv: int = 64,
    slots: int = 100, element: str = "f32", ring: bool = False, tree: bool = False, sinks: bool = False,
    mla: bool = False, full: bool = False, **rest: Any,
) -> Case:
    """Return a random case; of MLA ``d`` numbers of a latent and ``dv`` rotated ones.

    ``full``: every row has all its tokens, and they end at the last slot.
    """
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 3 * slots if ring else slots - tokens + 1, batch)
    length = rng.integers(1, tokens + 1, batch)
    if full:
        start, length = np.full(batch, slots - tokens), np.full(batch, tokens)
    shape = (batch, slots) if mla else (batch, groups, slots)

    def random(*dims: int) -> Array:
        return rng.standard_normal(dims).astype(np.float32)

    k, v = stored(random(*shape, d), element), stored(random(*shape, dv), element)
    parents = None
    if tree:
        rows = [[rng.integers(-1, t) if t else -1 for t in range(tokens)] for _ in range(batch)]
        parents = np.array(rows, np.int64)
    return Case(random(batch, heads, tokens, d), random(batch, heads, tokens, dv) if mla else None, k, v, start, length,
                ring, parents=parents, sinks=random(heads) if sinks else None, **rest)
