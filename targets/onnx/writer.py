"""Writing one function as an ONNX graph: values by their IR names, constants once, dims when asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as onnx
from numpy.typing import NDArray

from omnic.errors import InternalError
from omnic.ir.dims import Atom, Dim, Expr
from omnic.ir.graph import Function, Module, Node, Value, Weight
from omnic.ir.op import find_op
from omnic.ir.types import DType, Storage, TensorType
from omnic.targets.onnx.blocks import Blocks, blocks_of
from omnic.targets.onnx.decoded import decode_weight
from omnic.targets.onnx.tensors import DATA_FILE, Layout, Piece, TensorTable

__all__ = ["IR_VERSION", "MICROSOFT", "GraphWriter", "attrs_of", "element_type", "weight_shape"]

MICROSOFT = "com.microsoft"
OPSETS = {"": 24, MICROSOFT: 1}
IR_VERSION = 11

_ELEMENTS = {
    DType.F32: onnx.DataType.FLOAT,
    DType.F16: onnx.DataType.FLOAT,
    DType.BF16: onnx.DataType.FLOAT,
    DType.I64: onnx.DataType.INT64,
    DType.I32: onnx.DataType.INT32,
    DType.I8: onnx.DataType.INT8,
    DType.U8: onnx.DataType.UINT8,
    DType.BOOL: onnx.DataType.BOOL,
}

#: ops that only move or shape numbers: they stand for no op of the IR by themselves
GLUE = frozenset((
    "Reshape", "Transpose", "Shape", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Identity", "Range", "Split",
    "Expand", "ConstantOfShape",
))  # fmt: skip


def element_type(type: TensorType, state: bool = False) -> onnx.DataType:
    """Return the ONNX element type of a value: 16-bit floats are computed in f32 and kept as f16 in states only."""
    if isinstance(type.element, Storage):
        raise InternalError(f"a value of type {type} was not decoded")
    if state and type.element == DType.F16:
        return onnx.DataType.FLOAT16
    return _ELEMENTS[type.element]


class GraphWriter:
    """One function under construction.

    Attributes:
        module: the module it belongs to.
        function: the function.
        profile: ``fused`` or ``plain``.
        row: whether the program is for calls of one row whose tokens are all valid.
        memo: values shared by several nodes (masks, tables), by a key of the lowering's choice.
        nodes: name of an ONNX node -> the IR ops it stands for.
    """

    def __init__(
        self, module: Module, function: Function, tensors: TensorTable, profile: str, row: bool = False
    ) -> None:
        self.module, self.function, self.tensors, self.profile, self.row = module, function, tensors, profile, row
        domains = OPSETS if profile == "fused" else {"": OPSETS[""]}
        self.graph = onnx.Graph([], [], nodes=[], opset_imports=dict(domains), name=function.name)
        self.memo: dict[Any, Any] = {}
        self.nodes: dict[str, tuple[str, ...]] = {}
        self._into = self.graph
        self._values: dict[Value, onnx.Value] = {}
        self._parts: dict[Value, dict[str, onnx.Value]] = {}
        self._named: set[onnx.Value] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.Value] = {}
        self._initializers: dict[str, onnx.Value] = {}
        self._counts: dict[str, int] = {}
        self._prefix, self._stands = function.name, ()

    # -- values -------------------------------------------------------------------------------------
    def param(self, value: Value, state: bool) -> onnx.Value:
        """Add an input of the graph."""
        found = onnx.Value(
            name=value.name, type=onnx.TensorType(element_type(value.type, state)), shape=_shape(value.type)
        )
        self.graph.inputs.append(found)
        self._values[value] = found
        return found

    def state_param(self, value: Value, buffers: Mapping[str, tuple[onnx.DataType, tuple[Dim, ...]]]) -> None:
        """Add the inputs of a state that is stored as codes: one for each buffer."""
        parts: dict[str, onnx.Value] = {}
        for suffix, (kind, dims) in buffers.items():
            shape = onnx.Shape([d if isinstance(d, int) else str(d) for d in dims])
            parts[suffix] = onnx.Value(name=value.name + suffix, type=onnx.TensorType(kind), shape=shape)
            self.graph.inputs.append(parts[suffix])
        self._parts[value] = parts

    def state_parts(self, value: Value) -> dict[str, onnx.Value]:
        """Return the buffers of a state that is stored as codes, by suffix."""
        return self._parts[value]

    def bind_state(self, value: Value, parts: Mapping[str, onnx.Value]) -> None:
        """Say that ``parts`` are the buffers of a version of a state, in their order."""
        self._parts[value] = dict(parts)

    def get(self, value: Value | None) -> onnx.Value | None:
        """Return the ONNX value of an IR value (a weight becomes an initializer as it is)."""
        if value is None:
            return None
        if value.weight:
            return self.weight(value)
        if value not in self._values:
            raise InternalError(f"@{self.function.name}: {value} was read before it was lowered")
        return self._values[value]

    def need(self, value: Value | None) -> onnx.Value:
        """Return the ONNX value of an IR value that must be present."""
        found = self.get(value)
        if found is None:
            raise InternalError(f"@{self.function.name}: an operand is missing")
        return found

    def bind(self, value: Value, found: onnx.Value, dtype: onnx.DataType | None = None) -> None:
        """Say that ``found`` is the IR value: it gets its name (``dtype`` where the type's usual one is not meant)."""
        if found.producer() is None or found in self._named or found.graph is not self.graph:
            found = self.op("Identity", found)
        self._named.add(found)
        found.name = value.name
        found.type = onnx.TensorType(dtype or element_type(value.type))
        found.shape = _shape(value.type)
        self._values[value] = found

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the IR values that exist in the graph, in order of definition."""
        return tuple(v.name for v in self.function.values() if v in self._values)

    def prune(self) -> None:
        """Drop the nodes of the graph that nothing reads."""
        kept = set(self.graph.outputs)
        for node in reversed(list(self.graph)):
            if not any(v in kept or v.uses() for v in node.outputs):
                self.graph.remove(node, safe=True)
        read = {v for n in self.graph.all_nodes() for v in n.inputs}
        for name in [n for n, v in self.graph.initializers.items() if v not in read and v not in kept]:
            del self.graph.initializers[name]

    # -- constants and weights ----------------------------------------------------------------------
    def const(self, numbers: Any, dtype: Any = None) -> onnx.Value:
        """Return a small constant, made once."""
        array = np.asarray(numbers, dtype or (np.int64 if np.asarray(numbers).dtype.kind in "iu" else None))
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const.{len(self._constants)}"
            found = onnx.Value(name=name, const_value=onnx.tensor(np.array(array), name=name))
            found.type, found.shape = onnx.TensorType(found.const_value.dtype), found.const_value.shape  # type: ignore[union-attr]
            self.graph.register_initializer(found)
            self._constants[key] = found
        return self._constants[key]

    def ints(self, *numbers: int) -> onnx.Value:
        """Return the constant i64 vector of ``numbers``."""
        return self.const(np.array(numbers, np.int64))

    def tensor(self, layout: Layout, shape: tuple[int, ...] | None = None) -> onnx.Value:
        """Return an initializer in the data file; ``shape`` reads the same bytes in another shape."""
        other = shape is not None and shape != layout.shape
        name = f"{layout.name}:{'x'.join(str(d) for d in shape or ())}" if other else layout.name
        if name not in self._initializers:
            dims, kind = onnx.Shape(shape or layout.shape), onnx.DataType.from_numpy(layout.dtype)
            offset = self.tensors.add(layout)
            data = onnx.ExternalTensor(DATA_FILE, offset, layout.bytes, kind, shape=dims, name=name, base_dir="")
            found = onnx.Value(name=name, const_value=data, type=onnx.TensorType(kind), shape=dims)
            self.graph.register_initializer(found)
            self._initializers[name] = found
        return self._initializers[name]

    def weight(self, value: Value) -> onnx.Value:
        """Return a weight in the IR's own layout; a storage-typed one decoded."""
        if isinstance(value.type.element, Storage):
            return self.decoded(value)
        shape = weight_shape(self.module.weights[value.name])
        whole = "" if value.type.is_float else str(value.type.element)
        return self.tensor(Layout(f"@{value.name}", shape, (Piece(value.name, shape, type=whole),)))

    def transposed(self, *values: Value) -> onnx.Value:
        """Return weights [N_i, K] as one matrix [K, sum of N_i], or a stack of matrices, each turned."""
        if any(isinstance(v.type.element, Storage) for v in values):
            return self.once(("turned", values), lambda: self._turned(values))
        shapes = [weight_shape(self.module.weights[v.name]) for v in values]
        axis = len(shapes[0]) - 1
        pieces, offset = [], 0
        for value, shape in zip(values, shapes, strict=True):
            pieces.append(Piece(value.name, shape, swap=True, axis=axis, offset=offset))
            offset += shape[-2]
        first = pieces[0].placed()
        return self.tensor(Layout("@" + "+".join(v.name for v in values) + ":T", (*first[:-1], offset), tuple(pieces)))

    def joined(self, *values: Value) -> onnx.Value:
        """Return vectors [N_i] as one [sum of N_i]."""
        if any(isinstance(v.type.element, Storage) for v in values):
            return self.once(("joined", values), lambda: self.op("Concat", *(self.weight(v) for v in values), axis=0))
        pieces, offset = [], 0
        for value in values:
            shape = weight_shape(self.module.weights[value.name])
            pieces.append(Piece(value.name, shape, offset=offset))
            offset += shape[0]
        return self.tensor(Layout("@" + "+".join(v.name for v in values), (offset,), tuple(pieces)))

    def numbers(self, name: str, array: NDArray[Any]) -> onnx.Value:
        """Return computed numbers (a table) as an initializer in the data file."""
        return self.tensor(Layout(name, array.shape, numbers=array))

    # -- storage-typed weights ----------------------------------------------------------------------
    def once(self, key: Any, build: Callable[[], onnx.Value]) -> onnx.Value:
        """Return what ``build`` makes, made once and outside of any branch."""
        if key not in self.memo:
            outside, self._into = self._into, self.graph
            before, self._prefix = self._prefix, "weights"
            self.memo[key] = build()
            self._into, self._prefix = outside, before
        return self.memo[key]

    def _turned(self, values: Sequence[Value]) -> onnx.Value:
        rank = values[0].type.rank
        perm = [*range(rank - 2), rank - 1, rank - 2]
        turned = [self.op("Transpose", self.weight(v), perm=perm) for v in values]
        return turned[0] if len(turned) == 1 else self.op("Concat", *turned, axis=rank - 1)

    def decoded(self, value: Value) -> onnx.Value:
        """Return the numbers of a storage-typed weight.

        Only constants go in, so ONNX Runtime computes it once, when it loads the program.
        """
        return self.once(("decoded", value), lambda: decode_weight(self, value))

    def form(self, *values: Value) -> Blocks | str:
        """Return how the rows of storage-typed weights lie in blocks, together; or why they cannot."""
        first = values[0].type.element
        if not isinstance(first, Storage) or not all(v.weight and v.type.element == first for v in values):
            return "they are not weights of one storage type"
        return blocks_of(first, weight_shape(self.module.weights[values[0].name])[-1])

    def blocks(self, *values: Value, expert: int | None = None, weave: bool = False) -> dict[str, Layout]:
        """Return the parts of storage-typed weights, their rows one after the other (or in turn with ``weave``)."""
        form = self.form(*values)
        assert isinstance(form, Blocks)
        name = "@" + ("|" if weave else "+").join(v.name for v in values) + ("" if expert is None else f"[{expert}]")
        made: dict[str, Layout] = {}
        for part in form.parts:
            pieces, offset = [], 0
            for index, value in enumerate(values):
                shape = weight_shape(self.module.weights[value.name])
                stacked = expert is None and len(shape) == 3
                axis, at, stride = (1, index, 2) if weave else (int(stacked), offset, 1)
                pieces.append(Piece(value.name, shape, expert, False, axis, at, stride, part, str(form.type)))
                offset += shape[-2]
            placed = pieces[0].placed()
            made[part] = Layout(f"{name}.{part}", (*placed[:-2], offset, placed[-1]), tuple(pieces), group=name)
        for layout in made.values():
            self.tensors.add(layout)
        return made

    # -- nodes --------------------------------------------------------------------------------------
    @contextmanager
    def at(self, node: Node, *others: Node) -> Generator[None]:
        """Name what is made inside after ``node``; the ONNX nodes stand for it and ``others``."""
        before = self._prefix, self._stands
        self._prefix, self._stands = node.name, (*(o.op for o in others), node.op)
        try:
            yield
        finally:
            self._prefix, self._stands = before

    def emit(
        self, kind: str, *inputs: onnx.Value | None, outputs: int = 1, domain: str = "", **attrs: Any
    ) -> Sequence[onnx.Value]:
        """Append an ONNX node and return its results."""
        base = f"{self._prefix}/{kind}"
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        name = f"{base}.{count}"
        given = {k: v for k, v in attrs.items() if v is not None}
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = onnx.node(kind, list(inputs), attributes=given, domain=domain, num_outputs=outputs, name=name)
        for index, result in enumerate(node.outputs):
            result.name = f"{name}:{index}"
        self._into.append(node)
        if kind not in GLUE and self._stands:
            self.nodes[name] = self._stands
        return node.outputs

    def op(self, kind: str, *inputs: onnx.Value | None, domain: str = "", **attrs: Any) -> onnx.Value:
        """Append an ONNX node with one result and return it."""
        return self.emit(kind, *inputs, domain=domain, **attrs)[0]

    def branch(
        self,
        condition: onnx.Value,
        types: Sequence[onnx.TypeProtocol],
        yes: Callable[[], Sequence[onnx.Value]],
        no: Callable[[], Sequence[onnx.Value]],
    ) -> Sequence[onnx.Value]:
        """Append an ``If`` whose branches are what ``yes`` and ``no`` build; types of its results in ``types``.

        What the branches read from outside must have been made before.
        """
        graphs: dict[str, onnx.Graph] = {}
        for role, build in (("then_branch", yes), ("else_branch", no)):
            graph = onnx.Graph([], [], nodes=[], name=f"{self._prefix}/{role}")
            outside, self._into = self._into, graph
            results = [r if r.graph is graph else self.op("Identity", r) for r in build()]
            for result, type in zip(results, types, strict=True):
                result.type = type
            graph.outputs.extend(results)
            self._into = outside
            graphs[role] = graph
        return self.emit(
            "If",
            condition,
            outputs=len(types),
            then_branch=graphs["then_branch"],
            else_branch=graphs["else_branch"],
        )

    # -- dims ---------------------------------------------------------------------------------------
    def size(self, value: onnx.Value, axis: int) -> onnx.Value:
        """Return the size of one dim as i64[1]."""
        key = ("size", value, axis, self._into)
        if key not in self.memo:
            self.memo[key] = self.op("Shape", value, start=axis, end=axis + 1)
        return self.memo[key]

    def dim(self, dim: Dim) -> onnx.Value:
        """Return a dim expression as i64[1]."""
        if isinstance(dim, int):
            return self.ints(dim)
        total: onnx.Value | None = None
        for monomial, coefficient in dim.terms:
            term: onnx.Value | None = None if coefficient == 1 and monomial else self.ints(coefficient)
            for atom in monomial:
                factor = self._atom(atom)
                term = factor if term is None else self.op("Mul", term, factor)
            assert term is not None
            total = term if total is None else self.op("Add", total, term)
        assert total is not None
        return total

    def _atom(self, atom: Atom) -> onnx.Value:
        if atom.kind == "sym":
            return self._symbol(atom.name)
        args = [self.dim(a) for a in atom.args]
        if atom.kind in ("min", "max"):
            return self.op(atom.kind.capitalize(), *args)
        if atom.kind == "ceildiv":
            args[0] = self.op("Sub", self.op("Add", args[0], args[1]), self.ints(1))
        return self.op("Div", *args)

    def _symbol(self, name: str) -> onnx.Value:
        """Return the size of a symbol, read from the first parameter that has it as a dim."""
        key = ("symbol", name)
        if key in self.memo:
            return self.memo[key]
        bounds = self.module.dims.get(name)
        if bounds is not None and bounds.low == bounds.high:
            return self.ints(bounds.low)
        for param in self.function.params:
            for axis, dim in enumerate(param.value.type.shape):
                if isinstance(dim, Expr) and str(dim) == name:
                    outside, self._into = self._into, self.graph
                    found = self.op("Shape", self._values[param.value], start=axis, end=axis + 1)
                    self._into = outside
                    found.name, found.type, found.shape = (
                        f"dim.{name}",
                        onnx.TensorType(onnx.DataType.INT64),
                        onnx.Shape([1]),
                    )
                    self.memo[key] = found
                    return found
        raise InternalError(f"no parameter of @{self.function.name} gives {name}")

    def dims(self, dims: Sequence[Dim]) -> onnx.Value:
        """Return dims as an i64 vector."""
        if all(isinstance(d, int) for d in dims):
            return self.const(np.array(dims, np.int64))
        parts = [self.dim(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def reshape(self, x: onnx.Value, before: Sequence[Dim] | None, shape: Sequence[Dim]) -> onnx.Value:
        """Reshape ``x`` (of IR shape ``before``) to dims; kept dims and one unknown one need no arithmetic."""
        wanted: list[int | None] = []
        for axis, dim in enumerate(shape):
            if isinstance(dim, int):
                wanted.append(dim)
            elif before is not None and axis < len(before) and before[axis] == dim:
                wanted.append(0)
            else:
                wanted.append(None)
        if 0 not in shape and wanted.count(None) <= 1:
            return self.op("Reshape", x, self.ints(*(-1 if w is None else w for w in wanted)))
        return self.op("Reshape", x, self.dims(shape))


def weight_shape(weight: Weight) -> tuple[int, ...]:
    """Return the shape of a weight, all its dims fixed."""
    return tuple(d for d in weight.type.shape if isinstance(d, int))


def attrs_of(node: Node) -> Mapping[str, Any]:
    """Return every attribute of a node, defaults filled in."""
    return find_op(node.op).bind(node.attrs)


def _shape(type: TensorType) -> onnx.Shape:
    return onnx.Shape([d if isinstance(d, int) else str(d) for d in type.shape])
