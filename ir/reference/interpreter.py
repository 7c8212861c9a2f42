"""The reference interpreter: evaluates a function node by node with each op's own numpy meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import DTypeLike

from omnic.errors import InputError, InternalError, OmnicError, nearest
from omnic.ir import packing
from omnic.ir.dims import Dim, evaluate
from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.op import Array, Op, find_op
from omnic.ir.packing import QTensor
from omnic.ir.reference.binding import Numbers, bind_dims, coerce, empty_state, store
from omnic.ir.reference.streaming import RowReader, streamed, streamed_weight, streams

__all__ = ["Interpreter", "Numbers", "Routing", "Trace", "WeightReader", "empty_states"]

Trace = Callable[[Node, tuple[Numbers, ...]], None]
Observer = Callable[[Node, tuple[Any, ...], tuple[Numbers, ...]], None]
Routing = tuple[Array, Array]


class WeightReader(Protocol):
    """Where the numbers of weights come from (:class:`omnic.ir.weights.WeightStore`)."""

    def array(self, name: str) -> Array:
        """Return the decoded numbers of a whole weight."""
        ...


def empty_states(module: Module, batch: int, dtype: DTypeLike = np.float64,
                 function: str = "forward") -> dict[str, Numbers]:
    """Return the states that ``function`` takes as they are before the first token, for ``batch`` rows."""
    dims = {name: r.high for name, r in module.dims.items()} | {"B": batch}
    names = [p.state for p in module.function(function).params if p.state]
    return {name: empty_state(module.states[name], dims, np.dtype(dtype)) for name in names}


@dataclass(frozen=True)
class _Step:
    """One node, looked up once."""

    node: Node
    op: Op
    attrs: dict[str, Any]
    dims: tuple[str, ...]
    raw: tuple[bool, ...]
    last: tuple[Value, ...]


@dataclass
class _Run:
    """The values and dims of one evaluation."""

    values: dict[Value, Numbers]
    dims: dict[str, int]
    decoded: dict[Value, Array] = field(default_factory=dict[Value, Array])


class Interpreter:
    """Runs the functions of a module.

    Args:
        module: the module.
        weights: a weight store, or arrays by weight name.
        dtype: f64 (default) or f32: what every float is computed in.
        cache_bytes: decoded weights are kept between calls up to this many bytes.
    """

    def __init__(self, module: Module, weights: WeightReader | Mapping[str, Any], dtype: DTypeLike = np.float64,
                 cache_bytes: int = 2 << 30) -> None:
        self.module = module
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype.name not in ("float64", "float32"):
            raise InputError(f"the reference computes in f64 or f32, not {self.dtype}")
        self._weights = weights
        self._kept: dict[str, Array] = {}
        self._room = cache_bytes
        self._plans: dict[str, tuple[Function, tuple[_Step, ...]]] = {}

    def run(
        self,
        inputs: Mapping[str, Any],
        function: str = "forward",
        states: Mapping[str, Numbers] | None = None,
        trace: Trace | None = None,
        routing: Mapping[str, Routing] | None = None,
        observe: Observer | None = None,
    ) -> dict[str, Any]:
        """Evaluate ``function``.

        Args:
            inputs: an array for every parameter that is not a state.
            function: its name.
            states: the states by name, as an earlier call returned them; empty ones when None.
            trace: called after every node with its results.
            routing: for router nodes by name, the (indices, gates) that replace the router's own.
            observe: called after every node with its operands as the op saw them and its results.

        Returns:
            Results by name; a state result under the state's name, in its storage (f16 and bf16 numbers, or
            a QTensor; f32 ones in the interpreter's dtype).  Arrays may share memory with the inputs.

        Raises:
            InputError: missing, unknown or misfitting arguments, or an index out of range.
        """
        target = self.module.function(function)
        where = f"@{function}"
        run = self._bind(target, inputs, states, where)
        for step in self._plan(target):
            results = self._streamed(step, run) if observe is None else None
            operands = () if results is not None else self._operands(step, run)
            results = self._step(step, operands, run, routing) if results is None else results
            for value, result in zip(step.node.results, results, strict=True):
                run.values[value] = result
            if trace is not None:
                trace(step.node, results)
            if observe is not None:
                observe(step.node, operands, results)
            for value in step.last:
                run.values.pop(value, None)
                run.decoded.pop(value, None)
        out: dict[str, Any] = {}
        for result in target.results:
            numbers = self._numbers(result.value, run)
            if result.state is None:
                out[result.name] = self._decoded(result.value, run)
            else:
                out[result.state] = store(numbers, self.module.states[result.state].type, self.dtype)
        return out

    def capture(self, inputs: Mapping[str, Any], nodes: set[str], function: str = "forward",
                states: Mapping[str, Numbers] | None = None) -> tuple[dict[str, Any], dict[str, tuple[Numbers, ...]]]:
        """Run ``function`` and also return the results of the named nodes.

        Raises:
            InputError: a name is not a node of the function.
        """
        have = {n.name for n in self.module.function(function).nodes}
        for name in sorted(nodes - have):
            near = nearest(name, sorted(have))
            raise InputError(f"@{function} has no node '{name}'", f"did you mean '{near}'?" if near else None)
        seen: dict[str, tuple[Numbers, ...]] = {}

        def keep(node: Node, results: tuple[Numbers, ...]) -> None:
            if node.name in nodes:
                seen[node.name] = results

        return self.run(inputs, function, states, keep), seen

    def weight(self, name: str) -> Array:
        """Return the decoded numbers of a weight in the interpreter's dtype (kept for later calls)."""
        if name in self._kept:
            return self._kept[name]
        if isinstance(self._weights, Mapping):
            if name not in self._weights:
                raise InputError(f"weight '{name}' was not given")
            given: Any = self._weights[name]
        else:
            given = self._weights.array(name)
        to = self.module.decoded
        array = packing.decode(given, self.dtype, to) if isinstance(given, QTensor) else np.asarray(given)
        weight = self.module.weights[name]
        if array.shape != weight.type.shape:
            raise InputError(f"weight '{name}' must be {weight.type}, got {list(array.shape)}")
        array = array.astype(self.dtype, copy=False) if weight.type.is_float else array
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            self._kept[name] = array
        return array

    # -- one evaluation -------------------------------------------------------------------------------
    def _bind(self, target: Function, inputs: Mapping[str, Any], states: Mapping[str, Numbers] | None,
              where: str) -> _Run:
        plain = {p.value.name: p.value for p in target.params if p.state is None}
        for name in inputs:
            if name not in plain:
                near = nearest(name, list(plain))
                raise InputError(f"{where} has no input '{name}'",
                                 f"did you mean '{near}'?" if near else f"it takes: {', '.join(plain)}")
        missing = [name for name in plain if name not in inputs]
        if missing:
            raise InputError(f"{where} needs {', '.join(repr(m) for m in missing)}")
        values = {value: coerce(value, inputs[name], self.dtype, where) for name, value in plain.items()}
        holds = [(p.value, p.state) for p in target.params if p.state is not None]
        if states is None:
            dims = bind_dims(self.module, values, where)
            values |= {value: empty_state(self.module.states[name], dims, self.dtype) for value, name in holds}
            return _Run(values, dims)
        for value, name in holds:
            if name not in states:
                raise InputError(f"{where} needs the state '{name}'")
            values[value] = store(states[name], value.type, self.dtype)
        return _Run(values, bind_dims(self.module, values, where))

    def _plan(self, target: Function) -> tuple[_Step, ...]:
        known = self._plans.get(target.name)
        if known and known[0] is target:
            return known[1]
        last: dict[Value, int] = {}
        for index, node in enumerate(target.nodes):
            last |= dict.fromkeys((*node.inputs(), *node.results), index)
        kept = {result.value for result in target.results}
        freed: dict[int, list[Value]] = {}
        for value, index in last.items():
            if value not in kept and not value.weight:
                freed.setdefault(index, []).append(value)
        steps = tuple(self._prepare(node, tuple(freed.get(index, ()))) for index, node in enumerate(target.nodes))
        self._plans[target.name] = (target, steps)
        return steps

    def _prepare(self, node: Node, last: tuple[Value, ...]) -> _Step:
        op = find_op(node.op)
        count = len(op.inputs)
        raw = tuple(op.inputs[min(i, count - 1)].state for i in range(len(node.operands)))
        dims = tuple(a.name for a in op.attrs if a.kind == "dims")
        return _Step(node, op, op.bind(node.attrs), dims, raw, last)

    def _operands(self, step: _Step, run: _Run) -> tuple[Any, ...]:
        operands: list[Any] = []
        for value, raw in zip(step.node.operands, step.raw, strict=True):
            operands.append(None if value is None else self._numbers(value, run) if raw else self._decoded(value, run))
        return tuple(operands)

    def _streamed(self, step: _Step, run: _Run) -> tuple[Numbers, ...] | None:
        """Return the result of a product whose weight is read in blocks, None for any other node."""
        name = streamed_weight(step.node)
        reader = self._weights
        if name is None or name in self._kept or not isinstance(reader, RowReader) or step.dims:
            return None
        weight = self.module.weights[name]
        shape = tuple(d for d in weight.type.shape if isinstance(d, int))
        if not streams(weight, self.dtype) or int(np.prod(shape)) * self.dtype.itemsize <= self._room:
            return None
        operands = [None if v is None or (v.weight and v.name == name) else self._decoded(v, run)
                    for v in step.node.operands]

        def rows(start: int, stop: int) -> Array:
            return reader.array(name, (start, stop)).astype(self.dtype, copy=False)

        return (self._settle(streamed(step.node, step.op, operands, step.attrs, shape, rows)),)

    def _step(self, step: _Step, operands: tuple[Any, ...], run: _Run,
              routing: Mapping[str, Routing] | None) -> tuple[Numbers, ...]:
        node, attrs = step.node, step.attrs
        if step.dims:
            attrs = {**attrs, **{name: _known(attrs[name], run.dims) for name in step.dims}}
        try:
            found: Any = step.op.reference(*step.op.arrange(operands), **attrs)
        except InputError as error:
            raise InputError(f"{node.name}: {error.message}", error.hint) from error
        except (ValueError, IndexError, TypeError) as error:
            if isinstance(error, OmnicError):
                raise
            raise InternalError(f"the reference of {node.op} failed at {node.name}: {error}") from error
        results = cast("tuple[Any, ...]", found) if isinstance(found, tuple) else (found,)
        if len(results) != len(node.results):
            raise InternalError(f"{node.name} has {len(node.results)} results, its reference gave {len(results)}")
        if routing is not None and node.name in routing:
            results = (*(np.asarray(part) for part in routing[node.name]), *results[2:])
        return tuple(self._settle(r) for r in results)

    def _settle(self, result: Any) -> Numbers:
        """Return a result in the interpreter's dtype; states stay as stored."""
        if isinstance(result, QTensor):
            return result
        array = np.asarray(result)
        if array.dtype.name in ("float64", "float32") and array.dtype != self.dtype:
            return array.astype(self.dtype)
        return array

    def _numbers(self, value: Value, run: _Run) -> Numbers:
        if value.weight:
            return self.weight(value.name)
        return run.values[value]

    def _decoded(self, value: Value, run: _Run) -> Array:
        if value.weight:
            return self.weight(value.name)
        if value in run.decoded:
            return run.decoded[value]
        numbers = run.values[value]
        if isinstance(numbers, QTensor):
            run.decoded[value] = packing.decode(numbers, self.dtype)
            return run.decoded[value]
        if numbers.dtype.itemsize == 2 and numbers.dtype.kind in "fV":
            return numbers.astype(self.dtype)
        return numbers


def _known(dims: tuple[Dim, ...] | None, bound: Mapping[str, int]) -> tuple[int, ...] | None:
    return None if dims is None else tuple(evaluate(d, bound) for d in dims)
