"""Specialisation: the one ``forward`` made into the functions that training and each phase want."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.dims import Dim, DimRange, Expr, substitute, symbol, symbols
from omnic.ir.graph import AttrValue, Function, Module, Node, Param, Result, Value
from omnic.ir.op import find_op
from omnic.ir.rewrite import Remark, eliminate_dead_code
from omnic.ir.types import DType, TensorType
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["SpecialisePhase", "SpecialiseTrain", "specialise_phase", "specialise_train", "substitute_dims"]

# What only a program with states needs; training takes whole sequences from their first token.
_PHASE_INPUTS = ("positions", "start", "length", "rows", "parents")


def specialise_train(module: Module, tokens: int | None = None) -> Module:
    """Return ``module`` for training: no states, no cache ops, every position's outputs (see :class:`SpecialiseTrain`).

    Args:
        module: the front module.
        tokens: upper bound of T; default the module's.

    Raises:
        InputError: a function reads a cache that it has not written, or moves one.
    """
    for function in tuple(module.functions.values()):
        if function.param("start") is not None:
            module = module.with_function(_Trainer(function).run())
    dims = dict(module.dims)
    if tokens is not None:
        dims["T"] = DimRange(dims["T"].low, tokens)
    return _drop_unused_dims(replace(module, states={}, dims=dims))


def specialise_phase(
    module: Module, name: str, tokens: int, mla_form: str | None = None, function: str = "forward",
    rows: int | None = None,
) -> Module:
    """Return ``module`` with a clone of ``function`` for calls of at most ``tokens`` tokens.

    Args:
        module: any module with the function.
        name: of the clone, such as ``prefill``, ``decode`` or ``verify_8``.
        tokens: upper bound of T in the clone; with 1, T is the number 1.
        mla_form: ``naive`` or ``absorbed``, for every ``mla`` of the clone; None leaves them.
        function: what to clone.
        rows: upper bound of R in the clone; default ``tokens``.

    Raises:
        InputError: no such function, the name is taken, more tokens than T may have, or an unknown form.
    """
    source = module.function(function)
    if name in module.functions:
        raise InputError(f"module @{module.name} has a function @{name} already")
    if mla_form not in (None, "naive", "absorbed"):
        raise InputError(f"mla has no form '{mla_form}'", "known: naive, absorbed")
    values: dict[str, Dim] = {}
    dims = dict(module.dims)
    for dim, wanted in (("T", tokens), ("R", tokens if rows is None else rows)):
        if dim not in dims:
            continue
        if not 1 <= wanted <= dims[dim].high:
            raise InputError(f"@{name} cannot take {dim} up to {wanted}: dim {dim} is {dims[dim]}")
        if wanted == dims[dim].high:
            continue
        values[dim] = 1 if wanted == 1 else symbol(f"{dim}_{name}")
        if wanted > 1:
            dims[f"{dim}_{name}"] = DimRange(1, wanted)
    clone = substitute_dims(replace(source, name=name), values)
    if mla_form is not None:
        clone = replace(clone, nodes=tuple(_with_mla_form(n, mla_form) for n in clone.nodes))
    return replace(module, dims=dims).with_function(clone)


def _with_mla_form(node: Node, form: str) -> Node:
    if node.op != "mla":
        return node
    attrs = {k: v for k, v in node.attrs.items() if k != "form"}
    default = next(a.default for a in find_op("mla").attrs if a.name == "form")
    return replace(node, attrs=attrs if form == default else {**attrs, "form": form})


def _drop_unused_dims(module: Module) -> Module:
    used: set[str] = set()
    types = [w.type for w in module.weights.values()] + [s.type for s in module.states.values()]
    for function in module.functions.values():
        types += [v.type for v in function.values()]
    for type in types:
        for dim in type.shape:
            used |= symbols(dim)
    return replace(module, dims={k: r for k, r in module.dims.items() if k in used})


def substitute_dims(function: Function, values: Mapping[str, Dim]) -> Function:
    """Return ``function`` with dim symbols replaced in every type and attribute; names stay."""
    if not values:
        return function
    fresh: dict[Value, Value] = {}
    for value in function.values():
        shape = tuple(substitute(d, values) for d in value.type.shape)
        fresh[value] = value if shape == value.type.shape else replace(value, type=value.type.with_shape(*shape))
    nodes = tuple(
        replace(
            n,
            operands=tuple(fresh.get(v, v) if v is not None else None for v in n.operands),
            attrs={k: _substitute_attr(v, values) for k, v in n.attrs.items()},
            results=tuple(fresh[v] for v in n.results),
        )
        for n in function.nodes
    )
    params = tuple(Param(fresh[p.value], p.state) for p in function.params)
    results = tuple(Result(r.name, fresh.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, params, nodes, results)


def _substitute_attr(value: AttrValue, values: Mapping[str, Dim]) -> AttrValue:
    if isinstance(value, Expr):
        return substitute(value, values)
    if isinstance(value, tuple):
        return tuple(_substitute_attr(v, values) for v in value)
    return value


class _Trainer:
    """Makes the training form of one function (the rules are numbered in :class:`SpecialiseTrain`)."""

    def __init__(self, function: Function) -> None:
        # Rule 4: every position is wanted, so R is T.
        self.source = substitute_dims(function, {"R": symbol("T")})
        self.batch, self.tokens = self._call_dims()
        self.b = FunctionBuilder(
            function.name,
            taken={v.name for v in function.values()},
            node_names={n.name for n in function.nodes},
        )
        self.found: dict[Value, Value] = {}
        self.zeros: set[Value] = set()
        self.indices: set[Value] = set()
        self.written: dict[Value, Value] = {}
        self.state_params = {p.value for p in self.source.params if p.state}
        self.dropped = {p.value for p in self.source.params if p.value.name in _PHASE_INPUTS}
        with self.b.scope("index"):
            iota = self.b.op("iota", size=(self.tokens,), hint="place")
            self.index = self.b.op("broadcast", iota, shape=(self.batch, self.tokens), hint="token_index")
        self._seed()

    def _call_dims(self) -> tuple[Dim, Dim]:
        positions = self.source.param("positions")
        if positions is None:
            raise InputError(f"@{self.source.name} has start but no positions: it is not a forward")
        return positions.type.shape[0], positions.type.shape[1]

    def _seed(self) -> None:
        """Rule 3: what the inputs that go are worth."""
        with self.b.scope("index"):
            for param in self.source.params:
                value = param.value
                if value.name in ("positions", "rows"):
                    self.indices.add(value)
                    self.found[value] = self.index
                elif value.name == "start" or param.state:
                    self.zeros.add(value)
                    zero = self.b.constant(0.0 if value.type.is_float else 0, _plain(value.type))
                    self.found[value] = self.b.op("broadcast", zero, shape=value.type.shape)
                elif value.name == "length":
                    last = self.b.op("max", self.index, axes=(1,))
                    self.found[value] = self.b.op("add", last, self.b.constant(1, DType.I64))

    def run(self) -> Function:
        """Return the training form."""
        for node in self.source.nodes:
            if not self._drop(node):
                self._keep(node)
        params = tuple(p for p in self.source.params if not p.state and p.value not in self.dropped)
        # Rule 1: states leave the signature.
        results = tuple(Result(r.name, self._of(r.value)) for r in self.source.results if r.state is None)
        return eliminate_dead_code(Function(self.source.name, params, tuple(self.b.nodes), results))

    def _of(self, value: Value) -> Value:
        return self.found.get(value, value)

    def _drop(self, node: Node) -> bool:
        """Replace ``node`` by values that are there already, where a rule says so."""
        operands = node.operands
        if node.op == "cache_write":
            # Rule 2: what was written is what is read.
            assert operands[1] is not None
            self.written[node.result] = self._of(operands[1])
            return True
        if node.op == "cache_read":
            if operands[0] not in self.written:
                raise InputError(
                    f"{node.name} reads a cache that @{self.source.name} has not written: it cannot be trained"
                )
            assert operands[0] is not None
            self._replace_read(node, self.written[operands[0]])
            return True
        if node.op == "cache_move":
            raise InputError(f"{node.name} moves cached tokens: @{self.source.name} cannot be trained")
        if node.op == "gather" and self._reads_every_token(node):
            assert operands[0] is not None
            self.found[node.result] = self._of(operands[0])
            return True
        self._learn(node)
        if len(node.results) == 1 and node.result in self.indices and node.result.type == self.index.type:
            self.found[node.result] = self.index
            return True
        return False

    def _replace_read(self, node: Node, x: Value) -> None:
        wanted = node.results[0].type.element
        if x.type.element != wanted:
            with self.b.at(node):
                x = self.b.op("cast", x, to=wanted)
        self.found[node.results[0]] = x
        self.found[node.results[1]] = self.index
        self.indices.add(node.results[1])

    def _reads_every_token(self, node: Node) -> bool:
        """Whether ``node`` gathers each token at its own place."""
        x, index = node.operands
        return x is not None and index in self.indices and node.result.type.shape == x.type.shape

    def _learn(self, node: Node) -> None:
        """Note whether the result is zero everywhere, or the index of the token at each place."""
        operands = [v for v in node.operands if v is not None]
        if len(node.results) != 1 or node.result.type.element != DType.I64:
            return
        if node.op == "iota":
            if node.attrs["size"] == (self.tokens,):
                self.indices.add(node.result)
        elif node.op in ("reshape", "broadcast"):
            if operands[0] in self.zeros:
                self.zeros.add(node.result)
            elif operands[0] in self.indices and self._one_token_axis(node.result.type):
                self.indices.add(node.result)
        elif node.op == "add":
            others = [v for v in operands if v not in self.zeros]
            if not others:
                self.zeros.add(node.result)
            elif len(others) == 1 and others[0] in self.indices:
                self.indices.add(node.result)

    def _one_token_axis(self, type: TensorType) -> bool:
        known = all(d in (1, self.batch, self.tokens) for d in type.shape)
        return known and sum(d == self.tokens for d in type.shape) == 1

    def _keep(self, node: Node) -> None:
        """Append ``node`` with its new operands and attributes, types found anew."""
        names = [i.name for i in find_op(node.op).inputs]
        operands: list[Value | None] = []
        for place, value in enumerate(node.operands):
            name = names[min(place, len(names) - 1)]
            gone = name in ("length", "parents", "start") and value is not None
            gone = gone or (node.op == "lm_head" and name == "rows" and value in self.indices)
            operands.append(None if gone or value is None else self._of(value))
        attrs = dict(node.attrs)
        if node.op == "mla":
            attrs["form"] = "naive"
        types = find_op(node.op).infer_results(tuple(v.type if v else None for v in operands), attrs)
        results = tuple(v if v.type == t else replace(v, type=t) for v, t in zip(node.results, types, strict=True))
        self.found.update({a: b for a, b in zip(node.results, results, strict=True) if a is not b})
        self.b.nodes.append(replace(node, operands=tuple(operands), attrs=attrs, results=results))


def _plain(type: TensorType) -> DType:
    return type.element if isinstance(type.element, DType) else DType.F32


@register_pass
@dataclass(frozen=True)
class SpecialiseTrain:
    """Make the functions that training differentiates.

    1. State parameters and state results leave every function that has ``start``.
    2. ``cache_read(cache_write(state, x, ...))`` becomes ``x`` and the index of each token.
    3. ``start`` is 0, ``positions`` and ``rows`` are 0..T-1, ``length`` is T; they leave the signature, as does
       ``parents``: a training sequence is a chain.  Sums of these that are 0..T-1 again become one value.
    4. R becomes T: the logits of every position; a gather of every position is what it gathers from.
    5. ``mla`` takes its naive form, which costs less when all keys are new.
    6. What nobody reads any more goes.

    Given::

        func @forward(%tokens: i64[B, T], %positions: i64[B, T], %start: i64[B], %length: i64[B], %rows: i64[B, R],
                      %k: f32[B, 2, S, 8] = @kv.0.k) -> (...) {
          %written = cache_write(%k, %new, %start, %length) : f32[B, 2, S, 8]
          %keys, %index = cache_read(%written, %start, %length) : f32[B, 2, S, 8], i64[B, S]
          %mixed = attention(%q, %keys, %values, %q_index, %index) {scale = 0.35} : f32[B, 4, T, 8]

    Result::

        func @forward(%tokens: i64[B, T]) -> (...) {
          %place = iota() {size = [T]} : i64[T]
          %token_index = broadcast(%place) {shape = [B, T]} : i64[B, T]
          %mixed = attention(%q, %new, %new_v, %token_index, %token_index) {scale = 0.35} : f32[B, 4, T, 8]

    Attributes:
        tokens: upper bound of T; the module's own when absent.
    """

    name: ClassVar[str] = "specialise-train"
    stage: ClassVar[Stage] = "specialise"
    tokens: int | None = option(None, low=1)

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the training module."""
        trained = specialise_train(module, self.tokens)
        removed = len(module.states)
        return PassResult(trained, True, (Remark(self.name, f"{removed} states left the module"),))


@register_pass
@dataclass(frozen=True)
class SpecialisePhase:
    """Clone a function for calls of few tokens.

    1. T becomes a dim of its own with the bound ``tokens``, or the number 1; R likewise.
    2. Every ``mla`` of the clone takes the form ``mla_form``.
    3. States and weights are those of the module: clones share them.

    Given::

        func @forward(%tokens: i64[B, T], ...)

    Result (``specialise-phase{phase=decode, tokens=1}``)::

        func @forward(%tokens: i64[B, T], ...)
        func @decode(%tokens: i64[B, 1], ...)

    Attributes:
        phase: name of the clone.
        tokens: upper bound of T.
        mla_form: naive or absorbed; as it is when absent.
        function: what to clone.
    """

    name: ClassVar[str] = "specialise-phase"
    stage: ClassVar[Stage] = "specialise"
    phase: str
    tokens: int = option(low=1)
    mla_form: str | None = option(None, choices=("naive", "absorbed"))
    function: str = "forward"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with the clone."""
        cloned = specialise_phase(module, self.phase, self.tokens, self.mla_form, self.function)
        told = f"@{self.phase} is @{self.function} with T up to {self.tokens}"
        return PassResult(cloned, True, (Remark(self.name, told),))
