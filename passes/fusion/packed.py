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


def _per_head(look: Look, node: Node) -> Plan | None:
    """Rule: a linear whose outputs are q, k and v head by head, cut within each head, is one linear for each."""
    value = node.operands[0]
    swap = look.is_op(value, "transpose")
    heads = look.is_op(swap.operands[0] if swap else value, "reshape")
    product = look.is_op(heads.operands[0], "linear") if heads else None
    if heads is None or product is None or len(node.results) != 3 or heads.result.type.rank != 4:
        return None
    if swap is not None and swap.attrs["perm"] != (0, 2, 1, 3):
        return None
    if int(str(node.attrs["axis"])) % 4 != 3 or len(look.readers(product.result)) != 1:
        return None
    batch, tokens, count, width = heads.result.type.shape
    x, w, bias = product.operands
    weight = None if w is None else look.weight(w)
    bias_weight = None if bias is None else look.weight(bias)
    if x is None or weight is None or (bias is not None and bias_weight is None):
        return None
    if not isinstance(count, int) or not isinstance(width, int) or product.result.type.shape[-1] != count * width:
        return None
    if isinstance(weight.type.element, Storage):
        raise Declined(f"{weight} is {weight.type}: its codes are left together", node)

    def build(site: Site) -> tuple[Value, ...]:
        begin, out = 0, list[Value]()
        for name, result in zip(_PARTS[3], node.results, strict=True):
            size = result.type.shape[-1]
            assert isinstance(size, int)
            part = _head_rows(site, weight, name, count, width, begin, begin + size)
            added = None if bias_weight is None else _head_rows(site, bias_weight, name, count, width, begin,
                                                                begin + size)
            y = site.b.op("linear", site.current(x), part, added, hint=name, **product.attrs)
            y = site.b.reshape(y, batch, tokens, count, size)
            out.append(y if swap is None else site.b.op("transpose", y, perm=(0, 2, 1, 3), hint=name))
            begin += size
        return tuple(out)

    return Plan(node.results, build)


def _head_rows(site: Site, weight: Value, name: str, heads: int, width: int, start: int, stop: int) -> Value:
    """Return rows start..stop of every head's ``width`` rows of a weight, as a derived one."""
    rest = weight.type.shape[1:]
    joint = Recipe("reshape", {"shape": (heads, width, *rest)}, (site.recipe(weight),))
    part = Recipe("slice", {"axis": 1, "start": start, "stop": stop}, (joint,))
    shape: tuple[Dim, ...] = (heads * (stop - start), *rest)
    return site.derived(f"{weight.name}.{name}", TensorType(weight.type.element, shape),
                        Recipe("reshape", {"shape": shape}, (part,)))


def _gates(look: Look, node: Node) -> bool:
    """Whether one part opens the other: it is activated and meets it in a product."""
    return any(reader.op in ("act", "gated_act") for result in node.results for reader in look.readers(result))


def _rows(site: Site, weight: Value, name: str, start: int, stop: int) -> Value:
    """Return rows of a weight as a derived one."""
    shape: tuple[Dim, ...] = (stop - start, *weight.type.shape[1:])
    recipe = Recipe("slice", {"axis": 0, "start": start, "stop": stop}, (site.recipe(weight),))
    return site.derived(f"{weight.name}.{name}", TensorType(weight.type.element, shape), recipe)


PACKED: tuple[Fusion, ...] = (
    Fusion("packed", frozenset({"split"}), _packed),
    Fusion("packed-heads", frozenset({"split"}), _per_head),
)
