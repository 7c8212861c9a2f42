"""How a state of attention is kept: its forms, and where a module reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Function, Module, Node, State, Value
from omnic.ir.types import DType, ElementType, Storage, StorageKind, TensorType

__all__ = ["RECENT", "Cache", "Form", "Part", "Plan", "find_caches", "group_for", "row_bytes", "state_bytes",
           "token_element"]

#: the states that hold keys, values or latents, one entry a token
ROLES = ("k", "v", "latent")
RECENT = DType.F16
# Groups that kernels like; a dim that none divides is one group.
_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Form:
    """How numbers of a state are kept.

    Attributes:
        element: the type of the state.
        static: ``channel`` or ``head``: scales are weights found by calibration, and ``element`` has scales of one;
            empty: scales are found at every write.
        offset: with ``static``, whether the range need not be symmetric about 0.
        block: with ``recent``, tokens of a block; 1 where every token is quantised by itself.
        keep: tokens before the open block that are read as they were.
        recent: tokens of the ring that keeps the newest ones beside the codes; 0 = there is none.
        multiple: what the slots of a ring are rounded up to a multiple of.
    """

    element: ElementType
    static: Literal["", "channel", "head"] = ""
    offset: bool = False
    block: int = 0
    keep: int = 0
    recent: int = 0
    multiple: int = 1

    @property
    def along_slots(self) -> bool:
        """Whether tokens share scales."""
        return isinstance(self.element, Storage) and self.element.axis == -2


@dataclass(frozen=True)
class Part:
    """A part of a state: its heads (None = all; a latent has none) and their form."""

    heads: tuple[int, ...] | None
    form: Form


#: state name -> the parts it is kept in
Plan = Mapping[str, tuple[Part, ...]]


@dataclass(frozen=True)
class Cache:
    """A state of attention and the nodes of one function that use it.

    Attributes:
        state: its declaration.
        function: the function.
        writes: the ``cache_write`` nodes.
        reads: the ``cache_read`` nodes.
        readers: the nodes that take the numbers that were read.
        moved: whether a ``cache_move`` compacts it.
        tree: whether a reader takes token trees.
    """

    state: State
    function: str
    writes: tuple[Node, ...]
    reads: tuple[Node, ...]
    readers: tuple[Node, ...]
    moved: bool
    tree: bool

    @property
    def heads(self) -> int:
        """Heads of the state; 1 for a latent."""
        head = self.state.type.shape[1]
        return head if self.state.type.rank == 4 and isinstance(head, int) else 1

    @property
    def width(self) -> int:
        """Numbers of a token and head."""
        width = self.state.type.shape[-1]
        assert isinstance(width, int)
        return width


def find_caches(module: Module) -> list[Cache]:
    """Return the states of keys, values and latents in the order of the module, for each function that has them."""
    return [
        _cache(state, function)
        for state in module.states.values()
        if state.role in ROLES and state.rollback == "positional"
        for function in module.functions.values()
        if any(p.state == state.name for p in function.params)
    ]


def _cache(state: State, function: Function) -> Cache:
    versions: set[Value] = {p.value for p in function.params if p.state == state.name}
    writes: list[Node] = []
    reads: list[Node] = []
    values: set[Value] = set()
    readers: list[Node] = []
    moved = False
    for node in function.nodes:
        if node.op in ("cache_write", "cache_move") and node.operands[0] in versions:
            versions.add(node.result)
            moved |= node.op == "cache_move"
            writes += [node] if node.op == "cache_write" else []
        elif node.op == "cache_read" and node.operands[0] in versions:
            reads.append(node)
            values.add(node.results[0])
        elif any(v in values for v in node.inputs()):
            readers.append(node)
        elif any(v in versions for v in node.inputs()):
            raise InputError(f"the state {state.name} is used by {node.name}, which is no read or write of a cache")
    tree = function.param("parents") is not None
    return Cache(state, function.name, tuple(writes), tuple(reads), tuple(readers), moved, tree)


def group_for(size: int, wanted: int) -> int:
    """Return the largest usable group of at most ``wanted`` numbers that divides a dim; 0 = the whole dim."""
    fitting = [g for g in _GROUPS if g <= wanted and g < size and size % g == 0]
    return 0 if wanted == 0 or wanted >= size or not fitting else max(fitting)


def token_element(kind: StorageKind, size: int, group: int, symmetric: bool) -> Storage:
    """Return the type of a state whose tokens are quantised one by one, in groups of their numbers."""
    return Storage(kind, group_for(size, group), asym=not symmetric and kind in ("i8", "i4", "i2"))


def row_bytes(type: TensorType, module: Module) -> int:
    """Return the bytes of one row (B = 1) of a state of this type."""
    dims = {name: r.high for name, r in module.dims.items()}
    return type.with_shape(1, *(evaluate(d, dims) for d in type.shape[1:])).bytes()


def state_bytes(module: Module, batch: int = 1) -> int:
    """Return the bytes that the states of ``batch`` rows take: codes, scales, zero points and recent rings."""
    dims = {name: r.high for name, r in module.dims.items()} | {"B": batch}
    return sum(s.type.with_shape(*(evaluate(d, dims) for d in s.type.shape)).bytes() for s in module.states.values())
