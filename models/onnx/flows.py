"""Operations on values that may be lifted: what ONNX writes once for all rows, ours has once a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from omnic.errors import OmnicError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Value
from omnic.ir.types import DType
from omnic.models.onnx.kinds import Flow

__all__ = ["Flows", "Refusal"]


class Refusal(OmnicError):
    """A node that cannot be taken; the importer lists all of them together."""


class Flows:
    """Appends nodes to ``f``; ``batch`` is the dim that lifted values have in front."""

    def __init__(self, f: FunctionBuilder, batch: Dim) -> None:
        self.f, self.batch = f, batch
        self._made: dict[Value, Node] = {}
        self._seen = 0

    def made_by(self, value: Value) -> Node | None:
        """Return the node that makes ``value``; None for parameters and weights."""
        for node in self.f.nodes[self._seen :]:
            self._made.update(dict.fromkeys(node.results, node))
        self._seen = len(self.f.nodes)
        return self._made.get(value)

    def cast(self, flow: Flow, dtype: DType) -> Flow:
        """Return a value in another element type."""
        if flow.dtype == dtype:
            return flow
        return Flow(self.f.op("cast", flow.value, to=dtype), flow.lifted)

    def reshape(self, flow: Flow, shape: Sequence[Dim]) -> Flow:
        """Return a value under another shape."""
        full = (self.batch, *shape) if flow.lifted else tuple(shape)
        return Flow(self._reshaped(flow.value, full), flow.lifted)

    def _reshaped(self, value: Value, shape: tuple[Dim, ...]) -> Value:
        """Return a value under another shape; of two reshapes in a row the last one counts."""
        made = self.made_by(value)
        while made is not None and made.op == "reshape" and made.operands[0] is not None:
            value = made.operands[0]
            made = self.made_by(value)
        return value if value.type.shape == shape else self.f.op("reshape", value, shape=shape)

    def transpose(self, flow: Flow, perm: Sequence[int]) -> Flow:
        """Return a value with its dims in another order."""
        full = (0, *(p + 1 for p in perm)) if flow.lifted else tuple(perm)
        return Flow(self._transposed(flow.value, full), flow.lifted)

    def _transposed(self, value: Value, perm: tuple[int, ...]) -> Value:
        """Return a value transposed; two transposes become one, and one moves into a concat of its inverse."""
        if perm == tuple(range(len(perm))):
            return value
        made = self.made_by(value)
        if made is None or made.operands[0] is None:
            return self.f.op("transpose", value, perm=perm)
        if made.op == "transpose":
            before = cast("tuple[int, ...]", made.attrs["perm"])
            return self._transposed(made.operands[0], tuple(before[p] for p in perm))
        if made.op == "broadcast" and made.operands[0].type.rank == 0:
            return self.f.op("broadcast", made.operands[0], shape=tuple(value.type.shape[p] for p in perm))
        if made.op == "concat":
            parts = [v for v in made.operands if v is not None]
            makers = [self.made_by(v) for v in parts]
            if any(m is not None and m.op == "transpose" and _undoes(perm, m) for m in makers):
                axis = perm.index(cast(int, made.attrs["axis"]) % len(perm))
                return self.f.op("concat", *(self._transposed(v, perm) for v in parts), axis=axis)
        return self.f.op("transpose", value, perm=perm)

    def broadcast(self, flow: Flow, shape: Sequence[Dim]) -> Flow:
        """Return a value repeated to ``shape`` (of at least its rank)."""
        padded = self.pad(flow, len(shape))
        if padded.lifted and shape and shape[0] == self.batch and padded.shape[0] == 1:
            padded = self.absorb(padded)
        full = (self.batch, *shape) if padded.lifted else tuple(shape)
        if full == padded.value.type.shape:
            return padded
        return Flow(self.f.op("broadcast", padded.value, shape=full), padded.lifted)

    def pad(self, flow: Flow, rank: int) -> Flow:
        """Return a value with leading dims of 1 up to ``rank``."""
        missing = rank - len(flow.shape)
        return self.reshape(flow, (*[1] * missing, *flow.shape)) if missing > 0 else flow

    def absorb(self, flow: Flow) -> Flow:
        """Return a lifted value whose first dim is 1 with the batch in its place."""
        assert flow.lifted and flow.shape[0] == 1
        return Flow(self._reshaped(flow.value, (self.batch, *flow.shape[1:])))

    def aligned(self, *flows: Flow) -> tuple[list[Value], bool]:
        """Return values that broadcast against each other as the ONNX tensors do, and whether they are lifted."""
        if not any(f.lifted for f in flows):
            return [f.value for f in flows], False
        rank = max(len(f.shape) for f in flows)
        padded = [self.pad(f, rank) if f.lifted else f for f in flows]
        batched = rank > 0 and any(len(f.shape) == rank and f.shape[0] == self.batch for f in padded)
        if not batched:
            return [f.value for f in padded], True
        out: list[Value] = []
        for flow in padded:
            if flow.lifted and flow.shape[0] != 1:
                raise Refusal("a value that depends on the past of every row at once")
            out.append(self.absorb(flow).value if flow.lifted else flow.value)
        return out, False

    def joinable(self, flows: Sequence[Flow]) -> tuple[list[Value], bool]:
        """Return values of one rank and kind for a concat."""
        if not any(f.lifted for f in flows):
            return [f.value for f in flows], False
        batched = any(not f.lifted and f.shape and f.shape[0] == self.batch for f in flows)
        if batched:
            return [self.absorb(f).value if f.lifted else f.value for f in flows], False
        return [f.value if f.lifted else self.f.op("broadcast", f.value, shape=(self.batch, *f.shape))
                for f in flows], True

    def binary(self, op: str, left: Flow, right: Flow) -> Flow:
        """Return an elementwise op of two values."""
        (a, b), lifted = self.aligned(left, right)
        return Flow(self.f.op(op, a, b), lifted)

    def unary(self, op: str, flow: Flow, **attrs: Any) -> Flow:
        """Return an elementwise op of one value."""
        return Flow(self.f.op(op, flow.value, **attrs), flow.lifted)

    def pick(self, x: Flow, axis: int, index: Flow) -> Flow:
        """Return x with dim ``axis`` replaced by what stands at ``index`` (i64)."""
        if not index.lifted:
            return Flow(self.f.op("index_select", x.value, index.value, axis=axis + x.lifted), x.lifted)
        by_row = x.lifted or (bool(x.shape) and x.shape[0] == self.batch and axis > 0)
        if not by_row:
            rank = len(index.shape)
            found = self.f.op("index_select", x.value, index.value, axis=axis)
            front = (axis, *range(axis), *range(axis + 1, axis + 1 + rank + len(x.shape) - axis - 1))
            return Flow(self.f.op("transpose", found, perm=front) if axis else found, lifted=True)
        if len(index.shape) != 1:
            raise Refusal("a lookup of more than one dim whose places depend on the past")
        at = axis + x.lifted
        spread = tuple(self.batch if i == 0 else index.shape[0] if i == at else 1 for i in range(x.value.type.rank))
        return Flow(self.f.op("gather", x.value, self.f.op("reshape", index.value, shape=spread), axis=at), x.lifted)


def _undoes(perm: tuple[int, ...], node: Node) -> bool:
    before = cast("tuple[int, ...]", node.attrs["perm"])
    return tuple(before[p] for p in perm) == tuple(range(len(perm)))
