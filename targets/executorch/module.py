"""A function of the IR as a torch module that torch.export takes: weights and states are its buffers.

The module walks the nodes and applies the function of :mod:`omnic.targets.executorch.lower` to each, so that the
exported graph holds plain torch operators and nothing of the walk.  There is one row: B is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnic.errors import InputError, InternalError
from omnic.ir.dims import Dim
from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.op import find_op
from omnic.ir.types import DType, Storage
from omnic.targets.executorch.coded import Coded
from omnic.targets.executorch.codes import buffers_of, decode
from omnic.targets.executorch.traced import node_of
from omnic.targets.refusals import refused

__all__ = ["TORCH_DTYPES", "FunctionModule", "StateRef", "Walk", "buffer_name", "refuse", "state_shape", "whole"]

TORCH_DTYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}


def refuse(node: Node, why: str, hint: str) -> InputError:
    """Return the error that the target cannot take ``node``; it names the line of the spec."""
    return refused("executorch", node, why, hint)


def buffer_name(kind: str, name: str) -> str:
    """Return the name of the buffer of a weight or state; equal names of two methods are one buffer of the program."""
    return f"{kind}_{name.replace('.', '_')}"


def whole(dim: Dim, sizes: Mapping[str, Any]) -> Any:
    """Return the number ``dim`` is under ``sizes``, which may be symbols of torch.export."""
    if isinstance(dim, int):
        return dim
    total: Any = 0
    for monomial, coefficient in dim.terms:
        product: Any = coefficient
        for atom in monomial:
            if atom.kind == "sym":
                product = product * sizes[atom.name]
                continue
            parts = [whole(a, sizes) for a in atom.args]
            if atom.kind == "floordiv":
                product = product * (parts[0] // parts[1])
            elif atom.kind == "ceildiv":
                product = product * -(-parts[0] // parts[1])
            elif atom.kind == "min":
                product = product * torch.sym_min(*parts)
            else:
                product = product * torch.sym_max(*parts)
        total = total + product
    return total


def state_shape(shape: Sequence[Dim], token: bool) -> tuple[int, ...]:
    """Return the shape of a state's buffer: [1, S, G, D] of one that holds a token a slot, else its own."""
    fixed = [int(str(d)) for d in shape[1:]]
    if not token:
        return (1, *fixed)
    *middle, slots, width = fixed
    heads = 1
    for size in middle:
        heads *= size
    return (1, slots, heads, width)


@dataclass
class StateRef:
    """A state inside a walk: the buffers that hold it.

    Attributes:
        name: of the state.
        parts: its buffers by the suffix of their name: numbers, or codes, scales and zero points
            (:mod:`omnic.targets.executorch.codes`); [1, S, G, D or bytes or groups] where it holds a token a slot.
        shape: [1, ..., S, D] of the IR.
        token: whether it holds a token a slot.
        element: its storage type, None for plain numbers.
    """

    name: str
    parts: dict[str, Tensor]
    shape: tuple[int, ...]
    token: bool
    element: Storage | None = None

    @property
    def tensor(self) -> Tensor:
        """The buffer of its numbers or codes."""
        return self.parts[""]

    def with_parts(self, parts: dict[str, Tensor]) -> StateRef:
        """Return the state with other numbers."""
        return replace(self, parts=parts)

    def slots(self, count: Any = None) -> Tensor:
        """Return the numbers of the first ``count`` slots (None = all), f32 [1, count, G, D]."""
        parts = self.parts if count is None else {s: p.narrow(1, 0, count) for s, p in self.parts.items()}
        if self.element is None:
            return parts[""].float()
        return decode(parts, self.element, self.shape[-1])

    def numbers(self) -> Tensor:
        """Return the numbers in the order of the IR, f32."""
        if not self.token:
            return self.tensor.float()
        return self.slots().transpose(1, 2).reshape(self.shape)


@dataclass
class Walk:
    """What the functions of the lowering table may use of the walk they are in.

    Attributes:
        sizes: symbol -> its size.
        values: of the nodes so far; states are :class:`StateRef`.
        function: the whole function.
        in_place: whether states are buffers that the program changes.
        plain: whether states and attention are torch's own operators alone, for delegates that take those.
        means: width -> the constant [1, width] whose product with a row is its mean.
        memo: what several nodes share, by a key of theirs.
    """

    sizes: dict[str, Any]
    values: dict[Value, Any]
    function: Function
    in_place: bool
    plain: bool = False
    means: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    memo: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def shape(self, dims: Iterable[Dim]) -> list[Any]:
        """Return sizes of ``dims``."""
        return [whole(d, self.sizes) for d in dims]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, made at the first use of ``key``."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def _plain(value: Any) -> Any:
    return value.numbers() if isinstance(value, StateRef) else value


class FunctionModule(nn.Module):
    """One function, called with its parameters that are not states, in order.

    Args:
        module: the legalised module.
        function: a function of it with B = 1.
        weights: name -> tensor, or codes.
        states: buffer's name -> buffer, shared by all methods; they are parameters and results instead where
            ``in_place`` is false.
        table: op -> its lowering.
        plain: see :class:`Walk`.
        results: names of values to return instead of the function's results.
    """

    def __init__(
        self,
        module: Module,
        function: Function,
        weights: Mapping[str, Tensor | Coded],
        states: Mapping[str, Tensor],
        table: Mapping[str, Callable[..., Any]],
        *,
        in_place: bool = True,
        plain: bool = False,
        results: Sequence[Value] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.table, self.in_place, self.plain = function, table, in_place, plain
        self.states = [p.state for p in function.params if p.state is not None]
        self.tokens = {n: module.states[n].role not in ("recurrent", "conv") for n in self.states}
        used = {v.name for n in function.nodes for v in n.inputs() if v.weight}
        tables = {n.operands[0].name for n in function.nodes if n.op == "embedding" and n.operands[0]}
        products = {v.name for n in function.nodes if n.op != "embedding" for v in n.inputs() if v.weight}
        self.coded = {name: w for name, w in weights.items() if isinstance(w, Coded)}
        for name, weight in weights.items():
            if name not in used:
                continue
            if isinstance(weight, Coded):
                if name in products:
                    self._hold(buffer_name("w", name), weight)
                if name in tables:
                    self._hold(buffer_name("t", name), weight.table())
            elif weight.is_floating_point():
                self.register_parameter(buffer_name("w", name), nn.Parameter(weight, requires_grad=False))
            else:
                self.register_buffer(buffer_name("w", name), weight)
        normed = {n.operands[0].type.shape[-1] for n in function.nodes if n.op == "rms_norm" and n.operands[0]}
        self.widths = sorted(w for w in normed if isinstance(w, int))
        for width in self.widths:
            self.register_buffer(f"c_mean_{width}", torch.full((1, width), 1.0 / width))
        self.buffers_of = {name: buffers_of(name, states) for name in self.states}
        elements = {name: module.states[name].type.element for name in self.states}
        self.elements = {name: e if isinstance(e, Storage) else None for name, e in elements.items()}
        if in_place:
            for held in self.buffers_of.values():
                for name in held.values():
                    self.register_buffer(buffer_name("s", name), states[name])
        self.wanted = tuple(r.value for r in function.results if r.state is None) if results is None else tuple(results)

    def _hold(self, name: str, weight: Coded) -> None:
        for part in ("codes", "scale", "zero"):
            self.register_buffer(f"{name}_{part}", getattr(weight, part))

    def _weight(self, name: str, table: bool) -> Tensor | Coded:
        if name not in self.coded:
            return getattr(self, buffer_name("w", name))
        held = buffer_name("t" if table else "w", name)
        parts = (getattr(self, f"{held}_{part}") for part in ("codes", "scale", "zero"))
        return Coded(self.coded[name].type, *parts)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Run the nodes; results in order, then the new states where they are not buffers."""
        function = self.function
        values: dict[Value, Any] = {}
        sizes: dict[str, Any] = {}
        rest = iter(given)
        for param in function.params:
            if param.state is not None:
                parts = {
                    suffix: getattr(self, buffer_name("s", name)) if self.in_place else next(rest)
                    for suffix, name in self.buffers_of[param.state].items()
                }
                shape = (1, *(int(str(d)) for d in param.value.type.shape[1:]))
                element = self.elements[param.state]
                values[param.value] = StateRef(param.state, parts, shape, self.tokens[param.state], element)
                continue
            tensor = values[param.value] = next(rest)
            for dim, size in zip(param.value.type.shape, tensor.shape, strict=True):
                name = str(dim)
                if not isinstance(dim, int) and name not in sizes:
                    sizes[name] = size
        sizes.setdefault("B", 1)
        means = {w: getattr(self, f"c_mean_{w}") for w in self.widths}
        walk = Walk(sizes, values, function, self.in_place, self.plain, means)
        for node in function.nodes:
            self._step(walk, node)
        outputs = [_plain(values[v]) for v in self.wanted]
        for result in function.results:
            if result.state is None:
                continue
            new = values[result.value]
            parts = new.parts if isinstance(new, StateRef) else {"": new}
            if self.in_place:
                # The operators for language models have written into the buffers themselves.
                if self.plain or not isinstance(new, StateRef):
                    for suffix, name in self.buffers_of[result.state].items():
                        getattr(self, buffer_name("s", name)).copy_(parts[suffix])
            else:
                outputs += parts.values()
        return tuple(outputs)

    def _step(self, walk: Walk, node: Node) -> None:
        definition = find_op(node.op)
        attrs = {a.name: node.attrs.get(a.name, a.default) for a in definition.attrs}
        operands: list[Any] = []
        for value in node.operands:
            if value is None:
                operands.append(None)
            elif value.weight:
                operands.append(self._weight(value.name, node.op == "embedding"))
            else:
                found = walk.values[value]
                operands.append(found if node.op in _TAKES_STATES else _plain(found))
        with node_of(node):
            made = self.table[node.op](walk, node, *operands, **attrs)
        results = made if isinstance(made, tuple) else (made,)
        if len(results) != len(node.results):
            raise InternalError(f"{node.name}: {len(results)} results for {len(node.results)}")
        walk.values.update(zip(node.results, results, strict=True))


_TAKES_STATES = {"cache_write", "cache_read", "cache_move", "attention", "block_attention", "mla"}
