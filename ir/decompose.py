"""Decomposition: composites replaced by the core ops that they mean."""

from __future__ import annotations

from collections.abc import Callable

from omnic.errors import InternalError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Value, attrs_of
from omnic.ir.op import Op, find_op
from omnic.ir.rewrite import rebuild_with, rename_values

__all__ = ["decompose", "decompose_function"]


class _Expander(FunctionBuilder):
    """A builder that decomposes every composite put into it, except those that ``keep`` names."""

    def __init__(self, function: Function, keep: Callable[[Node], bool]) -> None:
        super().__init__(
            function.name,
            taken={v.name for v in function.values()},
            node_names={n.name for n in function.nodes},
        )
        self._keep = keep

    def emit(self, op: str, *operands: Value | None, hint: str = "", **attrs: object) -> tuple[Value, ...]:
        """Append a node, or what it decomposes into."""
        definition = find_op(op)
        results = super().emit(op, *operands, hint=hint, **attrs)
        if not definition.composite or self._keep(self.nodes[-1]):
            return results
        node = self.nodes.pop()
        return self.expand(node, definition, node.operands)

    def expand(self, node: Node, definition: Op, operands: tuple[Value | None, ...]) -> tuple[Value, ...]:
        """Append the decomposition of ``node`` applied to ``operands`` and return its results."""
        made = definition.decompose(self, *definition.arrange(operands), **definition.bind(attrs_of(**node.attrs)))
        results = made if isinstance(made, tuple) else (made,)
        wanted, got = [r.type for r in node.results], [r.type for r in results]
        if wanted != got:
            raise InternalError(
                f"{node.op} decomposes to {', '.join(map(str, got))} where {', '.join(map(str, wanted))} is its type"
            )
        return results


def decompose_function(function: Function, keep: Callable[[Node], bool]) -> Function:
    """Return ``function`` with every composite that ``keep`` does not want replaced, recursively.

    New nodes have the scope and the place of the node they come from; kept nodes keep their names; the
    values that replace a composite's results have the results' names.
    """
    b = _Expander(function, keep)
    found: dict[Value, Value] = {}
    names: dict[Value, str] = {}
    fixed = {p.value for p in function.params}
    for node in function.nodes:
        operands = tuple(found.get(v, v) if v is not None else None for v in node.operands)
        definition = find_op(node.op)
        if not definition.composite or keep(node):
            b.nodes.append(rebuild_with(node, operands))
            fixed.update(node.results)
            continue
        with b.at(node):
            results = b.expand(node, definition, operands)
        for before, after in zip(node.results, results, strict=True):
            found[before] = after
            if after not in fixed and after not in names and not after.weight:
                names[after] = before.name
    expanded = rebuild_with_results(function, tuple(b.nodes), found)
    return rename_values(expanded, names)


def rebuild_with_results(function: Function, nodes: tuple[Node, ...], found: dict[Value, Value]) -> Function:
    """Return ``function`` with ``nodes`` and its results looked up in ``found``."""
    results = tuple(type(r)(r.name, found.get(r.value, r.value), r.state) for r in function.results)
    return Function(function.name, function.params, nodes, results)


def decompose(module: Module, keep: Callable[[Node], bool] = lambda node: False) -> Module:
    """Return ``module`` with the composites of every function replaced by what they mean.

    Args:
        module: any module.
        keep: says of a composite node that it stays as it is; asked again for the composites that a
            decomposition itself uses.
    """
    for function in module.functions.values():
        module = module.with_function(decompose_function(function, keep))
    return module
