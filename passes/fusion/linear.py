"""Products with weights, embeddings and heads.

A weight that an exporter stored the other way round becomes a derived weight with a ``transpose`` in its recipe: no
node moves numbers at run time.
"""

from __future__ import annotations

from omnic.ir.graph import Node, Recipe, Value
from omnic.ir.types import DType, Storage, TensorType
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site
from omnic.passes.fusion.probe import scalar_of

__all__ = ["BIAS", "HEADS", "LINEAR", "rows_of", "weight_rows"]


def weight_rows(look: Look, value: Value, swapped: bool) -> tuple[Value, bool] | None:
    """Return the two-dim weight behind an operand and whether it is stored [K, N] (``swapped``: read transposed)."""
    node = look.is_op(value, "transpose")
    if node is not None and value.type.rank == 2:
        inner = node.operands[0]
        assert inner is not None
        value, swapped = inner, not swapped
    weight = look.weight(value)
    if weight is None or weight.type.rank != 2:
        return None
    return weight, not swapped


def rows_of(site: Site, weight: Value, across: bool) -> Value:
    """Return a weight as [N, K]: itself, or a derived one when it is stored ``across``."""
    if not across:
        return weight
    recipe = site.recipe(weight)
    kind = TensorType(weight.type.element, weight.type.shape[::-1])
    if recipe.kind == "transpose" and recipe.args.get("perm") == (1, 0):
        return site.derived(f"{weight.name}.rows", kind, recipe.inputs[0])
    return site.derived(f"{weight.name}.rows", kind, Recipe("transpose", {"perm": (1, 0)}, (recipe,)))


def _linear(look: Look, node: Node) -> Plan | None:
    """Rule: a product of x with a two-dim weight is ``linear``."""
    x, w = node.operands
    assert x is not None
    assert w is not None
    found = weight_rows(look, w, bool(node.attrs.get("tb", False)))
    if found is None or node.attrs.get("ta", False) or look.weight(x) is not None:
        return None
    weight, across = found
    if isinstance(weight.type.element, Storage) and across:
        raise Declined(f"{weight} is {weight.type}: codes cannot be transposed", node)
    if x.type.element != node.result.type.element:
        return None
    return Plan((node.result,), lambda site: (
        site.b.op("linear", site.current(x), rows_of(site, weight, across), hint="y"),))


def _bias(look: Look, node: Node) -> Plan | None:
    """Rule: a linear plus a weight of one number per output has that bias."""
    for inner, added in (node.operands, node.operands[::-1]):
        shaped = look.is_op(inner, "reshape")
        product = look.is_op(inner, "linear") or (look.is_op(shaped.operands[0], "linear") if shaped else None)
        if product is None or product.operands[2] is not None or added is None or inner is None:
            continue
        bias = look.vector(added, product.result.type.shape[-1])
        if bias is None or bias.type.rank != 1 or node.result.type != inner.type:
            continue
        if shaped and inner.type.shape[-1] != product.result.type.shape[-1]:
            continue
        if look.weight(bias) is None and look.is_op(bias, "constant") is None:
            continue
        x, w = product.operands[:2]
        assert x is not None
        assert w is not None

        def build(site: Site, x: Value = x, w: Value = w, bias: Value = bias) -> tuple[Value, ...]:
            y = site.b.op("linear", site.current(x), site.current(w), site.current(bias), hint="y")
            return (y if y.type == node.result.type else site.b.reshape(y, *node.result.type.shape),)

        return Plan((node.result,), build)
    return None


def _flat(look: Look, node: Node) -> Plan | None:
    """Rule: a linear between two reshapes that only flatten the rows works on the rows as they are."""
    product = look.is_op(node.operands[0], "linear")
    if product is None:
        return None
    shaped = look.is_op(product.operands[0], "reshape")
    if shaped is None or shaped.operands[0] is None:
        return None
    x, y = shaped.operands[0], node.result
    if x.type.shape[-1] != shaped.result.type.shape[-1]:
        return None
    if (*x.type.shape[:-1], product.result.type.shape[-1]) != y.type.shape:
        return None
    rest = product.operands[1:]
    return Plan((y,), lambda site: (
        site.b.op("linear", site.current(x), *(v and site.current(v) for v in rest), hint="y", **product.attrs),))


def _embedding(look: Look, node: Node) -> Plan | None:
    """Rule: rows of a two-dim weight at token numbers, as f32, are ``embedding``."""
    table, tokens = node.operands
    if table is None or tokens is None:
        return None
    weight = look.weight(table)
    if weight is None or weight.type.rank != 2 or int(str(node.attrs.get("axis", 0))) % 2:
        return None
    if _is_choice(look, tokens):
        return None
    root = node
    if node.result.type.element != DType.F32:
        casts = [n for n in look.readers(node.result) if n.op == "cast" and n.result.type.element == DType.F32]
        if not casts or len(casts) != len(look.readers(node.result)) or node.result in look.uses.returned:
            raise Declined(f"{weight} is {weight.type.element}, and what it gives is not read as f32", node)
        root = casts[0]
        same = tuple(n.result for n in casts)
    else:
        same = (root.result,)
    return Plan(same, lambda site: (
        site.b.op("embedding", weight, site.current(tokens), hint="x"),) * len(same))


def _is_choice(look: Look, value: Value) -> bool:
    """Whether an index was chosen in the program (an expert's number), and is no token or position."""
    pending, seen = [value], set[Value]()
    while pending:
        top = pending.pop()
        node = look.node(top)
        if top in seen or node is None:
            continue
        if node.op in ("topk", "argmax", "sort"):
            return True
        seen.add(top)
        pending.extend(v for v in node.inputs() if not v.type.is_float)
    return False


_TO_RESULT = frozenset({"reshape", "concat", "cast", "slice", "transpose"})


def _reaches_result(look: Look, value: Value) -> bool:
    """Whether a value goes nowhere but, through its layout, to results of the function that are no states."""
    returned = look.uses.returned.get(value, [])
    if any(r.state is not None for r in returned):
        return False
    readers = look.readers(value)
    if not readers and not returned:
        return False
    return all(n.op in _TO_RESULT and all(_reaches_result(look, r) for r in n.results) for n in readers)


def _softcap(look: Look, node: Node) -> tuple[Node, float] | None:
    """Return the product and the cap when the node is ``c * tanh(product / c)``."""
    if node.op != "mul":
        return None
    for inner, cap in (node.operands, node.operands[::-1]):
        tanh = look.is_op(inner, "tanh")
        outer = None if cap is None else scalar_of(look, cap)
        if tanh is None or outer is None:
            continue
        scaled = look.is_op(tanh.operands[0], "div", "mul")
        if scaled is None:
            continue
        product = look.is_op(scaled.operands[0], "linear", "lm_head")
        factor = None if scaled.operands[1] is None else scalar_of(look, scaled.operands[1])
        if product is None or factor is None:
            continue
        by = factor if scaled.op == "div" else 1.0 / factor
        if abs(by - outer) > 1e-6 * outer:
            raise Declined(f"the logits are divided by {by:g} and multiplied by {outer:g}", node)
        return product, outer
    return None


def _head(look: Look, node: Node) -> Plan | None:
    """Rule: a linear whose result leaves the function is ``lm_head``; the rows wanted and the softcap go in."""
    capped = _softcap(look, node)
    product, cap = capped if capped else (node, 0.0)
    root = node.result
    if product.op == "lm_head":
        return _cap(look, node, product, cap)
    if product.op != "linear" or not _reaches_result(look, root) or product.attrs.get("act", "none") != "none":
        return None
    x, w, bias = product.operands
    assert x is not None
    assert w is not None
    if x.type.rank != 3 or root.type.element != DType.F32:
        return None
    rows: Value | None = None
    picked = look.is_op(x, "gather")
    if picked is not None and int(str(picked.attrs["axis"])) % 3 == 1 and (index := picked.operands[1]) is not None:
        shaped = look.is_op(index, "reshape")
        inner = shaped.operands[0] if shaped else None
        if inner is not None and inner.type.rank == 2 and index.type.shape == (*inner.type.shape, 1):
            rows = inner
    source = picked.operands[0] if picked is not None and rows is not None else x
    assert source is not None
    return Plan((root,), lambda site: (
        site.b.op("lm_head", site.current(source), site.current(w), rows and site.current(rows),
                  bias and site.current(bias), softcap=cap, hint="logits"),))


def _cap(look: Look, node: Node, product: Node, cap: float) -> Plan | None:
    """Rule: a softcap behind an lm_head is its own."""
    if not cap or product.attrs.get("softcap", 0.0):
        return None
    return Plan((node.result,), lambda site: (
        site.b.op("lm_head", *(v and site.current(v) for v in product.operands), softcap=cap, hint="logits"),))


#: products first: the bias of a router's choice must not become the bias of its logits
LINEAR: tuple[Fusion, ...] = (
    Fusion("linear", frozenset({"matmul"}), _linear),
    Fusion("linear-rows", frozenset({"reshape"}), _flat),
)
BIAS: tuple[Fusion, ...] = (
    Fusion("linear-bias", frozenset({"add"}), _bias),
    Fusion("linear-rows", frozenset({"reshape"}), _flat),
)
#: heads are the products that leave the function
HEADS: tuple[Fusion, ...] = (
    Fusion("embedding", frozenset({"index_select"}), _embedding),
    Fusion("lm-head-softcap", frozenset({"mul"}), _head),
    Fusion("lm-head", frozenset({"linear"}), _head),
)
