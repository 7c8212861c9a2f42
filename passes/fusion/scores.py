"""From the weights of an attention back to its product: scale, softcap, masks and sinks, in whatever order they stand.

One of many spellings: ``softmax(where(seen, c tanh(scale q k^T / c), -inf))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from omnic.ir.graph import Node, Value
from omnic.ir.op import Array, find_op
from omnic.passes.fusion.look import Declined, Look
from omnic.passes.fusion.probe import number, scalar_of, shape_at

__all__ = ["Masking", "Scores", "Weights", "find_weights", "read_scores"]

# What is added to (or put in place of) a hidden score is at most this: e to the power of it is 0 in f32 and f64.
HIDDEN = -1e4
_LAYOUT = frozenset({"reshape", "transpose", "broadcast"})
_STEPS = 64


@dataclass(frozen=True)
class Masking:
    """One mask on the way: bool or added numbers, the scores' value it meets, and the layout nodes above it."""

    value: Value
    kind: str
    above: tuple[Node, ...]
    shape: Value


@dataclass
class Scores:
    """What stands between a softmax and its product."""

    product: Node
    scale: float = 1.0
    softcap: float = 0.0
    masks: list[Masking] = field(default_factory=list[Masking])
    layout: list[Node] = field(default_factory=list[Node])


@dataclass(frozen=True)
class Weights:
    """The weights of an attention: what their softmax is of, a mask applied beside it, and the sinks.

    Attributes:
        logits: the scores, masks included or not.
        probabilities: the value that goes on to the product with v, [.., T, S].
        seen: a mask applied to the softmax itself, bool.
        sinks: the value of the extra logits, [.., 1] for each row.
        total: for a softmax written out whose sum divides later, that sum.
    """

    logits: Value
    probabilities: Value
    seen: Value | None = None
    sinks: Value | None = None
    total: Value | None = None


def find_weights(look: Look, value: Value) -> Weights | None:
    """Return the softmax that ``value`` is, written as an op or out of exp and sum; None when it is none."""
    node = look.is_op(value, "softmax", "slice", "split", "where", "div", "cast")
    if node is None:
        return None
    if node.op == "cast":
        inner = node.operands[0]
        return find_weights(look, inner) if inner is not None and inner.type == value.type else None
    if node.op == "softmax":
        logits = node.operands[0]
        assert logits is not None
        axis = int(str(node.attrs.get("axis", -1))) % logits.type.rank
        return Weights(logits, value) if axis == logits.type.rank - 1 else None
    if node.op in ("slice", "split"):
        return _sink_column(look, value, node)
    return _written_out(look, value, node)


def _sink_column(look: Look, value: Value, node: Node) -> Weights | None:
    """Return softmax(concat(logits, sinks)) without its last column."""
    soft = look.is_op(node.operands[0], "softmax")
    if soft is None or soft.operands[0] is None:
        return None
    joined = look.is_op(_shifted(look, soft.operands[0]), "concat")
    if joined is None or len(joined.operands) != 2:
        return None
    logits, sinks = joined.operands
    assert logits is not None
    assert sinks is not None
    last = logits.type.rank - 1
    if int(str(joined.attrs["axis"])) % (last + 1) != last or value.type.shape != logits.type.shape:
        return None
    if int(str(node.attrs["axis"])) % (last + 1) != last or sinks.type.shape[-1] != 1:
        return None
    if (node.op == "slice" and node.attrs["start"] != (0,)) or (node.op == "split" and value is not node.results[0]):
        return None
    return Weights(logits, value, sinks=sinks)


def _shifted(look: Look, value: Value) -> Value:
    """Return x when ``value`` is x less its greatest number along the last dim, which no softmax sees."""
    node = look.is_op(value, "sub")
    if node is None or node.operands[0] is None:
        return value
    peak = look.is_op(node.operands[1], "max")
    whole = node.operands[0]
    rank = whole.type.rank
    if peak is None or peak.operands[0] is None or not look.same(peak.operands[0], whole):
        return value
    axes = peak.attrs["axes"]
    return whole if isinstance(axes, tuple) and [int(str(a)) % rank for a in axes] == [rank - 1] else value


def _written_out(look: Look, value: Value, node: Node) -> Weights | None:
    """Return exp(x - peak) over its sum, or the unnormalised where(seen, exp(where(seen, x - peak, 0)), 0)."""
    if node.op == "div":
        power = look.is_op(node.operands[0], "exp")
        total = look.is_op(node.operands[1], "sum")
        if power is None or total is None or total.operands[0] is not power.result or power.operands[0] is None:
            return None
        return Weights(_shifted(look, power.operands[0]), value)
    seen, power_value, zero = node.operands
    power = look.is_op(power_value, "exp")
    if power is None or zero is None or scalar_of(look, zero) != 0.0 or seen is None:
        return None
    shifted = power.operands[0]
    guard = look.is_op(shifted, "where")
    if guard is not None and guard.operands[0] is not None and look.same(guard.operands[0], seen):
        shifted = guard.operands[1]
    minus = look.is_op(shifted, "sub")
    if minus is None or minus.operands[0] is None or minus.operands[1] is None:
        raise Declined("what is exponentiated is not scores less their peak", power)
    peak = minus.operands[1]
    if peak.type.shape[-1] != 1:
        raise Declined(f"the peak {peak} differs between keys", minus)
    sums = [n for n in look.readers(value) if n.op == "sum" and n.result.type.shape == peak.type.shape]
    if len(sums) != 1:
        raise Declined("the exponentials have no sum over the keys", node)
    total, sinks = sums[0].result, None
    extra = [n for n in look.readers(total) if n.op == "add"]
    if extra:
        other = next(v for v in extra[0].inputs() if v is not total)
        sink_power = look.is_op(other, "exp")
        sink_minus = look.is_op(sink_power.operands[0], "sub") if sink_power else None
        if sink_minus is None or sink_minus.operands[1] is None or not look.same(sink_minus.operands[1], peak):
            raise Declined("what is added to the sum is no sink", extra[0])
        total, sinks = extra[0].result, sink_minus.operands[0]
    return Weights(minus.operands[0], value, seen, sinks, total)


def read_scores(look: Look, weights: Weights, is_mask: Callable[[Look, Value], bool]) -> Scores:
    """Walk from the logits to the product of q and k.

    Args:
        look: the function.
        weights: the softmax.
        is_mask: a function: whether a float value is made of integers and constants alone.

    Raises:
        Declined: a step that attention does not have, named with its node.
    """
    value = weights.logits
    layout: list[Node] = []
    masks: list[Masking] = []
    outer, inner, softcap = 1.0, 1.0, 0.0
    if weights.seen is not None:
        masks.append(Masking(weights.seen, "keep", (), value))
    for _ in range(_STEPS):
        node = look.node(value)
        if node is None:
            raise Declined(f"the scores come from {value}, which is no product")
        if node.op == "matmul":
            # c * tanh(b * q.k) is a softcap of c over a scale of b * c.
            return Scores(node, inner * outer, outer if softcap else 0.0, masks, layout)
        if node.op in _LAYOUT or node.op == "cast":
            source = node.operands[0]
            assert source is not None
            if node.op == "cast" and source.type != node.result.type:
                raise Declined(f"the scores are rounded to {node.result.type.element}", node)
            if node.op in _LAYOUT:
                layout.append(node)
            value = source
        elif node.op == "tanh":
            if softcap:
                raise Declined("two softcaps", node)
            assert node.operands[0] is not None
            softcap, value = 1.0, node.operands[0]
        elif node.op in ("mul", "div"):
            value, by = _scaled(look, node)
            if softcap:
                inner *= by
            else:
                outer *= by
        elif node.op == "add":
            left, right = node.operands
            assert left is not None
            assert right is not None
            mask, value = (right, left) if is_mask(look, right) else (left, right)
            if not is_mask(look, mask):
                raise Declined(f"{mask} is added to the scores, which is no mask", node)
            masks.append(Masking(mask, "add", tuple(layout), node.result))
        elif node.op == "where":
            condition, yes, no = node.operands
            assert condition is not None
            assert yes is not None
            assert no is not None
            masks.append(Masking(condition, "keep" if _hides(look, no) else "drop", tuple(layout), node.result))
            if not _hides(look, no) and not _hides(look, yes):
                raise Declined("neither side of the where hides a score", node)
            value = yes if _hides(look, no) else no
        else:
            raise Declined(f"{node.op} stands between the softmax and the product", node)
        if softcap and masks and masks[-1].shape is node.result:
            raise Declined("the mask lies inside the softcap", node)
    raise Declined("no product of queries and keys was found behind the softmax")


def _scaled(look: Look, node: Node) -> tuple[Value, float]:
    """Return what a node scales, and by how much."""
    left, right = node.operands
    assert left is not None
    assert right is not None
    if node.op == "div":
        return left, 1.0 / number(look, right, "what the scores are divided by", node)
    if scalar_of(look, right) is not None:
        return left, number(look, right, "the scale", node)
    return right, number(look, left, "what the scores are multiplied by", node)


def _hides(look: Look, value: Value) -> bool:
    found = scalar_of(look, value)
    return found is not None and found <= HIDDEN


def arrange(steps: list[Node] | tuple[Node, ...], array: Array, dims: dict[str, int]) -> Array:
    """Return ``array`` after the layout nodes ``steps``, of which the last one works first."""
    for node in reversed(steps):
        if node.op == "transpose":
            found = find_op("transpose").reference(array, **node.attrs)
            assert isinstance(found, np.ndarray)
            array = found
            continue
        shape = shape_at(node.result.type.shape, dims)
        array = np.broadcast_to(array, shape) if node.op == "broadcast" else array.reshape(shape)
    return array
