"""The importer's workbench: ONNX values in, values of the IR out, whatever kind they are of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from omnic.errors import InternalError
from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import Dim, Expr, substitute, symbol, symbols
from omnic.ir.graph import Recipe, Value
from omnic.ir.op import Array
from omnic.ir.types import DType, TensorType
from omnic.models.onnx.flows import Flows, Refusal
from omnic.models.onnx.kinds import Causal, Flow, Known, Past, Sizes, Stored, Tensor, Uniform, numpy_of
from omnic.models.onnx.names import Names
from omnic.models.onnx.source import OnnxSource

__all__ = ["B", "CONSTANT_NUMBERS", "Converter", "FOLDED_NUMBERS", "R", "Refusal", "S", "T"]

#: batch, tokens of a call, wanted rows, slots of the cache.  S stands for past + new tokens in every shape;
#: as a number it is ``start + T``.
B, T, R, S = symbol("B"), symbol("T"), symbol("R"), symbol("S")
_P = symbol("P")

#: constants up to this size stand in the program, larger ones are weights
CONSTANT_NUMBERS = 1024
#: constants up to this size are computed while importing
FOLDED_NUMBERS = 1 << 20


class Converter(Flows):
    """Collects one function from the kinds of :mod:`omnic.models.onnx.kinds`.

    Args:
        module: the module under construction.
        f: its ``forward``.
        source: where computed weights go.
        names: what weights and scopes are called.
        batch: the batch dim: B, or a number when the graph fixes it.
        tokens: the dim of a call's tokens: T, or a number.
    """

    def __init__(self, module: ModuleBuilder, f: FunctionBuilder, source: OnnxSource, names: Names, batch: Dim,
                 tokens: Dim) -> None:
        super().__init__(f, batch)
        self.module, self.source, self.names, self.tokens = module, source, names, tokens
        self.start: Value | None = None
        self.length: Value | None = None
        self.appended: dict[Value, str] = {}
        self.written: dict[str, Value] = {}
        self.states: dict[str, Value] = {}
        self.opset = 0
        self.tables: list[tuple[int, Dim]] = []
        self._q_index: Value | None = None

    def table_needs(self, size: Dim, read: Dim) -> None:
        """Note a table of ``size`` rows of which the first ``read`` are used, where only ``read`` is symbolic."""
        if isinstance(size, int) and isinstance(read, Expr):
            self.tables.append((size, read))

    def literal(self, array: Array, dtype: DType, label: str) -> Tensor:
        """Return numbers of the file: a triangle, numbers to fold, or a weight."""
        triangle = triangle_of(array, dtype)
        if triangle is not None:
            return triangle
        if array.size <= CONSTANT_NUMBERS or not dtype.is_float:
            return Known(array, dtype)
        name = self.source.compute(label, array.astype(dtype.numpy))
        return Stored(self.load(name), array.shape, dtype, label)

    # -- kinds --------------------------------------------------------------------------------------------
    def numbers(self, tensor: Tensor) -> Array | None:
        """Return the numbers of a tensor that is known at import time and small, else None."""
        if isinstance(tensor, Known):
            return tensor.array
        if isinstance(tensor, Sizes):
            fixed = [d for d in tensor.dims.reshape(-1) if isinstance(d, (int, np.integer))]
            whole = len(fixed) == tensor.dims.size
            return np.asarray(fixed, tensor.dtype.numpy).reshape(tensor.dims.shape) if whole else None
        if isinstance(tensor, Uniform) and isinstance(tensor.value, (int, float, bool, np.generic)):
            shape = tuple(d for d in tensor.shape if isinstance(d, int))
            if len(shape) == len(tensor.shape) and int(np.prod(shape, dtype=np.int64)) <= FOLDED_NUMBERS:
                return np.full(shape, tensor.value, numpy_of(tensor.dtype))
        if isinstance(tensor, Stored) and int(np.prod(tensor.shape, dtype=np.int64)) <= FOLDED_NUMBERS:
            return self.read(tensor)
        return None

    def read(self, tensor: Stored) -> Array:
        """Return the numbers of a weight."""
        from omnic.ir.weights.recipes import Evaluator, whole

        evaluator = Evaluator(tensor.label, tensor.shape, self.source, None, None)
        return evaluator.numbers(tensor.recipe, whole(tensor.shape))

    @staticmethod
    def load(name: str) -> Recipe:
        """Return the recipe of a tensor of the source."""
        return Recipe("load", {"name": name})

    def scalar(self, tensor: Tensor) -> Any | None:
        """Return the one number a tensor holds everywhere, if it is known; None otherwise."""
        if isinstance(tensor, Uniform):
            return tensor.value if isinstance(tensor.value, (int, float, bool, np.generic)) else None
        if isinstance(tensor, (Causal, Flow, Past)):
            return None
        if isinstance(tensor, Stored) and int(np.prod(tensor.shape, dtype=np.int64)) != 1:
            return None
        array = self.numbers(tensor)
        if array is None or array.size == 0 or (array != array.flat[0]).any():
            return None
        return array.flat[0].item() if isinstance(array.flat[0], np.generic) else array.flat[0]

    def sizes(self, tensor: Tensor) -> tuple[Dim, ...]:
        """Return a tensor of integers as dims, flat.

        Raises:
            Refusal: they depend on more than shapes.
        """
        if isinstance(tensor, Sizes):
            return tuple(_plain(d) for d in tensor.dims.reshape(-1))
        if isinstance(tensor, Uniform) and all(isinstance(d, int) for d in tensor.shape):
            count = int(np.prod([int(d) for d in tensor.shape if isinstance(d, int)], dtype=np.int64))
            return (tensor.value,) * count
        array = self.numbers(tensor)
        if array is None:
            raise Refusal("a shape that depends on more than the sizes of the inputs")
        return tuple(int(d) for d in array.reshape(-1))

    # -- into the program ---------------------------------------------------------------------------------
    def emit(self, tensor: Tensor) -> Flow:
        """Return a tensor as a value of the program, made by new nodes where needed.

        Raises:
            Refusal: it is a cache that was not extended, or a size that has no value.
        """
        if isinstance(tensor, Flow):
            return tensor
        if isinstance(tensor, Known):
            return Flow(self.constant(tensor.array, tensor.dtype))
        if isinstance(tensor, Stored):
            return Flow(self.weight(tensor))
        if isinstance(tensor, Sizes):
            return self._emit_sizes(tensor)
        if isinstance(tensor, Uniform):
            return self._emit_uniform(tensor)
        if isinstance(tensor, Causal):
            return self._emit_causal(tensor)
        raise Refusal(f"it reads the cache {tensor.name} before the new tokens are in it",
                      "a decoder concatenates past and new keys and values")

    def constant(self, array: Array, dtype: DType) -> Value:
        """Return numbers as a ``constant`` node, or as a weight when there are many."""
        if array.size > CONSTANT_NUMBERS:
            name = self.source.compute("constant", array.astype(dtype.numpy))
            return self.weight(Stored(self.load(name), array.shape, dtype, name))
        if array.size == 0:
            raise Refusal("an empty constant")
        flat = array.reshape(-1)
        same = bool((flat == flat[0]).all())
        kept = flat[:1] if same else flat
        values = tuple(shortest(v) if dtype.is_float else int(v) for v in kept)
        return self.f.op("constant", hint="c", values=values, shape=array.shape, type=dtype)

    def weight(self, tensor: Stored) -> Value:
        """Return a weight's value, declared when first used."""
        name = self.names.weight(tensor)
        return self.module.weight(name, TensorType(tensor.dtype, tensor.shape), tensor.recipe)

    def _emit_sizes(self, tensor: Sizes) -> Flow:
        fixed = self.numbers(tensor)
        if fixed is not None:
            return Flow(self.constant(fixed, tensor.dtype))
        parts = [self.dim_value(_plain(d)) for d in tensor.dims.reshape(-1)]
        if tensor.dims.ndim == 0:
            return self.cast(parts[0], tensor.dtype)
        flows = [self.reshape(p, (1,)) for p in parts]
        values, lifted = self.joinable(flows)
        joined = values[0] if len(values) == 1 else self.f.op("concat", *values, axis=1 if lifted else 0)
        return self.cast(self.reshape(Flow(joined, lifted), tensor.shape), tensor.dtype)

    def dim_value(self, dim: Dim) -> Flow:
        """Return a dim as an i64 scalar of the program; past tokens are ``start``, one number per row."""
        dim = substitute(dim, {"S": _P + self.tokens}) if isinstance(dim, Expr) else dim
        if isinstance(dim, int):
            return Flow(self.f.constant(dim, DType.I64))
        total: Flow | None = None
        for monomial, coefficient in dim.terms:
            term = Flow(self.f.constant(coefficient, DType.I64)) if coefficient != 1 or not monomial else None
            for atom in monomial:
                if atom.kind != "sym":
                    raise Refusal(f"the size {dim} is used as a number")
                value = self._symbol_value(atom.name)
                term = value if term is None else self.binary("mul", term, value)
            assert term is not None
            total = term if total is None else self.binary("add", total, term)
        assert total is not None
        return total

    def _symbol_value(self, name: str) -> Flow:
        if name == "P":
            if self.start is None:
                raise InternalError("a graph without a cache has no past")
            if self.batch == 1:
                return Flow(self.f.reshape(self.start))
            return Flow(self.start, lifted=True)
        counted = self.f.op("iota", size=(symbol(name) + 1,), hint=f"upto_{name}")
        return Flow(self.f.op("max", counted, axes=(0,), hint=f"count_{name}"))

    def range_from(self, first: Dim, count: Dim, step: int = 1) -> Flow:
        """Return ``first + step * (0, 1, ..., count - 1)`` as i64."""
        steps = Flow(self.f.op("iota", size=(count,)))
        if step != 1:
            steps = self.binary("mul", steps, Flow(self.f.constant(step, DType.I64)))
        past = substitute(first, {"S": _P + self.tokens})
        if past == 0:
            return steps
        return self.binary("add", self.dim_value(first), steps)

    def _emit_uniform(self, tensor: Uniform) -> Flow:
        if isinstance(tensor.value, Expr):
            flow = self.cast(self.dim_value(tensor.value), tensor.dtype)
        else:
            flow = Flow(self.constant(np.asarray(tensor.value), tensor.dtype))
        return self.broadcast(flow, tensor.shape)

    def _emit_causal(self, tensor: Causal) -> Flow:
        rows, columns = tensor.shape[-2:]
        row = self.reshape(self.range_from(tensor.row_start, rows), (rows, 1))
        column = self.reshape(self.range_from(0, columns), (1, columns))
        seen = self.pad(self.binary("gt" if tensor.flip else "le", column, row), len(tensor.shape))
        return self.cast(self.broadcast(seen, tensor.shape), tensor.dtype)

    # -- attention ----------------------------------------------------------------------------------------
    def softmax(self, flow: Flow, axis: int) -> Flow:
        """Return the softmax of a value along one of its dims.

        A graph whose queries see every key needs no mask where the cache holds live tokens only; ours holds
        more slots than that, so the mask is added.
        """
        if flow.shape[axis] == S and not self._masked(flow.value):
            rank = len(flow.shape)
            if axis != rank - 1 or rank < 2:
                raise Refusal("a softmax over the cache that is not over the last dim")
            rows = flow.shape[-2] if flow.shape[-2] == self.tokens and self.tokens == 1 else 1
            if rows == self.tokens:
                seen = self.emit(Causal(S - self.tokens, (*[1] * (rank - 2), rows, S)))
            else:
                seen = self.pad(self.binary("lt", self.range_from(0, S), self.dim_value(S)), rank)
            hidden = Flow(self.f.constant(float("-inf"), flow.dtype))
            values, lifted = self.aligned(seen, flow, hidden)
            flow = Flow(self.f.op("where", *values), lifted)
        return self.unary("softmax", flow, axis=axis + flow.lifted)

    def _masked(self, value: Value) -> bool:
        """Whether a comparison reaches a value before the products it is made of."""
        pending, seen = [value], set[Value]()
        while pending:
            made = self.made_by(pending.pop())
            if made is None or made.op in ("matmul", "linear", "cache_read", "embedding"):
                continue
            if made.op in ("le", "lt", "ge", "gt"):
                return True
            fresh = [v for v in made.inputs() if v not in seen]
            seen.update(fresh)
            pending += fresh
        return False

    # -- lookups ------------------------------------------------------------------------------------------
    def row(self, x: Tensor, axis: int, at: Dim, keep: bool) -> Tensor:
        """Return the slice ``at`` of dim ``axis``, which stays as a dim of 1 when ``keep``."""
        size = x.shape[axis]
        place = size + at if isinstance(at, int) and at < 0 else at
        if isinstance(x, Stored) and isinstance(place, int):
            recipe = Recipe("slice", {"axis": axis, "start": place, "stop": place + 1}, (x.recipe,))
            shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
            if not keep:
                shape = (*x.shape[:axis], *x.shape[axis + 1 :])
                recipe = Recipe("reshape", {"shape": shape}, (recipe,))
            return Stored(recipe, shape, x.dtype, x.label)
        flow = self.emit(x)
        if isinstance(place, Expr) and "S" in symbols(place):
            found = self.pick(flow, axis, self.reshape(self.dim_value(place), (1,)))
        else:
            found = self.unary("slice", flow, axis=axis + flow.lifted, start=(place,), stop=(place + 1,))
        if keep:
            return found
        return self.reshape(found, (*found.shape[:axis], *found.shape[axis + 1 :]))

    def from_front(self, tensor: Sizes, size: Dim) -> Tensor:
        """Return indices that may be negative numbers counted from 0."""
        dims = np.array([size + d if isinstance(d, int) and d < 0 else d for d in tensor.dims.reshape(-1)], object)
        return Sizes(dims.reshape(tensor.dims.shape), tensor.dtype)

    # -- the cache ----------------------------------------------------------------------------------------
    def append(self, past: Past, fresh: Flow) -> Flow:
        """Write the new tokens into the state and return everything it holds, in the layout of ``past``.

        Raises:
            Refusal: the state was written before, or the new tokens are no tensor of the call.
        """
        if fresh.lifted:
            raise Refusal(f"what the cache {past.name} gets depends on the past alone")
        assert self.start is not None and self.length is not None
        rank = len(past.shape)
        order = (*(i for i in range(rank) if i != past.axis), past.axis)
        order = (*order[:-2], past.axis, order[-2])  # the slots are the last dim but one of a state
        read, _ = self.cached(past, self.transpose(fresh, order))
        joined = self.transpose(read, tuple(int(i) for i in np.argsort(order)))
        joined = self.cast(joined, past.dtype)
        self.appended[joined.value] = past.name
        return joined

    def cached(self, past: Past, fresh: Flow) -> tuple[Flow, Value]:
        """Write ``fresh`` [B, ..., T, D] into the state of ``past``; return all its slots and their index i64[B, S].

        Raises:
            Refusal: the state was written before.
        """
        if past.name in self.written:
            raise Refusal(f"the cache {past.name} is extended twice")
        assert self.start is not None and self.length is not None
        role = past.name.rsplit(".", 1)[-1]
        after = self.f.op("cache_write", self.states[past.name], fresh.value, self.start, self.length,
                          hint=f"{role}_state")
        read, index = self.f.emit("cache_read", after, self.start, self.length, hint=f"{role}_all")
        self.written[past.name] = after
        self.appended[read] = past.name
        return Flow(read), index

    def q_index(self) -> Value:
        """Return the logical index of every new token, i64[B, T]."""
        if self._q_index is None:
            assert self.start is not None
            start = self.f.reshape(self.start, self.batch, 1)
            self._q_index = self.f.op("add", start, self.f.op("iota", size=(self.tokens,)), hint="q_index")
        return self._q_index


def _plain(dim: Any) -> Dim:
    return int(dim) if isinstance(dim, (int, np.integer)) else dim


def shortest(number: Any) -> float:
    """Return the shortest decimal that is the same f32 number, so that 1e-6 reads 1e-06."""
    return float(str(np.float32(number)))


def sanitise(text: str) -> str:
    """Return ``text`` as a plain name of the text form."""
    return re.sub(r"\W+", "_", text).strip("_") or "x"


def triangle_of(array: Array, dtype: DType) -> Causal | None:
    """Return a constant [..., N, N] that is a lower triangle of ones, or its negation, as what it means."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 8:
        return None
    if int(np.prod(array.shape[:-2])) != 1:
        return None
    square = array.reshape(array.shape[-2:])
    lower = np.tri(len(square), dtype=bool)
    if np.array_equal(square, lower):
        return Causal(0, array.shape, dtype=dtype)
    return Causal(0, array.shape, True, dtype) if np.array_equal(square, ~lower) else None
