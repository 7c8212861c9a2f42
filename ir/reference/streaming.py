"""Products with weights that are too large to be worth holding: made of rows of the weight, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from omnic.ir.graph import Node, Weight
from omnic.ir.op import Array, Op
from omnic.ir.weights.blocks import BLOCK, filled

__all__ = ["RowReader", "streamed", "streamed_weight", "streams"]

#: bytes of a decoded weight from which it is read in blocks
LARGE = 64 << 20
#: op -> the place of the weight whose rows are read one block after the other
_PRODUCTS = {"linear": 1, "lm_head": 1}
#: multiplications of a product that BLAS does on one core.  Larger ones it shares among all; asked for by two threads
#: at once, they wait for each other.
_ALONE = 1 << 18
#: of an embedding: tokens it may look up in rows of their own, as a share of the table
_SPARSE = 8


@runtime_checkable
class RowReader(Protocol):
    """A source of weights that can give rows."""

    def array(self, name: str, rows: tuple[int, int] | None = None) -> Array:
        """Return rows (start, stop) of a weight's decoded numbers, all when None."""
        ...

    def row_ranges(self, name: str, limit: int = ...) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of consecutive rows that are at most ``limit`` bytes as f32."""
        ...


def streamed_weight(node: Node) -> str | None:
    """Return the weight of a node that could be read in blocks, None for any other node."""
    place = 0 if node.op == "embedding" else _PRODUCTS.get(node.op)
    value = node.operands[place] if place is not None else None
    return value.name if value is not None and value.weight else None


def streams(weight: Weight, dtype: np.dtype[Any]) -> bool:
    """Whether a weight is large enough to be read in blocks, and its rows can be."""
    shape = tuple(d for d in weight.type.shape if isinstance(d, int))
    return len(shape) == 2 and weight.type.is_float and int(np.prod(shape, dtype=np.int64)) * dtype.itemsize >= LARGE


def streamed(
    node: Node,
    op: Op,
    operands: list[Any],
    attrs: dict[str, Any],
    shape: tuple[int, ...],
    rows: Callable[[int, int], Array],
) -> Array:
    """Return the result of a node whose weight is read by ``rows``; its place in ``operands`` is not looked at.

    A linear and a head give one output for each row of the weight, so blocks of rows give blocks of outputs; an
    embedding reads the rows of its tokens.
    """
    if node.op == "embedding":
        tokens = np.asarray(operands[1])
        if not tokens.size or tokens.min() < 0 or tokens.max() >= shape[0] or tokens.size * _SPARSE > shape[0]:
            return cast(Array, op.reference(rows(0, shape[0]), tokens, **attrs))
        known, place = np.unique(tokens, return_inverse=True)
        table = np.concatenate([rows(int(i), int(i) + 1) for i in known])
        return cast(Array, op.reference(table, place.reshape(tokens.shape), **attrs))
    given = op.arrange(tuple(operands))
    bias = next(i for i, spec in enumerate(op.inputs) if spec.name == "bias")

    def product(weight: Array, start: int) -> Array:
        part = list(given)
        part[1] = weight
        part[bias] = None if part[bias] is None else part[bias][start : start + len(weight)]
        return np.moveaxis(cast(Array, op.reference(*part, **attrs)), -1, 0)

    outputs, width = shape
    vectors = max(int(np.prod(np.shape(given[0])[:-1])), 1)
    at_once = _ALONE // (vectors * width)
    if at_once == 0:
        step = max(BLOCK // width, 1)
        blocks = [product(rows(a, min(a + step, outputs)), a) for a in range(0, outputs, step)]
        return np.moveaxis(np.concatenate(blocks), 0, -1)

    def block(start: int, stop: int) -> dict[str, Array]:
        weight = rows(start, stop)
        each = [product(weight[a : a + at_once], start + a) for a in range(0, stop - start, at_once)]
        return {"": np.concatenate(each)}

    return np.moveaxis(filled((0, outputs), width, block)[""], 0, -1)
