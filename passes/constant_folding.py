"""Evaluating at compile time what depends on nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Result, Value
from omnic.ir.op import Array, find_op
from omnic.ir.rewrite import Remark, eliminate_dead_code, rebuild_with, rename_values
from omnic.ir.types import DType
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["ConstantFolding"]

# op -> (places of the operand that may be neutral, the neutral number)
_NEUTRAL: dict[str, tuple[tuple[int, ...], float]] = {
    "add": ((0, 1), 0.0), "sub": ((1,), 0.0), "mul": ((0, 1), 1.0), "div": ((1,), 1.0), "pow": ((1,), 1.0),
}


class _Folder:
    """Folds one function (the rules are numbered in :class:`ConstantFolding`)."""

    def __init__(self, function: Function, limit: int) -> None:
        self.function, self.limit = function, limit
        self.known: dict[Value, Array] = {}
        self.found: dict[Value, Value] = {}
        self.names: dict[Value, str] = {}
        self.remarks: list[Remark] = []
        self.b = FunctionBuilder(
            function.name, taken={v.name for v in function.values()}, node_names={n.name for n in function.nodes}
        )

    def run(self) -> Function:
        """Return the folded function (itself when nothing folds)."""
        for node in self.function.nodes:
            operands = tuple(self.found.get(v, v) if v is not None else None for v in node.operands)
            self._visit(rebuild_with(node, operands))
        if not self.remarks:
            return self.function
        results = tuple(Result(r.name, self.found.get(r.value, r.value), r.state) for r in self.function.results)
        folded = Function(self.function.name, self.function.params, tuple(self.b.nodes), results)
        return rename_values(eliminate_dead_code(folded), self.names)

    def _visit(self, node: Node) -> None:
        if node.op == "constant":
            self.known[node.result] = self._evaluate(node)[0]
            self.b.nodes.append(node)
        elif self._foldable(node):
            self._fold(node)
        elif (same := self._neutral(node)) is not None:
            self.found[node.result] = same
            self.remarks.append(Remark("neutral", f"{node.op} leaves {same} as it is", node.name))
        else:
            self.b.nodes.append(node)

    def _foldable(self, node: Node) -> bool:
        """Rule 1, and rule 2: what is small and of a plain type."""
        inputs = list(node.inputs())
        if not inputs or not all(v in self.known for v in inputs) or node.op.startswith("host."):
            return False
        return all(
            isinstance(r.type.element, DType) and isinstance(r.type.size, int) and r.type.size <= self.limit
            for r in node.results
        )

    def _evaluate(self, node: Node) -> tuple[Array, ...]:
        op = find_op(node.op)
        arrays = tuple(self.known[v] if v is not None else None for v in node.operands)
        made: Any = op.reference(*op.arrange(arrays), **op.bind(node.attrs))
        results = cast("tuple[Any, ...]", made if isinstance(made, tuple) else (made,))
        return tuple(np.asarray(r) for r in results)

    def _fold(self, node: Node) -> None:
        for result, array in zip(node.results, self._evaluate(node), strict=True):
            values = tuple(v.item() for v in array.reshape(-1))
            with self.b.at(node):
                made = self.b.op("constant", values=values, shape=result.type.shape, type=result.type.dtype, hint="c")
            self.known[made] = array
            self.found[result] = made
            self.names[made] = result.name
        self.remarks.append(Remark("fold", f"{node.op} of constants", node.name))

    def _neutral(self, node: Node) -> Value | None:
        """Rule 3: the operand that a neutral one leaves as it is."""
        if node.op == "cast" and node.operands[0] is not None and node.operands[0].type == node.result.type:
            return node.operands[0]
        places, number = _NEUTRAL.get(node.op, ((), 0.0))
        for place in places:
            value, other = node.operands[place], node.operands[1 - place]
            array = self.known.get(value) if value is not None else None
            if array is not None and other is not None and other.type == node.result.type and (array == number).all():
                return other
        return None


@register_pass
@dataclass(frozen=True)
class ConstantFolding:
    """Evaluate at compile time what depends on constants alone.

    1. A node whose operands are all ``constant`` becomes a ``constant``, evaluated by the reference in f64.
    2. Its results have a fixed shape, a plain type and at most ``limit`` numbers each.
    3. ``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ^ 1`` and a cast to x's own type are x, where the type of x
       is the result's.

    Given::

        %two = constant() {values = [2.0], shape = [], type = f32} : f32[]
        %root = sqrt(%two) : f32[]
        %y = mul(%x, %root) : f32[B, 8]

    Result::

        %root = constant() {values = [1.4142135623730951], shape = [], type = f32} : f32[]
        %y = mul(%x, %root) : f32[B, 8]

    Attributes:
        limit: the most numbers a constant made here may have; what is larger is cheaper to compute than to store.
    """

    name: ClassVar[str] = "constant-folding"
    stage: ClassVar[Stage] = "front"
    limit: int = option(4096, low=1, high=1 << 24)

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with constants folded, function by function."""
        after, remarks = module, list[Remark]()
        for function in module.functions.values():
            folder = _Folder(function, self.limit)
            folded = folder.run()
            if folded is not function:
                after = after.with_function(folded)
            remarks.extend(folder.remarks)
        return PassResult(after, after is not module, tuple(remarks))
