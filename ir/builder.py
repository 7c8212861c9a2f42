"""Building modules: values in, values out, types inferred, names and scopes kept.

mb = ModuleBuilder("tiny", dims={"B": DimRange(1, 16), "T": DimRange(1, 512)})
embed = mb.weight("embed", parse_type("f32[8192, 256]"), Recipe("normal", {"std": 0.02}))
f = mb.function("forward")
tokens = f.param("tokens", parse_type("i64[B, T]"))
with f.scope("embed"):
x = f.op("embedding", embed, tokens)
f.result("hidden", x)
module = mb.build()
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from omnic.errors import InternalError
from omnic.ir.dims import Dim, DimRange
from omnic.ir.graph import AttrValue, Function, Loc, Module, Node, Param, Recipe, Result, State, Value, Weight, attrs_of
from omnic.ir.op import find_op
from omnic.ir.types import DType, TensorType

__all__ = ["FunctionBuilder", "ModuleBuilder"]


class FunctionBuilder:
    """Collects the nodes of one function.

    ``outputs`` are the results so far (a builder may reorder them before :meth:`build`).  For a rewrite,
    ``taken`` holds the value names and ``node_names`` the node names the function already has, so that
    the builder makes fresh ones.
    """

    def __init__(self, name: str, taken: set[str] | None = None, node_names: set[str] | None = None) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self._params: list[Param] = []
        self.outputs: list[Result] = []
        self._taken = set(taken or ())
        self._node_names = set(node_names or ())
        self._counts: dict[str, int] = {}
        self._scope = ""
        self._loc: Loc | None = None

    # -- context ------------------------------------------------------------------------------------
    @contextmanager
    def scope(self, path: str, loc: Loc | None = None) -> Generator[None]:
        """Put the nodes made inside under ``path`` (appended to the scope around it)."""
        before, before_loc = self._scope, self._loc
        self._scope = f"{before}.{path}" if before and path else before or path
        self._loc = loc or before_loc
        try:
            yield
        finally:
            self._scope, self._loc = before, before_loc

    @contextmanager
    def at(self, node: Node) -> Generator[None]:
        """Give the nodes made inside the scope and place of ``node`` (for rewrites)."""
        before, before_loc = self._scope, self._loc
        self._scope, self._loc = node.scope, node.loc
        try:
            yield
        finally:
            self._scope, self._loc = before, before_loc

    # -- signature ----------------------------------------------------------------------------------
    def param(self, name: str, type: TensorType, state: str | None = None) -> Value:
        """Add a parameter and return its value."""
        value = Value(self._fresh(name), type)
        self._params.append(Param(value, state))
        return value

    def result(self, name: str, value: Value, state: str | None = None) -> None:
        """Return ``value`` from the function as ``name``."""
        self.outputs.append(Result(name, value, state))

    # -- nodes --------------------------------------------------------------------------------------
    def emit(self, op: str, *operands: Value | None, hint: str = "", **attrs: object) -> tuple[Value, ...]:
        """Append a node and return its results.

        Args:
            op: name of the op.
            operands: its operands in order, None where absent (a trailing run of absent ones may be left out).
            hint: name for the result; default the op's name.
            attrs: attributes; None and defaults are dropped.

        Raises:
            ShapeError: the operands or attributes do not fit.
        """
        definition = find_op(op)
        given = list(operands)
        variadic = bool(definition.inputs) and definition.inputs[-1].variadic
        while len(given) < len(definition.inputs) - (1 if variadic else 0):
            given.append(None)
        kept = attrs_of(**attrs)
        types = definition.infer_results(tuple(v.type if v else None for v in given), kept)
        for attr in definition.attrs:
            if attr.name in kept and attr.is_default(kept[attr.name]):
                del kept[attr.name]
        base = hint or op.replace(".", "_")
        names = [base] if len(types) == 1 else [f"{base}_{definition.output(i)}" for i in range(len(types))]
        results = tuple(Value(self._fresh(name), type) for name, type in zip(names, types, strict=True))
        self.nodes.append(Node(op, tuple(given), kept, results, self._node_name(op), self._scope, self._loc))
        return results

    def op(self, op: str, *operands: Value | None, hint: str = "", **attrs: object) -> Value:
        """Append a node with one result and return it (see :meth:`emit`)."""
        results = self.emit(op, *operands, hint=hint, **attrs)
        if len(results) != 1:
            raise InternalError(f"{op} has {len(results)} results: use emit")
        return results[0]

    def constant(
        self, value: float | int | bool | tuple[float, ...] | tuple[int, ...], dtype: DType = DType.F32
    ) -> Value:
        """Append a ``constant`` node: a scalar, or a vector for a tuple."""
        flat = value if isinstance(value, tuple) else (value,)
        shape: tuple[Dim, ...] = (len(flat),) if isinstance(value, tuple) else ()
        values = tuple(float(v) if dtype.is_float else int(v) for v in flat)
        return self.op("constant", hint="c", values=values, shape=shape, type=dtype)

    def reshape(self, x: Value, *shape: Dim, hint: str = "") -> Value:
        """Append a ``reshape`` to ``shape``."""
        return self.op("reshape", x, shape=shape, hint=hint)

    def build(self) -> Function:
        """Return the function."""
        return Function(self.name, tuple(self._params), tuple(self.nodes), tuple(self.outputs))

    # -- names --------------------------------------------------------------------------------------
    def _fresh(self, base: str) -> str:
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}.{count}"
        self._taken.add(name)
        return name

    def _node_name(self, op: str) -> str:
        key = f"{self._scope}/{op}"
        count = self._counts.get(key, 0)
        while f"{key}.{count}" in self._node_names:
            count += 1
        self._counts[key] = count + 1
        self._node_names.add(f"{key}.{count}")
        return f"{key}.{count}"


class ModuleBuilder:
    """Collects weights, states and functions of one module."""

    def __init__(self, name: str, dims: Mapping[str, DimRange], meta: Mapping[str, AttrValue] | None = None) -> None:
        self.name = name
        self._dims = dict(dims)
        self._meta = dict(meta or {})
        self._weights: dict[str, Weight] = {}
        self._states: dict[str, State] = {}
        self._functions: list[FunctionBuilder] = []

    def weight(self, name: str, type: TensorType, recipe: Recipe) -> Value:
        """Declare a weight and return its value; a second call with the same name returns the first.

        Raises:
            InternalError: declared before with another type.
        """
        if name in self._weights:
            known = self._weights[name]
            if known.type != type:
                raise InternalError(f"weight @{name} is declared as {known.type} and as {type}")
            return known.value
        value = Value(name, type, weight=True)
        self._weights[name] = Weight(value, recipe)
        return value

    def state(self, state: State) -> State:
        """Declare a state."""
        if state.name in self._states:
            raise InternalError(f"state @{state.name} is declared twice")
        self._states[state.name] = state
        return state

    def function(self, name: str) -> FunctionBuilder:
        """Start a function."""
        builder = FunctionBuilder(name)
        self._functions.append(builder)
        return builder

    def build(self) -> Module:
        """Return the module."""
        functions = {f.name: f.build() for f in self._functions}
        return Module(self.name, self._dims, self._weights, self._states, functions, self._meta)
