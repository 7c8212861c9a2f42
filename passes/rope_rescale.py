"""Programs for contexts longer than the model was trained for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node, State, Value
from omnic.ir.op import find_op
from omnic.ir.rewrite import Remark, retype
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["RopeRescale"]


def _grown(state: State, old: int, capacity: int) -> State:
    """Rule 3: a linear state of the whole context holds the new one; a ring stays."""
    if state.ring or state.type.rank < 2 or state.type.shape[-2] != old:
        return state
    shape = (*state.type.shape[:-2], capacity, state.type.shape[-1])
    return replace(state, type=state.type.with_shape(*shape))


@register_pass
@dataclass(frozen=True)
class RopeRescale:
    """Make the program of a longer context: rope re-scaled, states grown.

    1. The factor is ``context`` / ``original``; every ``rope`` without a scaling of its own takes ``kind`` with it:
       ``linear`` divides every frequency, ``ntk`` raises the base, ``yarn`` divides the slow frequencies and adjusts
       the temperature of attention (arXiv:2306.15595, arXiv:2309.00071).
    2. A rope that has a scaling keeps it and leaves a remark: it was trained so.
    3. Every state that holds the whole context holds ``context`` tokens; rings keep their slots.
    4. The module's ``context`` and ``capacity`` are the new one.

    Given::

        state @kv.0.k : f32[B, 2, 4096, 64] role(k) group(0) rollback(positional)
        %q_rot = rope(%q, %positions) {dims = 64} : f32[B, 8, T, 64]

    Result (``rope-rescale{context=32768}`` of a model trained for 4096)::

        state @kv.0.k : f32[B, 2, 32768, 64] role(k) group(0) rollback(positional)
        %q_rot = rope(%q, %positions) {dims = 64, factor = 8.0, original_context = 4096, scaling = "yarn"} : ...

    Attributes:
        context: tokens the program is to hold.
        kind: how frequencies change.
        original: tokens the model was trained for; the module's own context when absent.
    """

    name: ClassVar[str] = "rope-rescale"
    stage: ClassVar[Stage] = "front"
    context: int = option(low=2, high=1 << 24)
    kind: str = option("yarn", choices=("linear", "ntk", "yarn"))
    original: int | None = option(None, low=1, high=1 << 24)

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module for the longer context.

        Raises:
            InputError: the module does not say its context, or already holds more.
        """
        original = self.original or module.meta.get("context")
        if not isinstance(original, int):
            raise InputError(f"@{module.name} does not say its context", f"write {self.name}{{original=...}}")
        if self.context < original:
            raise InputError(
                f"option 'context' of pass '{self.name}' must be at least {original}, the context the model was "
                f"trained for, got {self.context}",
                "a shorter program needs no scaling: set budget.context in the spec",
            )
        capacity = module.meta.get("capacity", original)
        assert isinstance(capacity, int)
        factor = self.context / original
        remarks: list[Remark] = []
        states = {name: _grown(s, capacity, self.context) for name, s in module.states.items()}
        functions = {name: self._rescaled(f, states, factor, original, remarks) for name, f in module.functions.items()}
        grown = sum(s.type != module.states[n].type for n, s in states.items())
        remarks.append(Remark(self.name, f"{self.kind} by {factor:g}; {grown} states hold {self.context} tokens"))
        meta = {**module.meta, "context": self.context, "capacity": self.context}
        after = replace(module, functions=functions, states=states, meta=meta)
        return PassResult(after, True, tuple(remarks))

    def _rescaled(
        self, function: Function, states: dict[str, State], factor: float, original: int, remarks: list[Remark]
    ) -> Function:
        values: dict[Value, Value] = {}
        for param in function.params:
            state = states.get(param.state) if param.state is not None else None
            if state is not None and state.type.shape[-2:-1] != param.value.type.shape[-2:-1]:
                values[param.value] = replace(param.value, type=state.type)
        function = retype(function, values) if values else function
        nodes = tuple(self._scaled(n, factor, original, remarks) if n.op == "rope" else n for n in function.nodes)
        return replace(function, nodes=nodes)

    def _scaled(self, node: Node, factor: float, original: int, remarks: list[Remark]) -> Node:
        attrs = find_op("rope").bind(node.attrs)
        if attrs["scaling"] != "none":  # rule 2
            told = f"it is scaled already: {attrs['scaling']} by {attrs['factor']}"
            remarks.append(Remark(self.name, told, node.name, True))
            return node
        if factor == 1.0:
            return node
        given = {**node.attrs, "scaling": self.kind, "factor": factor}
        if self.kind == "yarn":
            given["original_context"] = original
        remarks.append(Remark(self.name, "applied", node.name))
        return replace(node, attrs=given)
