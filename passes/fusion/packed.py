"""Projections that an exporter's model keeps in one matrix, as the projections they are.

GPT-2 and Phi keep queries, keys and values (and gates with ups) in one weight and cut the result.  Cut weights compute
the same; whether a target wants them merged again is another pass's question.
"""

from __future__ import annotations

from omnic.ir.dims import Dim
from omnic.ir.graph import Node, Recipe, Value
from omnic.ir.types import Storage, TensorType
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site

__all__ = ["PACKED"]

_PARTS = {2: ("gate", "up"), 3: ("q", "k", "v")}


def _packed(look: Look, node: Node) -> Plan | None:
    """Rule: a linear cut along its outputs into q, k and v, or into a gate and an up of one size, is one for each."""
    product = look.is_op(node.operands[0], "linear")
    if product is None or len(node.results) not in _PARTS:
        return None
    y = product.result
    if int(str(node.attrs["axis"])) % y.type.rank != y.type.rank - 1 or len(look.readers(y)) != 1:
        return None
    sizes = [r.type.shape[-1] for r in node.results]
    if len(sizes) == 2 and (sizes[0] != sizes[1] or not _gates(look, node)):
        return None
    x, w, bias = product.operands
    assert x is not None
    assert w is not None
    weight = look.weight(w)
    bias_weight = None if bias is None else look.weight(bias)
    if weight is None or (bias is not None and bias_weight is None):
        return None
    if isinstance(weight.type.element, Storage):
        raise Declined(f"{weight} is {weight.type}: its codes are left together", node)

    def build(site: Site) -> tuple[Value, ...]:
        begin, out = 0, list[Value]()
        for name, size in zip(_PARTS[len(sizes)], sizes, strict=True):
            assert isinstance(size, int)
            part = _rows(site, weight, name, begin, begin + size)
            added = None if bias_weight is None else _rows(site, bias_weight, name, begin, begin + size)
            out.append(site.b.op("linear", site.current(x), part, added, hint=name, **product.attrs))
            begin += size
        return tuple(out)

    return Plan(node.results, build)


def _gates(look: Look, node: Node) -> bool:
    """Whether one part opens the other: it is activated and meets it in a product."""
    return any(reader.op in ("act", "gated_act") for result in node.results for reader in look.readers(result))


def _rows(site: Site, weight: Value, name: str, start: int, stop: int) -> Value:
    """Return rows of a weight as a derived one."""
    shape: tuple[Dim, ...] = (stop - start, *weight.type.shape[1:])
    recipe = Recipe("slice", {"axis": 0, "start": start, "stop": stop}, (site.recipe(weight),))
    return site.derived(f"{weight.name}.{name}", TensorType(weight.type.element, shape), recipe)


PACKED: tuple[Fusion, ...] = (Fusion("packed", frozenset({"split"}), _packed),)
