"""RMS and layer norms from means, roots and products.

Whatever the spelling, a norm holds ``x * rsqrt(mean(x * x) + eps)`` over the last dim (powers, quotients and sums are
brought to that form first).  The weight, the centring and the bias are then taken in one at a time.
"""

from __future__ import annotations

from omnic.ir.graph import Node, Value
from omnic.passes.fusion.look import Declined, Fusion, Look, Plan, Site
from omnic.passes.fusion.probe import number

__all__ = ["NORMS"]


def _pairs(node: Node) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """Return the two operands of a node in both orders."""
    a, b = node.operands
    assert a is not None
    assert b is not None
    return (a, b), (b, a)


def _last_mean(look: Look, value: Value) -> Value | None:
    """Return x when ``value`` is the mean of x over its last dim, kept as a dim of 1."""
    shaped = look.is_op(value, "reshape")
    mean = look.is_op(value, "mean") or (look.is_op(shaped.operands[0], "mean") if shaped else None)
    if mean is None or mean.operands[0] is None:
        return None
    x = mean.operands[0]
    axes = mean.attrs["axes"]
    assert isinstance(axes, tuple)
    rank = x.type.rank
    if tuple(int(a) % rank for a in axes if isinstance(a, int)) != (rank - 1,):
        return None
    return x if value.type.shape == (*x.type.shape[:-1], 1) else None


def _rms(look: Look, node: Node) -> Plan | None:
    """Rules 1 to 3: ``x * rsqrt(mean(x * x, last) + eps)`` is ``rms_norm(x)``."""
    for x, inverse in _pairs(node):
        root = look.is_op(inverse, "rsqrt")
        if root is None:
            continue
        inside = look.is_op(root.operands[0], "add", "mean", "maximum")
        if inside is None:
            return None
        if inside.op != "add":
            raise Declined(f"the mean square must have an eps added, found {inside.op}", inside)
        for square, eps in _pairs(inside):
            squares = _last_mean(look, square)
            if squares is None:
                continue
            product = look.is_op(squares, "mul")
            if product is None:
                raise Declined("the mean must be of a square", inside)
            left, right = product.operands
            if left is None or right is None or not look.same(left, right):
                raise Declined("the mean must be of a square, found a product of two values", product)
            if not look.same(left, x):
                raise Declined(f"what is scaled ({x}) is not what is squared ({left})", node)
            if x.type != node.result.type:
                raise Declined(f"{x} is {x.type}, its norm is {node.result.type}", node)
            added = number(look, eps, "eps", inside)
            if added < 0:
                raise Declined(f"eps is {added:g}", inside)
            return Plan((node.result,), lambda site, x=x, added=added: (
                site.b.op("rms_norm", site.current(x), eps=added, hint="normed"),))
    return None


def _weight(look: Look, node: Node) -> Plan | None:
    """Rule 4: a norm without weight, times a vector of the last dim, is the norm with that weight."""
    for inner, factor in _pairs(node):
        norm = look.is_op(inner, "rms_norm", "layer_norm")
        if norm is None or norm.operands[1] is not None or (norm.op == "layer_norm" and norm.operands[2] is not None):
            continue
        vector = look.vector(factor, inner.type.shape[-1])
        if vector is None or node.result.type != inner.type:
            continue
        return Plan((node.result,), lambda site, norm=norm, vector=vector: (
            site.b.op(norm.op, site.current(_x(norm)), _as_vector(site, vector), hint="normed", **norm.attrs),))
    return None


def _x(norm: Node) -> Value:
    x = norm.operands[0]
    assert x is not None
    return x


def _as_vector(site: Site, vector: Value) -> Value:
    """Return ``vector`` with its unit dims gone."""
    now = site.current(vector)
    return now if now.type.rank == 1 else site.b.reshape(now, now.type.shape[-1])


def _centred(look: Look, node: Node) -> Plan | None:
    """Rule 5: the rms_norm of ``x - mean(x, last)`` is ``layer_norm(x)``."""
    x = _x(node)
    minus = look.is_op(x, "sub")
    if minus is None:
        return None
    whole, mean = minus.operands
    if whole is None or mean is None or (of := _last_mean(look, mean)) is None or not look.same(of, whole):
        return None
    if whole.type != x.type:
        return None
    weight = node.operands[1]
    return Plan((node.result,), lambda site: (
        site.b.op("layer_norm", site.current(whole), weight and site.current(weight), hint="normed", **node.attrs),))


def _bias(look: Look, node: Node) -> Plan | None:
    """Rule 6: a layer_norm without bias, plus a vector of the last dim, is the layer_norm with that bias."""
    for inner, added in _pairs(node):
        norm = look.is_op(inner, "layer_norm")
        if norm is None or norm.operands[2] is not None:
            continue
        vector = look.vector(added, inner.type.shape[-1])
        if vector is None or node.result.type != inner.type:
            continue
        weight = norm.operands[1]
        return Plan((node.result,), lambda site, norm=norm, vector=vector, weight=weight: (
            site.b.op("layer_norm", site.current(_x(norm)), weight and site.current(weight),
                      _as_vector(site, vector), hint="normed", **norm.attrs),))
    return None


#: in this order: a weight must be in the norm before the bias that follows it
NORMS: tuple[Fusion, ...] = (
    Fusion("rms-norm", frozenset({"mul"}), _rms),
    Fusion("layer-norm", frozenset({"rms_norm"}), _centred),
    Fusion("norm-weight", frozenset({"mul"}), _weight),
    Fusion("norm-bias", frozenset({"add"}), _bias),
)
