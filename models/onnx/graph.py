"""From an ONNX graph to a module: every node in turn, and all that cannot be taken in one message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import InputError, OmnicError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import Dim, DimRange, bounds
from omnic.ir.graph import Module, State, Value
from omnic.ir.types import DType, TensorType
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore, leaves
from omnic.models.onnx.converter import Converter, R, Refusal, S, sanitise
from omnic.models.onnx.finish import finish, position_tables, tied
from omnic.models.onnx.kinds import Flow, Known, Past, Stored, Tensor, Uniform, dtype_of_onnx
from omnic.models.onnx.lower import LOWERINGS
from omnic.models.onnx.names import Names, scope_of
from omnic.models.onnx.node import OnnxNode
from omnic.models.onnx.paths import module_path
from omnic.models.onnx.reader import open_model
from omnic.models.onnx.signature import read_signature
from omnic.models.onnx.source import OnnxSource
from omnic.models.onnx.symbolic import evaluate

__all__ = ["import_onnx"]

DEFAULT_CAPACITY = 2048
_SHOWN = 12
#: what a node of a damaged file may raise in numpy or in the reading of its attributes
_MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def import_onnx(
    path: Path | str, capacity: int | None = None, *, chunk: int = 512, batch: int = 64, name: str | None = None
) -> tuple[Module, WeightStore]:
    """Import a decoder that another tool exported to ONNX.

    Args:
        path: the ``.onnx`` file; external data lies beside it.
        capacity: slots of the cache, the tokens it can hold; without a cache, the most tokens of a call.  Default
            2048, or fewer where the file's tables of positions end earlier.
        chunk: most tokens of one call.
        batch: most rows.
        name: of the module; default the file's name.

    Returns:
        A module of the front stage, and its weights, which are read from the file when asked for.
        With a cache, ``forward`` has the signature of the one forward; without one it takes tokens, positions
        where the graph does, and rows.

    Raises:
        InputError: not an ONNX model, inputs that have no meaning here, or nodes that cannot be taken; all
            are listed together.
        BundleError: the file or its external data is damaged.
        MissingExtraError: the extra ``onnx`` is not installed.
    """
    for what, number in (("capacity", capacity), ("chunk", chunk), ("batch", batch)):
        if number is not None and number < 1:
            raise InputError(f"{what} must be 1 or more, not {number}")
    file = Path(path)
    model = open_model(file)
    called = name or sanitise(file.stem)
    slots = DEFAULT_CAPACITY if capacity is None else capacity
    first = _Import(model, file, slots, min(chunk, slots), batch, called)
    module, weights = first.run()
    most = first.most_positions(module)
    if most >= slots:
        return module, weights
    if capacity is not None:
        raise InputError(f"{file} has tables of {most} positions, the capacity is {capacity}",
                         f"import it with a capacity of at most {most}")
    return _Import(model, file, most, min(chunk, most), batch, called).run()


class _Import:
    """One import: the environment of ONNX values, and what went wrong so far."""

    def __init__(self, model: Any, file: Path, capacity: int, chunk: int, batch: int, name: str) -> None:
        self.graph, self.file, self.capacity, self.name = model.graph, file, capacity, name
        self.functions = model.functions
        self.opset = int(model.opset_imports.get("", 0) or 0)
        self.signature = read_signature(self.graph)
        ranges = {"B": DimRange(1, batch), "T": DimRange(1, chunk), "R": DimRange(1, chunk)}
        if not self.signature.caches:
            ranges |= {"T": DimRange(1, capacity), "R": DimRange(1, capacity)}
        for symbol, size in (("B", self.signature.batch), ("T", self.signature.length)):
            if isinstance(size, int):
                ranges[symbol] = DimRange(size, size)
        meta = {"capacity": capacity, "chunk": ranges["T"].high, "origin": file.name}
        self.module = ModuleBuilder(name, ranges, meta)
        self.f = self.module.function("forward")
        self.source = OnnxSource(str(file))
        self.names = Names()
        self.env: dict[Any, Tensor] = {}
        self.broken: set[Any] = set()
        self.refused: list[tuple[str, str, str]] = []
        self.c = Converter(self.module, self.f, self.source, self.names, self.signature.batch, self.signature.length)
        self.c.opset = self.opset

    def run(self) -> tuple[Module, WeightStore]:
        rows = _parameters(self)
        self._initialisers()
        for raw in self.graph:
            self._node(raw)
        self._raise_refused()
        results = {str(v.name): self._output(v) for v in self.graph.outputs}
        self._raise_refused()
        self._results(results)
        module = finish(self.module, self.c, rows, self.capacity)
        verify(module)
        module = tied(module, WeightStore(module, self.source))
        used = {str(leaf.args["name"]) for w in module.weights.values() for leaf in leaves(w.recipe)}
        self.source.keep(used)
        return module, WeightStore.loaded(module, self.source)

    def most_positions(self, module: Module) -> int:
        """Return how many tokens the file's tables of positions allow, at most the capacity."""
        ranges = {**module.dims, "S": DimRange(self.capacity, self.capacity)}
        limits = [size for size, read in self.c.tables if bounds(read, ranges)[1] > size]
        limits += position_tables(module.function())
        return min([self.capacity, *limits])

    # -- what goes in -----------------------------------------------------------------------------------
    def _initialisers(self) -> None:
        for name, value in self.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            try:
                dtype = dtype_of_onnx(int(tensor.dtype))
            except InputError as error:
                self.refused.append((str(name), "initialiser", error.message))
                self.broken.add(value)
                continue
            shape = tuple(int(d) for d in tensor.shape)
            self.source.add(str(name), tensor)
            size = int(np.prod(shape, dtype=np.int64))
            square = len(shape) > 1 and shape[-1] == shape[-2] and int(np.prod(shape[:-2])) == 1 and len(shape) > 2
            if not dtype.is_float or size <= 1 or (square and size <= 1 << 24):
                found = self.c.literal(self.source.numpy(str(name)), dtype, str(name))
                self.env[value] = found
            if value not in self.env or (dtype.is_float and size > 1 and isinstance(self.env[value], Known)):
                self.env[value] = Stored(self.c.load(str(name)), shape, dtype, str(name))
            for node, _ in value.uses():
                self.names.paths.setdefault(str(name), module_path(node))

    # -- one node ---------------------------------------------------------------------------------------
    def _node(self, raw: Any) -> None:
        key = ("" if raw.domain in ("", "ai.onnx") else str(raw.domain), str(raw.op_type))
        rule = LOWERINGS.get(key)
        broken = any(v is not None and v in self.broken for v in raw.inputs)
        try:
            if broken:
                if rule is None and raw.op_type not in ("Shape", "Size"):
                    raise Refusal("no lowering for this op")
                raise _Downstream()
            inputs = tuple(None if v is None else self._get(v) for v in raw.inputs)
            single = tuple(v is not None and len(v.uses()) == 1 and not v.is_graph_output() for v in raw.inputs)
            node = OnnxNode(raw, inputs, single)
            outputs = self._shape_of_past(node) or evaluate(self.c, node)
            if outputs is None:
                if rule is None:
                    raise Refusal(_unknown(key, bool(self.functions)))
                with self.f.scope(scope_of(module_path(raw))):
                    made = rule(self.c, node)
                outputs = made if isinstance(made, tuple) else (made,)
            for value, tensor in zip(raw.outputs, outputs, strict=False):
                self.env[value] = tensor
        except _Downstream:
            self.broken.update(raw.outputs)
        except (InputError, Refusal, *_MALFORMED) as error:
            if isinstance(error, OmnicError):
                reason = error.message
            else:
                reason = f"its inputs or attributes do not fit the op ({error})"
            place = f"{raw.name or raw.outputs[0].name}"
            self.refused.append((place, ".".join(k for k in key if k), reason))
            self.broken.update(raw.outputs)

    def _shape_of_past(self, node: OnnxNode) -> tuple[Tensor, ...] | None:
        """A cache as it came in may be passed on and measured, nothing else."""
        first = node.get(0)
        if isinstance(first, Past) and (node.op == "Identity" or (node.op == "Concat" and len(node.inputs) == 1)):
            return (first,)
        return None

    def _get(self, value: Any) -> Tensor:
        if value not in self.env:
            raise Refusal(f"its input '{value.name}' is made by no node before it")
        return self.env[value]

    def _raise_refused(self) -> None:
        if not self.refused:
            return
        lines: dict[tuple[str, str], list[str]] = {}
        for place, op, reason in self.refused:
            lines.setdefault((op, reason), []).append(place)
        shown = [f"{op} ({', '.join(places[:3])}{f' and {len(places) - 3} more' if len(places) > 3 else ''}): {reason}"
                 for (op, reason), places in list(lines.items())[:_SHOWN]]
        if len(lines) > _SHOWN:
            shown.append(f"and {len(lines) - _SHOWN} more kinds")
        raise InputError(f"{self.file}: {len(self.refused)} nodes cannot be taken:\n  " + "\n  ".join(shown),
                         "docs/onnx_import.md lists the ops that can")

    # -- what comes out ---------------------------------------------------------------------------------
    def _output(self, value: Any) -> Flow | Past | None:
        if value in self.broken or value not in self.env:
            self.refused.append((str(value.name), "output", "it is made by no node of the graph"))
            return None
        tensor = self.env[value]
        if isinstance(tensor, Past):
            return tensor
        return self.c.emit(tensor)

    def _results(self, results: Mapping[str, Flow | Past | None]) -> None:
        logits: list[tuple[str, Flow]] = []
        for name, tensor in results.items():
            if isinstance(tensor, Flow) and tensor.value in self.c.appended:
                continue
            if isinstance(tensor, Past):
                raise InputError(f"output '{name}' is the cache {tensor.name} without the new tokens")
            if isinstance(tensor, Flow) and not tensor.lifted and len(tensor.shape) == 3 and tensor.dtype.is_float:
                logits.append((name, tensor))
        chosen = next((t for n, t in logits if n == "logits"), logits[0][1] if logits else None)
        if chosen is None:
            raise InputError("the graph has no output of logits, floats [batch, tokens, vocabulary]",
                             f"its outputs: {', '.join(results)}")
        self.f.result("logits", chosen.value)
        missing = [c.state for c in self.signature.caches if c.state not in self.c.written]
        if missing:
            raise InputError(f"{len(missing)} caches are never extended: {', '.join(missing[:4])}")
        for cache in self.signature.caches:
            self.f.result(cache.state, self.c.written[cache.state], state=cache.state)


class _Downstream(Exception):
    """The node reads what a refused node would have made."""


def _unknown(key: tuple[str, str], functions: bool) -> str:
    return "no lowering for this op" if not functions or key[0] else "no lowering for this op or function"


def _parameters(run: _Import) -> Value:
    """Declare the inputs of ``forward`` and what each ONNX input stands for; return ``rows``."""
    signature, f, c = run.signature, run.f, run.c
    batch, length = signature.batch, signature.length
    index = TensorType(DType.I64, (batch, length))
    tokens = f.param("tokens", index)
    run.env[signature.tokens] = c.cast(Flow(tokens), _declared(signature.tokens))
    cached = bool(signature.caches)
    positions = f.param("positions", index) if cached or signature.positions is not None else None
    if cached:
        c.start = f.param("start", TensorType(DType.I64, (batch,)))
        c.length = f.param("length", TensorType(DType.I64, (batch,)))
    rows = f.param("rows", TensorType(DType.I64, (batch, R)))
    if signature.positions is not None:
        assert positions is not None
        run.env[signature.positions] = _positions(c, signature.positions, positions)
    if signature.mask is not None:
        total: Dim = S if cached else length
        dtype = _declared(signature.mask)
        run.env[signature.mask] = Uniform(1.0 if dtype.is_float else True if dtype == DType.BOOL else 1,
                                          (batch, total), dtype)
    for value, count in signature.counts:
        shape = tuple(1 for _ in value.shape)
        run.env[value] = Uniform(count, shape, _declared(value))
    for cache in signature.caches:
        order = (*(i for i in range(len(cache.shape)) if i != cache.axis), cache.axis)
        order = (*order[:-2], cache.axis, order[-2])
        shape_ = tuple(S if i == cache.axis else cache.shape[i] for i in order)
        type_ = TensorType(cache.dtype, shape_)
        capacity = tuple(run.capacity if i == cache.axis else cache.shape[i] for i in order)
        run.module.state(State(cache.state, TensorType(cache.dtype, capacity), cache.role, cache.group))
        c.states[cache.state] = f.param(cache.state, type_, state=cache.state)
        run.env[cache.value] = Past(cache.state, cache.shape, cache.axis, cache.dtype)
    return rows


def _positions(c: Converter, value: Any, positions: Value) -> Flow:
    """Positions of the call; a graph that takes one line of them for all rows gets each row's own."""
    dtype = _declared(value)
    if len(value.shape) == 2:
        return c.cast(Flow(positions), dtype)
    return c.cast(Flow(positions, lifted=True), dtype)


def _declared(value: Any) -> DType:
    return dtype_of_onnx(int(value.dtype))


