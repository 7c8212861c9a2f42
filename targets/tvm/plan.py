"""The plan of one function: steps over buffers, with every buffer's place in the arena.

A :class:`Planner` walks the turns of a function (:mod:`omnic.targets.tvm.schedule`), asks the lowering table for the
steps of each, and keeps where every value lies.  Buffers live from the step that first names them to the last; those
that never live together share their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from omnic.errors import InputError, InternalError
from omnic.ir.dims import Dim, product
from omnic.ir.graph import Function, Module, Node, Uses, Value
from omnic.ir.types import DType, TensorType
from omnic.targets.cut import state_values
from omnic.targets.refusals import refused
from omnic.targets.tvm.arena import placed
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.patterns import AttentionForm
from omnic.targets.tvm.schedule import Turn, needed_inputs, turns_of
from omnic.targets.tvm.states import PLAIN_ROLES, state_forms
from omnic.targets.tvm.tail.loops import Apply, Expression, Leaf, leaves_of
from omnic.targets.tvm.text import C_TYPES, dim, ident
from omnic.targets.tvm.views import Buffer, Rows, View, contiguous_strides

__all__ = ["Plan", "Planner", "Step", "held", "refuse", "settled"]

def refuse(node: Node, why: str, hint: str | None = None) -> InputError:
    """Return the error that a node cannot be lowered."""
    return refused("tvm", node, why, hint)


def held(dtype: DType) -> DType:
    """Return the type of the elements of a buffer: 16-bit floats between ops are rounded numbers in f32."""
    return DType.F32 if dtype.is_float else dtype


@dataclass(frozen=True)
class Step:
    """One statement of the program.

    Attributes:
        node: what it belongs to (scope and line of the spec).
        text: C, with ``$name`` for the address of a view.
        views: name -> view.
        scratch: C expression of the bytes of scratch that it needs, "" for none.
    """

    node: Node | None
    text: str
    views: Mapping[str, View]
    scratch: str = ""


@dataclass
class Plan:
    """A planned function.

    Attributes:
        name: of the C function.
        function: of the IR, its dims settled.
        fixed: dims that are numbers in it (``T`` and ``R`` of a single token).
        steps: in order.
        offsets: buffer -> bytes from the start of the arena.
        arena: bytes of the arena.
        inputs: names of the arguments, in order; states are not among them.
        results: names of the results, in order; states are not among them.
        states: names of the states that it reads or writes.
        scopes: ops of the IR by scope.
    """

    name: str
    function: Function
    fixed: Mapping[str, int]
    steps: list[Step] = field(default_factory=list[Step])
    offsets: dict[Buffer, int] = field(default_factory=dict[Buffer, int])
    arena: int = 0
    inputs: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    states: dict[str, None] = field(default_factory=dict[str, None])
    scopes: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


Lowering = Callable[["Planner", Turn], None]


class Planner:
    """Plans one function.

    Args:
        module: the function's module.
        function: with its dims settled.
        forms: attention that runs on states in place, by node name.
        matrices: the weights of the program, filled on the way.
        name: of the C function.
        fixed: dims that are numbers in it.
        table: op -> lowering.
    """

    def __init__(
        self,
        module: Module,
        function: Function,
        forms: Mapping[str, AttentionForm],
        matrices: Matrices,
        name: str,
        fixed: Mapping[str, int],
        table: Mapping[str, Lowering],
    ) -> None:
        self.module, self.function, self.forms, self.matrices = module, function, forms, matrices
        self.uses = Uses(function)
        self.plan = Plan(name, function, fixed)
        self.views: dict[Value, View] = {}
        self.waiting: dict[Value, Apply] = {}
        self.destinations: dict[Value, View] = {}
        self.lowerings = table
        self._states = state_values(function)
        self._names = {ident(name) for name in module.states if module.states[name].role not in PLAIN_ROLES}
        self._turns = turns_of(function, forms)
        self._turn_of = {n: at for at, turn in enumerate(self._turns) for n in turn.nodes}
        self._readers: dict[Value, int] = {}
        for turn in self._turns:
            for node in turn.nodes:
                for value in needed_inputs(node, forms):
                    self._readers[value] = max(self._readers.get(value, 0), self._turn_of[node])
        self._plain = self._plain_states()
        self._returned = {r.value for r in function.results if r.state is None or r.state in self._plain}
        self.node: Node | None = None
        self._at = 0

    # -- running ------------------------------------------------------------------------------------------
    def run(self) -> Plan:
        """Return the plan."""
        self._parameters()
        self._results()
        for at, turn in enumerate(self._turns):
            self._at, self.node = at, turn.nodes[0]
            for node in turn.nodes:
                self.plan.scopes.setdefault(node.scope, []).append(node.op)
            self.lowerings[turn.kind if turn.kind != "one" else self.node.op](self, turn)
            for node in turn.nodes:
                for value in node.results:
                    self._land(value)
        self.node = None
        self._return()
        self.plan.offsets, self.plan.arena = placed([s.views for s in self.plan.steps], self.module.dims)
        return self.plan

    def _parameters(self) -> None:
        names: list[str] = []
        for param in self.function.params:
            value = param.value
            if param.state is not None and param.state in self.module.states:
                if param.state in self._plain:
                    self.views[value] = self._plain[param.state]
                continue
            dtype = held(value.type.dtype)
            place = f"(const {C_TYPES[dtype]} *)r->in[{len(names)}]"
            buffer = Buffer(self._name(value.name), dtype, value.type.size, place)
            self.views[value] = View(buffer, value.type.shape, contiguous_strides(value.type.shape))
            names.append(value.name)
        self.plan.inputs = tuple(names)

    def _results(self) -> None:
        results = [r for r in self.function.results if r.state is None]
        self.plan.results = tuple(r.name for r in results)
        self._outputs: list[tuple[Value, View]] = []
        for index, result in enumerate(results):
            value = result.value
            dtype = held(value.type.dtype)
            place = f"({C_TYPES[dtype]} *)r->out[{index}]"
            buffer = Buffer(self._name(f"{result.name}_out"), dtype, value.type.size, place)
            view = View(buffer, value.type.shape, contiguous_strides(value.type.shape))
            self._outputs.append((value, view))
            if value in self.uses.producer and value not in self.destinations:
                self._send(value, view)
        for turn in self._turns:
            for node in turn.nodes:
                if node.op == "concat" and node.result not in self.destinations:
                    type = node.result.type
                    self._send(node.result, self.new(type.shape, held(type.dtype), node.result.name))

    def _send(self, value: Value, view: View) -> None:
        """Say where a value shall lie, and so what it is only another shape or a row of pieces of."""
        self.destinations[value] = view
        node = self.uses.producer[value]
        if node.op == "concat":
            at: Dim = 0
            axis = int(str(node.attrs["axis"])) % value.type.rank
            for piece in node.inputs():
                size = piece.type.shape[axis]
                self._send_on(piece, view.slice(axis, at, at + size))
                at = at + size
        elif node.op == "reshape":
            source = node.operands[0]
            assert source is not None
            before = view.reshape(source.type.shape)
            if before is not None:
                self._send_on(source, before)

    def _send_on(self, value: Value, view: View) -> None:
        if value in self.uses.producer and value not in self.destinations and self.uses.count(value) == 1:
            self._send(value, view)

    def _land(self, value: Value) -> None:
        """Copy a value to where it shall lie, if it does not yet."""
        wanted, found = self.destinations.get(value), self.views.get(value)
        if wanted is not None and found is not None and not found.lies_as(wanted):
            self.copy(found, wanted)
            self.views[value] = wanted

    def _plain_states(self) -> dict[str, View]:
        """Return the states that no token has a slot in: they are read like arguments and written at the end."""
        found: dict[str, View] = {}
        for form in state_forms(self.module)[0]:
            state = self.module.states[form.name]
            if not form.cache:
                if form.type != "F32":
                    raise InputError(f"target tvm: state '{form.name}' ({state.type}) is kept in f32 only")
                shape = state.type.shape
                place = f"(float *)(r->states + B * {form.at})"
                buffer = Buffer(self._name(form.name), DType.F32, state.type.size, place)
                found[form.name] = View(buffer, shape, contiguous_strides(shape))
        return found

    def _return(self) -> None:
        after = [(r.value, self._plain[r.state]) for r in self.function.results if r.state in self._plain and r.state]
        views = [self.view(value) for value, _ in after]
        for value, _ in self._outputs:
            self.view(value)
        for value, view in self._outputs:
            if not self.view(value).lies_as(view):
                self.copy(self.view(value), view)
        for view, (_, place) in zip(views, after, strict=True):
            if not view.lies_as(place):
                self.copy(view, place)

    # -- what lowerings use ---------------------------------------------------------------------------------
    def view(self, value: Value) -> View:
        """Return where a value lies; one that waited is computed now."""
        if value.weight:
            return self.leaf_of_weight(value)
        if value in self.waiting:
            self.loop(value, self.waiting.pop(value))
        if value not in self.views:
            raise InternalError(f"target tvm: %{value.name} has no place yet")
        return self.views[value]

    def new(self, shape: Sequence[Dim], dtype: DType, name: str, order: Sequence[int] | None = None) -> View:
        """Return a new buffer of the arena, its dims in memory in ``order``."""
        buffer = Buffer(self._name(name), dtype, product(tuple(shape)))
        if order is None:
            return View(buffer, tuple(shape), contiguous_strides(shape))
        inside = contiguous_strides([shape[i] for i in order])
        strides = [inside[list(order).index(i)] for i in range(len(shape))]
        return View(buffer, tuple(shape), tuple(strides))

    def out(self, value: Value, order: Sequence[int] | None = None) -> View:
        """Return where a lowering shall put a value: where it is wanted, or in a new buffer."""
        view = self.destinations.get(value)
        if view is None:
            view = self.new(value.type.shape, held(value.type.dtype), value.name, order)
        self.views[value] = view
        return view

    def out_rows(self, value: Value) -> Rows:
        """Return where to put a value row by row."""
        rows = self.out(value).rows()
        if rows is None:
            self.views[value] = self.new(value.type.shape, held(value.type.dtype), value.name)
            rows = self.views[value].rows()
        assert rows is not None
        return rows

    def out_dense(self, value: Value) -> View:
        """Return where to put a value in row-major order without gaps."""
        view = self.out(value)
        if not view.contiguous:
            view = self.views[value] = self.new(value.type.shape, held(value.type.dtype), value.name)
        return view

    def out_over(self, value: Value, *sources: Value) -> View:
        """Return where to put what is computed number by number: over a source that nobody reads later, or anew."""
        if value not in self.destinations:
            for source in sources:
                view = self.view(source)
                if view.contiguous and view.shape == value.type.shape and self.dies(source):
                    self.views[value] = view
                    return view
        return self.out_dense(value)

    def rows(self, value: Value) -> Rows:
        """Return a value as rows of contiguous numbers, copied if it does not lie so."""
        found = self.view(value).rows()
        return found if found is not None else self._rows_of(self._copied(self.view(value)))

    def dense(self, value: Value) -> View:
        """Return a value in row-major order without gaps, copied if it does not lie so."""
        return self.dense_view(self.view(value))

    def dense_view(self, view: View) -> View:
        """Return a view in row-major order without gaps, copied if it does not lie so."""
        return view if view.contiguous else self._copied(view)

    def _rows_of(self, view: View) -> Rows:
        rows = view.rows()
        assert rows is not None
        return rows

    def _copied(self, view: View) -> View:
        made = self.new(view.shape, view.dtype, f"{view.buffer.name}_dense")
        self.copy(view, made)
        return made

    def copy(self, source: View, target: View) -> None:
        """Copy one view to another of the same shape."""
        rank = max(len(source.shape), 1)
        shape, from_, to = (
            ", ".join(dim(d) for d in dims) or "1" for dims in (source.shape, source.strides, target.strides)
        )
        width = source.dtype.bits // 8
        array = "(const int64_t[])"
        text = (
            f"omnic_copy({rank}, {array}{{{shape}}}, {width}, $source, {array}{{{from_}}}, $target, {array}{{{to}}});"
        )
        self.step(text, source=source, target=target)

    def step(self, text: str, scratch: str = "", **views: View) -> None:
        """Append a statement."""
        self.plan.steps.append(Step(self.node, text, views, scratch))

    def state(self, name: str) -> str:
        """Return the C name of a state's cache."""
        self.plan.states[name] = None
        return f"&{ident(name)}"

    def wait(self, value: Value, root: Apply) -> None:
        """Compute a value when it is needed: in the loop of the op that reads it, or when it must lie in memory."""
        self.waiting[value] = root
        if value in self.destinations or self._uses_in_turns(value) != 1:
            self.view(value)

    def _uses_in_turns(self, value: Value) -> int:
        users = sum(1 for node, _ in self.uses.users.get(value, []) if node in self._turn_of)
        return users + len(self.uses.returned.get(value, []))

    def expression(self, value: Value) -> Expression:
        """Return a value as an operand of a loop: what it is computed from where it waits, else where it lies."""
        return self.waiting.pop(value) if value in self.waiting else Leaf(self.view(value))

    def loop(self, value: Value, root: Apply) -> None:
        """Compute a value by a loop of its own."""
        self.loop_into(self.out_dense(value), root)

    def loop_into(self, output: View, root: Apply) -> None:
        """Append a loop that computes ``root`` into a view in row-major order."""
        inputs = list(dict.fromkeys(leaves_of(root)))
        name = self.matrices.loop(root, inputs, output)
        names = [f"a{at}" for at in range(len(inputs))]
        text = f"{name}({', '.join([*(f'(void *)(${n})' for n in names), '$y', 'B', 'T', 'R'])});"
        self.step(text, "", **dict(zip(names, inputs, strict=True)), y=output)

    def leaf_of_weight(self, value: Value) -> View:
        """Return a weight as plain numbers."""
        dtype = DType.F32 if value.type.is_float else value.type.dtype
        if value not in self.views:
            buffer = Buffer(self._name(value.name), dtype, value.type.size,
                            f"(const {C_TYPES[dtype]} *){self.matrices.vector(value)}")
            self.views[value] = View(buffer, value.type.shape, contiguous_strides(value.type.shape))
        return self.views[value]

    def numbers(self, values: Sequence[float], type: TensorType) -> View:
        """Return a constant table as a view."""
        dtype = held(type.dtype)
        name = self.matrices.numbers(values, dtype)
        buffer = Buffer(self._name("numbers"), dtype, type.size, f"(const {C_TYPES[dtype]} *){name}")
        return View(buffer, type.shape, contiguous_strides(type.shape))

    def state_of(self, value: Value) -> str:
        """Return the name of the state that a value is, before or after a write."""
        return self._states[value]

    def table(self, name: str, numbers: str, count: int) -> str:
        """Return the name of a constant table of f64 numbers; equal ones are one."""
        return self.matrices.table(name, numbers, count)

    def dies(self, value: Value) -> bool:
        """Whether the memory of ``value`` may be written over in this turn: nobody reads what lies there later."""
        view = self.view(value)
        if view.buffer.place:
            return False
        if any(leaf.buffer is view.buffer for root in self.waiting.values() for leaf in leaves_of(root)):
            return False
        for other, its in self.views.items():
            if its.buffer is not view.buffer or _apart(view, its):
                continue
            if other in self._returned or self._readers.get(other, -1) > self._at:
                return False
        return True

    def _name(self, wanted: str) -> str:
        base = name = ident(wanted)
        count = 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name


def _apart(a: View, b: View) -> bool:
    """Whether two views of one buffer are known to have no element in common: other columns of the same rows."""
    if a.strides != b.strides or a.shape[:-1] != b.shape[:-1] or not a.strides or a.strides[-1] != 1:
        return False
    ends: list[tuple[int, int]] = []
    for view in (a, b):
        width = view.shape[-1]
        if not isinstance(view.offset, int) or not isinstance(width, int):
            return False
        ends.append((view.offset, view.offset + width))
    steps = [s for s, n in zip(a.strides[:-1], a.shape[:-1], strict=True) if n != 1]
    if any(isinstance(s, int) and s < max(high for _, high in ends) for s in steps):
        return False
    return ends[0][1] <= ends[1][0] or ends[1][1] <= ends[0][0]


def settled(function: Function, fixed: Mapping[str, Dim]) -> Function:
    """Return ``function`` with the dims in ``fixed`` replaced."""
    from omnic.passes.specialise import substitute_dims

    return substitute_dims(replace(function), fixed)
