"""One measured call of a product: random weights, as many distinct ones as a model has, through the kernel library."""

from __future__ import annotations

import time
from ctypes import POINTER, byref, c_void_p, cast, pointer
from dataclasses import replace
from typing import Any

import numpy as np

from omnic.ir.ops.linear import activation_group
from omnic.runtime.kernels import abi
from omnic.runtime.kernels.abi import Activation, Call, Kind, Weight
from omnic.runtime.kernels.library import Kernels, address
from omnic.runtime.kernels.packing import Packed, PanelType, part_bytes, weight_of
from omnic.targets.tvm.tuning.products import Product, read_panels
from omnic.targets.tvm.tuning.records import Tuning

__all__ = ["ProductTimer", "product_bytes", "random_panels"]

#: seconds that one sample should take at least, so that the clock and Python's own call do not count
SAMPLE = 3e-3
#: of each weight, where a call has many rows: its panels are alike, so a part of them tells as much in less time
MOST_OUTPUTS = 1024
#: of the distinct weights of one product, bytes
MOST_BYTES = 384 << 20

Array = np.ndarray[Any, Any]


def product_bytes(product: Product) -> int:
    """Return the bytes of all weights of one call."""
    total = 0
    for type, n, k in _matrices(product):
        total += sum(part_bytes(type, n, k).values()) * max(product.experts, 1)
    return total


def _matrices(product: Product) -> list[tuple[PanelType, int, int]]:
    """Return panels, outputs and inputs of every weight of a call (of one expert)."""
    types = [read_panels(text) for text in product.weights]
    if product.op != "moe":
        return [(t, n, product.k) for t, n in zip(types, product.n, strict=True)]
    hidden = product.n[0]
    return [*((t, hidden, product.k) for t in types[:-1]), (types[-1], product.k, hidden)]


def random_panels(type: PanelType, n: int, k: int, rng: np.random.Generator) -> Packed:
    """Return a matrix [n, k] of random numbers in panels."""
    sizes = part_bytes(type, n, k)
    if type.scale is None:
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[type.code]
        count = sizes["codes"] // np.dtype(kind).itemsize
        numbers = rng.standard_normal(count, np.float32) * np.float32(0.02)
        codes = (numbers.view(np.uint32) >> 16).astype(np.uint16) if kind is np.uint16 else numbers.astype(kind)
        return Packed(type, n, k, _aligned(codes.view(np.uint8)))
    codes = _aligned(rng.integers(0, 256, sizes["codes"], np.uint8))
    if type.scale == "s4":
        scales = np.full(sizes["scales"], 0x77, np.uint8)
    elif type.scale == "bf16":
        scales = np.full(sizes["scales"] // 2, 0x3C00, np.uint16).view(np.uint8)
    else:
        kind = {"f16": np.float16, "f32": np.float32}[type.scale]
        scales = np.full(sizes["scales"] // np.dtype(kind).itemsize, 0.01, kind).view(np.uint8)
    zeros = rng.integers(0, 16, sizes["zeros"], np.uint8) if type.asym else None
    row = np.full(n, 0.002, np.float32) if type.scale == "s4" else None
    return Packed(type, n, k, codes, scales, zeros, row)


def _aligned(bytes: Array) -> Array:
    """Return a copy that begins at a page, as weights in a program's file do."""
    room = np.empty(bytes.size + 4096, np.uint8)
    begin = -room.ctypes.data % 4096
    room[begin : begin + bytes.size] = bytes
    return room[begin : begin + bytes.size]


class ProductTimer:
    """Times calls of one product; every call reads the next of several distinct sets of weights.

    Args:
        product: what is called.
        rows: of a call.
        kernels: the level and the pool.
        bytes: of a model's weights: as many distinct sets are made as fit them, so that a call finds in the cache what
            a model would find there.
    """

    def __init__(self, product: Product, rows: int, kernels: Kernels, bytes: int) -> None:
        if rows > 1 and product.op != "moe":
            product = replace(product, n=tuple(min(n, MOST_OUTPUTS) for n in product.n))
        self.product, self.rows, self.kernels = product, rows, kernels
        rng = np.random.default_rng(0)
        room = min(bytes, MOST_BYTES)
        self._kept: list[Any] = []
        self._arguments = [self._call(rng) for _ in range(max(1, room // product_bytes(product)))]
        self._at = 0
        self._clock = time.thread_time if kernels.threads == 1 else time.perf_counter
        self._structs: dict[Tuning, tuple[Any, Call]] = {}
        self.calls = 1
        self(Tuning())
        self.calls = max(1, round(SAMPLE / max(self(Tuning()), 1e-7)))

    def __call__(self, tuning: Tuning) -> float:
        """Return the seconds of one call (of the outputs that are timed), the mean of a sample."""
        if tuning not in self._structs:
            struct = abi.Tuning(**dict(tuning))
            base = self.kernels.call(self._scratch)
            made = Call(base.pool, base.scratch, base.scratch_bytes, pointer(struct))
            self._structs[tuning] = struct, made
        call, function = byref(self._structs[tuning][1]), getattr(self.kernels.table, self.product.op)
        count, sets = self.calls, len(self._arguments)
        began = self._clock()
        for i in range(self._at, self._at + count):
            function(call, *self._arguments[i % sets])
        spent = self._clock() - began
        self._at = (self._at + count) % sets
        return spent / count

    def _call(self, rng: np.random.Generator) -> tuple[Any, ...]:
        """Return the arguments of a call with weights of its own."""
        product, m = self.product, self.rows
        kind, group = _activation(product.act)
        x = self._keep(rng.standard_normal((m, product.k)).astype(np.float32))
        if product.op == "moe":
            return self._moe(x, kind, group, rng)
        weights = [self._weight(*each, rng) for each in _matrices(product)]
        outs = [self._keep(np.empty((m, n), np.float32)) for n in product.n]
        self._scratch = max(self.kernels.scratch_linear(w, m, kind, group) for w in weights)
        if product.op == "linear":
            return (byref(weights[0]), address(x), m, product.k, kind, group, None, None, 0, address(outs[0]),
                    product.n[0])
        table = self._keep((POINTER(Weight) * len(weights))(*(pointer(w) for w in weights)))
        ys = self._keep((c_void_p * len(outs))(*(y.ctypes.data for y in outs)))
        widths = self._keep(np.array(product.n, np.int64))
        return (table, len(weights), address(x), m, product.k, kind, group, None, cast(ys, c_void_p), address(widths))

    def _moe(self, x: Array, kind: int, group: int, rng: np.random.Generator) -> tuple[Any, ...]:
        product, m = self.product, self.rows
        tables: list[Any] = []
        firsts: list[Weight] = []
        for each in _matrices(product):
            weights = [self._weight(*each, rng) for _ in range(product.experts)]
            firsts.append(weights[0])
            tables.append(self._keep((POINTER(Weight) * len(weights))(*(pointer(w) for w in weights))))
        gate = cast(tables[0], c_void_p) if len(tables) == 3 else None
        up, down = (cast(t, c_void_p) for t in tables[-2:])
        indices = self._keep(np.stack([rng.permutation(product.experts)[: product.top] for _ in range(m)]))
        gates = self._keep(np.full((m, product.top), 1 / product.top, np.float32))
        y = self._keep(np.empty((m, product.k), np.float32))
        self._scratch = self.kernels.library.c.omnic_scratch_moe(
            byref(firsts[-2]), byref(firsts[-1]), m, product.top, product.experts, kind, group, self.kernels.threads)
        return (gate, up, down, product.experts, address(x), m, product.k, address(indices), address(gates),
                product.top, int(Kind.SILU), 1.0, 0.0, 0.0, kind, group, None, None, None, address(y), product.k)

    def _weight(self, type: PanelType, n: int, k: int, rng: np.random.Generator) -> Weight:
        panels = self._keep(random_panels(type, n, k, rng))
        return self._keep(weight_of(panels))

    def _keep(self, thing: Any) -> Any:
        """Hold on to what C points at."""
        self._kept.append(thing)
        return thing


def _activation(act: str) -> tuple[int, int]:
    """Return kind and group of a rounding, as C has them."""
    if act == "bf16":
        return int(Activation.BF16), 0
    group = activation_group(act)
    if group is None:
        return int(Activation.F32), 0
    return int(Activation.I8_GROUP if group else Activation.I8_ROW), group
