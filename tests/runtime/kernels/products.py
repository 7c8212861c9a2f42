"""Products of the kernel library called from numpy, and what they must give in exact arithmetic."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from omnic.ir.packing import QTensor, decode, quantise
from omnic.ir.types import Storage, parse_element
from omnic.runtime.kernels.abi import Activation, Tuning, View, Weight
from omnic.runtime.kernels.library import Kernels, address
from omnic.runtime.kernels.packing import Packed, pack, weight_of

NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
#: layouts of weights: types of codes, of scales, symmetric or not, groups along k or one for a row
ELEMENTS = ("f32", "f16", "bf16", "i8<row>", "i8<g32, f32>", "i8<g64, asym>", "i4<g32>", "i4<g32, s4>", "i4<g64, asym>",
            "i4<g128, s4>", "i4<row, f32>", "i4<g32, asym, s4>", "i2<g32>", "i2<g64, asym>", "t2<row>", "i4<g32, e8m0>",
            "i4<g20>", "i8<g20, asym>", "fp4<g32, e8m0>", "i3<g64, asym>", "i5<g32>")


@dataclass(frozen=True)
class Matrix:
    """A weight: packed, as C sees it, and its numbers in f64."""

    packed: Packed
    c: Weight
    numbers: np.ndarray

    @property
    def plain(self) -> bool:
        return self.packed.type.scale is None


def matrix(element: str, n: int, k: int, rng: np.random.Generator) -> Matrix:
    """Return a random weight of an element type."""
    values = rng.standard_normal((n, k)).astype(np.float32)
    if element in NUMPY:
        array = values.astype(NUMPY[element])
        packed, numbers = pack(array), array.astype(np.float64)
    else:
        type = parse_element(element)
        assert isinstance(type, Storage)
        stored: QTensor = quantise(values, type)
        packed, numbers = pack(stored), decode(stored, np.float64)
    return Matrix(packed, weight_of(packed), numbers)


def rounded(x: np.ndarray, act: Activation, group: int) -> np.ndarray:
    """Return activations as a product sees them, in f64; steps are those of f32."""
    if act == Activation.F32:
        return x.astype(np.float64)
    if act == Activation.BF16:
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    size = x.shape[1] if act == Activation.I8_ROW else min(group, x.shape[1])
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % size)))
    groups = padded.reshape(len(x), -1, size)
    peak = np.abs(groups).max(axis=-1, keepdims=True)
    step = np.where(peak > 0, peak / np.float32(127), np.float32(1))
    return (np.rint(groups / step).astype(np.float64) * step).reshape(len(x), -1)[:, : x.shape[1]]


def linear(
    kernels: Kernels, weight: Matrix, x: np.ndarray, act: Activation = Activation.F32, group: int = 32,
    bias: np.ndarray | None = None, residual: np.ndarray | None = None, gap: int = 3,
) -> np.ndarray:
    """Return x W^T + bias + residual; rows of x and y lie ``gap`` numbers apart, and the gap of y must stay."""
    m, k = x.shape
    wide = np.full((m, k + gap), np.nan, np.float32)
    wide[:, :k] = x
    y = np.full((m, weight.packed.n + gap), 7.0, np.float32)
    kernels.run(
        "linear", ctypes.byref(weight.c), address(wide), m, k + gap, int(act), group, address(bias),
        address(residual), 0 if residual is None else residual.shape[1], address(y), y.shape[1],
        scratch=kernels.scratch_linear(weight.c, m, int(act), group))
    assert (y[:, weight.packed.n :] == 7.0).all()
    return y[:, : weight.packed.n].copy()


def pointers(weights: list[Matrix | None]) -> Any:
    """Return a table of pointers to weights, and keep nothing alive but them."""
    table = (ctypes.POINTER(Weight) * len(weights))()
    for i, weight in enumerate(weights):
        if weight is not None:
            table[i] = ctypes.pointer(weight.c)
    return table


def addresses(arrays: list[np.ndarray]) -> Any:
    """Return a table of addresses."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def view(array: np.ndarray) -> View:
    """Return [B, H, T, D] as the kernels see it; D is contiguous."""
    strides = [stride // 4 for stride in array.strides]
    assert strides[3] == 1
    return View(array.ctypes.data, *strides[:3])


def moe(
    kernels: Kernels, gate: list[Matrix | None] | None, up: list[Matrix | None], down: list[Matrix | None],
    x: np.ndarray, indices: np.ndarray, gates: np.ndarray, kind: int, act: Activation = Activation.F32, group: int = 32,
    biases: tuple[list[np.ndarray] | None, list[np.ndarray], list[np.ndarray]] | None = None,
    extras: tuple[float, float, float] = (1.0, 0.0, 0.0), tuning: Tuning | None = None,
) -> np.ndarray:
    """Return the sum over each token's experts; ``extras`` are alpha, beta and limit of the gate."""
    m, top = indices.shape
    first, last = next(w for w in up if w), next(w for w in down if w)
    y = np.full((m, last.packed.n), np.nan, np.float32)
    indices, gates = np.ascontiguousarray(indices, np.int64), np.ascontiguousarray(gates, np.float32)
    tables = [None if table is None else addresses(table) for table in biases or (None, None, None)]
    scratch = kernels.library.c.omnic_scratch_moe(
        ctypes.byref(first.c), ctypes.byref(last.c), m, top, len(up), int(act), group, kernels.threads)
    kernels.run(
        "moe", None if gate is None else pointers(gate), pointers(up), pointers(down), len(up), address(x), m,
        x.shape[1], address(indices), address(gates), top, kind, *extras, int(act), group, *tables, address(y),
        y.shape[1], scratch=scratch, tuning=tuning)
    return y
