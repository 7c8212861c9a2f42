"""Random operands for every core op: types with symbolic dims, and arrays that fit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from omnic.ir import packing
from omnic.ir.dims import Dim, symbol
from omnic.ir.types import DType, Storage, TensorType, parse_element

SIZES = {"K": 3, "L": 1, "M": 2, "N": 4}
Sized = tuple[Dim, int]


@dataclass
class Case:
    """Operands of one op: types (symbolic), arrays (what the types are under SIZES), attributes."""

    types: list[Any]
    arrays: list[Any]
    attrs: dict[str, Any]


class Maker:
    """Draws dims and arrays from one hypothesis example."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def dim(self) -> Sized:
        if self.draw(st.booleans()):
            size = self.draw(st.integers(1, 5))
            return size, size
        name = self.pick(*SIZES)
        return symbol(name), SIZES[name]

    def shape(self, low: int = 0, high: int = 4) -> list[Sized]:
        return [self.dim() for _ in range(self.draw(st.integers(low, high)))]

    def axis(self, shape: list[Sized]) -> int:
        return self.draw(st.integers(-len(shape), len(shape) - 1))

    def floats(self, shape: list[Sized], element: DType = DType.F32) -> tuple[TensorType, Any]:
        array = self.random.standard_normal([s for _, s in shape])
        return type_of(shape, element), np.asarray(array)

    def integers(self, shape: list[Sized], low: int, high: int, element: DType = DType.I64) -> tuple[TensorType, Any]:
        """Numbers in low..high-1."""
        array = self.random.integers(low, high, [s for _, s in shape])
        return type_of(shape, element), np.asarray(array, element.numpy)

    def bools(self, shape: list[Sized]) -> tuple[TensorType, Any]:
        return type_of(shape, DType.BOOL), np.asarray(self.random.random([s for _, s in shape]) < 0.5)

    def numbers(self, shape: list[Sized], kind: str) -> tuple[TensorType, Any]:
        if kind == "float":
            return self.floats(shape)
        return self.bools(shape) if kind == "bool" else self.integers(shape, 1, 9)

    def subset(self, shape: list[Sized]) -> list[Sized]:
        """A shape that broadcasts to ``shape``."""
        kept = [d if self.draw(st.booleans()) else (1, 1) for d in shape]
        return kept[self.draw(st.integers(0, len(kept))) :]


def type_of(shape: list[Sized], element: Any) -> TensorType:
    return TensorType(element, tuple(d for d, _ in shape))


def case(*pairs: Any, **attrs: Any) -> Case:
    split: list[tuple[Any, Any]] = []
    for pair in pairs:
        if pair is None:
            split.append((None, None))
        elif isinstance(pair, list):
            split.append(([t for t, _ in pair], [a for _, a in pair]))
        else:
            split.append(pair)
    return Case([t for t, _ in split], [a for _, a in split], attrs)


def binary(kinds: tuple[str, ...]) -> Callable[[Maker], Case]:
    def make(m: Maker) -> Case:
        shape, kind = m.shape(), m.pick(*kinds)
        return case(m.numbers(m.subset(shape), kind), m.numbers(shape, kind))

    return make


def unary(kinds: tuple[str, ...], **attrs: Any) -> Callable[[Maker], Case]:
    return lambda m: case(m.numbers(m.shape(), m.pick(*kinds)), **attrs)


def reduction(kinds: tuple[str, ...]) -> Callable[[Maker], Case]:
    def make(m: Maker) -> Case:
        shape = m.shape(1)
        axes = m.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
        signed = tuple(a - len(shape) if m.draw(st.booleans()) else a for a in axes)
        return case(m.numbers(shape, m.pick(*kinds)), axes=signed, keepdims=m.draw(st.booleans()))

    return make


def along(kinds: tuple[str, ...], **attrs: Any) -> Callable[[Maker], Case]:
    def make(m: Maker) -> Case:
        shape = m.shape(1)
        return case(m.numbers(shape, m.pick(*kinds)), axis=m.axis(shape), **attrs)

    return make


def where(m: Maker) -> Case:
    shape, kind = m.shape(), m.pick("float", "int", "bool")
    return case(m.bools(m.subset(shape)), m.numbers(m.subset(shape), kind), m.numbers(shape, kind))


def cast(m: Maker) -> Case:
    return case(m.numbers(m.shape(), m.pick("float", "int", "bool")), to=m.pick(*DType))


def constant(m: Maker) -> Case:
    shape, element = m.shape(0, 3), m.pick(DType.F32, DType.F16, DType.I64, DType.BOOL)
    fixed = [(s, s) for _, s in shape]
    count = int(np.prod([s for _, s in shape]))
    if m.draw(st.booleans()):
        return case(values=(1.0,), shape=tuple(d for d, _ in shape), type=element)
    return case(values=tuple(float(i % 2) for i in range(count)), shape=tuple(d for d, _ in fixed), type=element)


def matmul(m: Maker) -> Case:
    batch, (rows, inner, columns) = m.shape(0, 2), (m.dim(), m.dim(), m.dim())
    ta, tb = m.draw(st.booleans()), m.draw(st.booleans())
    left = [inner, rows] if ta else [rows, inner]
    right = [columns, inner] if tb else [inner, columns]
    return case(m.floats(m.subset(batch) + left), m.floats(batch + right), ta=ta, tb=tb)


def reshape(m: Maker) -> Case:
    shape = m.shape(1, 4)
    cut = m.draw(st.integers(0, len(shape)))
    merged: Dim = 1
    for dim, _ in shape[cut:]:
        merged = merged * dim
    new = (*[d for d, _ in shape[:cut]], merged, 1)
    return case(m.numbers(shape, m.pick("float", "int")), shape=new)


def transpose(m: Maker) -> Case:
    shape = m.shape()
    return case(m.floats(shape), perm=tuple(m.draw(st.permutations(range(len(shape))))))


def broadcast(m: Maker) -> Case:
    shape = m.shape()
    return case(m.floats(m.subset(shape)), shape=tuple(d for d, _ in shape))


def slicing(m: Maker) -> Case:
    shape = m.shape(1)
    axis = m.axis(shape)
    dim, size = shape[axis]
    start = m.draw(st.integers(0, size))
    if m.draw(st.booleans()):
        return case(m.floats(shape), axis=axis, start=(start,), stop=(dim,))
    return case(m.floats(shape), axis=axis, start=(start,), stop=(m.draw(st.integers(start, size)),))


def concat(m: Maker) -> Case:
    shape = m.shape(1)
    axis, parts = m.axis(shape), []
    for _ in range(m.draw(st.integers(1, 3))):
        part = list(shape)
        part[axis] = m.dim()
        parts.append(m.floats(part))
    return case(parts, axis=axis)


def split(m: Maker) -> Case:
    shape, parts = m.shape(1), m.shape(1, 3)
    axis = m.axis(shape)
    total: Dim = 0
    for dim, _ in parts:
        total = total + dim
    shape[axis] = (total, sum(s for _, s in parts))
    return case(m.floats(shape), axis=axis, sizes=tuple(d for d, _ in parts))


def pad(m: Maker) -> Case:
    shape = m.shape(1)
    before, after = m.draw(st.integers(0, 3)), m.draw(st.integers(0, 3))
    return case(m.floats(shape), axis=m.axis(shape), before=before, after=after, value=1.5)


def gather(m: Maker) -> Case:
    shape = m.shape(1)
    axis = m.axis(shape)
    index = [d if m.draw(st.booleans()) else (1, 1) for d in shape]
    x = [d if d == i or m.draw(st.booleans()) else (1, 1) for d, i in zip(shape, index, strict=True)]
    x[axis], index[axis] = shape[axis], m.dim()
    return case(m.floats(x), m.integers(index, 0, shape[axis][1]), axis=axis)


def index_select(m: Maker) -> Case:
    shape = m.shape(1)
    axis = m.axis(shape)
    return case(m.floats(shape), m.integers(m.shape(0, 3), 0, shape[axis][1]), axis=axis)


def scatter(m: Maker) -> Case:
    shape = m.shape(1)
    axis = m.axis(shape)
    updates, index = list(shape), [d if m.draw(st.booleans()) else (1, 1) for d in shape]
    updates[axis] = index[axis] = m.dim()
    return case(
        m.floats(shape),
        m.integers(index, 0, shape[axis][1]),
        m.floats(updates),
        axis=axis,
        reduce=m.pick("none", "add"),
    )


def topk(m: Maker) -> Case:
    shape = m.shape(1)
    axis = m.axis(shape)
    return case(m.numbers(shape, m.pick("float", "int")), k=m.draw(st.integers(1, shape[axis][1])), axis=axis)


def conv(m: Maker) -> Case:
    batch, channels, kernel = m.dim(), m.dim(), m.draw(st.integers(1, 3))
    steps: Sized = (symbol("N"), SIZES["N"])
    bias = m.floats([channels]) if m.draw(st.booleans()) else None
    return case(m.floats([batch, steps, channels]), m.floats([channels, (kernel, kernel)]), bias)


STORAGES = (
    "i8<row>",
    "i4<g2>",
    "i4<g2, asym>",
    "i4<g2, s4>",
    "i2<g4>",
    "nf4<g4>",
    "fp4<g2>",
    "t2<g2>",
    "i8<g2, asym, f32>",
)


def quantise(m: Maker) -> Case:
    return case(m.floats(m.shape(1)), to=parse_element(m.pick(*STORAGES)))


def dequantise(m: Maker) -> Case:
    shape = m.shape(1)
    element = parse_element(m.pick(*STORAGES))
    return case((type_of(shape, element), m.floats(shape)[1]), to=m.pick(DType.F32, DType.F16, DType.BF16))


def state(m: Maker, batch: Sized) -> tuple[list[Sized], tuple[TensorType, Any]]:
    shape = [batch, *m.shape(0, 1), (symbol("N"), SIZES["N"]), (4, 4)]
    numbers = m.floats(shape)[1]
    element = m.pick(DType.F32, DType.F16, DType.BF16, parse_element("i8<g2>"), parse_element("i4<row, asym>"))
    if isinstance(element, Storage):
        return shape, (type_of(shape, element), packing.quantise(numbers, element))
    kept = numbers if element == DType.F32 else numbers.astype(element.numpy)
    return shape, (type_of(shape, element), kept)


def cache_write(m: Maker) -> Case:
    batch, tokens, ring = m.dim(), m.dim(), m.draw(st.booleans())
    shape, have = state(m, batch)
    x = [*shape[:-2], tokens, shape[-1]]
    length = m.integers([batch], 0, min(tokens[1], SIZES["N"]) + 1)
    start = m.integers([batch], 0, 9 if ring else SIZES["N"] - int(length[1].max()) + 1)
    return case(have, m.floats(x), start, length, ring=ring)


def cache_read(m: Maker) -> Case:
    batch = m.dim()
    return case(state(m, batch)[1], m.integers([batch], 0, 3), m.integers([batch], 0, 2), ring=m.draw(st.booleans()))


def cache_move(m: Maker) -> Case:
    batch, pairs, ring = m.dim(), m.dim(), m.draw(st.booleans())
    high = 9 if ring else SIZES["N"]
    return case(
        state(m, batch)[1], m.integers([batch, pairs], -1, high), m.integers([batch, pairs], -1, high), ring=ring
    )


def cache_close(m: Maker) -> Case:
    """Closes the blocks that tokens up to 9 fill; the recent tokens lie in any order behind an empty place."""
    batch, size = m.dim(), m.pick(2, 3)
    shape: list[Sized] = [batch, *m.shape(0, 1), (symbol("N"), SIZES["N"]), (4, 4)]
    element = parse_element(m.pick(f"i4<g{size}, asym, axis-2>", f"i8<g{size}, axis-2>", f"nf4<g{size}, f32, axis-2>"))
    assert isinstance(element, Storage)
    state = (type_of(shape, element), packing.quantise(m.floats(shape)[1], element))
    slots = SIZES["N"]
    index = np.stack([m.random.permutation(np.arange(-1, slots)) for _ in range(batch[1])])
    start = m.integers([batch], 0, slots)
    length = m.random.integers(0, slots - start[1] + 1)
    x = m.floats([*shape[:-2], (slots + 1, slots + 1), shape[-1]])
    return case(state, x, (TensorType(DType.I64, (batch[0], slots + 1)), index), start, (start[0], length))


NUMBER, ANY, FLOAT = ("float", "int"), ("float", "int", "bool"), ("float",)
FUNCTIONS = ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "round", "relu")

CASES: dict[str, Callable[[Maker], Case]] = {
    **{name: binary(NUMBER) for name in ("add", "sub", "mul", "minimum", "maximum", "floordiv", "mod")},
    **{name: binary(FLOAT) for name in ("div", "pow")},
    **{name: binary(NUMBER) for name in ("lt", "le", "gt", "ge")},
    **{name: binary(ANY) for name in ("eq", "ne")},
    **{name: binary(("bool",)) for name in ("and", "or")},
    "not": unary(("bool",)),
    "neg": unary(NUMBER),
    "abs": unary(NUMBER),
    "clamp": unary(NUMBER, min=-0.5, max=1.0),
    **{name: unary(FLOAT) for name in FUNCTIONS},
    "where": where,
    "cast": cast,
    "constant": constant,
    "matmul": matmul,
    "sum": reduction(NUMBER),
    "max": reduction(NUMBER),
    "mean": reduction(FLOAT),
    "argmax": along(NUMBER),
    "cumsum": along(NUMBER),
    "softmax": along(FLOAT),
    "sort": along(NUMBER, descending=True),
    "reshape": reshape,
    "transpose": transpose,
    "broadcast": broadcast,
    "slice": slicing,
    "concat": concat,
    "split": split,
    "pad": pad,
    "iota": lambda m: case(size=(m.dim()[0],), type=m.pick(DType.I64, DType.F32)),
    "gather": gather,
    "index_select": index_select,
    "scatter": scatter,
    "topk": topk,
    "depthwise_conv1d": conv,
    "quantise": quantise,
    "dequantise": dequantise,
    "cache_write": cache_write,
    "cache_read": cache_read,
    "cache_move": cache_move,
    "cache_close": cache_close,
}
