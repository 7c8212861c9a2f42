"""Lowerings of onnxruntime's own ops (com.microsoft): a fused graph comes in as our composites."""

from __future__ import annotations

import math

import numpy as np

from omnic.ir.dims import Dim
from omnic.models.onnx.converter import Converter, Refusal, S
from omnic.models.onnx.kinds import Flow, Past, Stored, Tensor
from omnic.models.onnx.lower.elementwise import CONTRIB_ELEMENTWISE, Lowering
from omnic.models.onnx.node import OnnxNode

__all__ = ["CONTRIB", "rope_base"]


def _skip_norm(c: Converter, node: OnnxNode) -> tuple[Tensor, ...]:
    """(norm(x + skip), -, -, x + skip); SkipLayerNormalization has a bias of its norm before that of the sum."""
    layer = node.op == "SkipLayerNormalization"
    total = c.binary("add", c.emit(node.need(0)), c.emit(node.need(1)))
    added = node.get(4 if layer else 3)
    if added is not None:
        total = c.binary("add", total, c.emit(added))
    weight, eps = c.emit(node.need(2)).value, node.number("epsilon", 1e-5)
    if layer:
        bias = node.get(3)
        normed = c.f.op("layer_norm", total.value, weight, c.emit(bias).value if bias is not None else None, eps=eps)
    else:
        normed = c.f.op("rms_norm", total.value, weight, eps=eps)
    return (Flow(normed), Flow(normed), Flow(normed), total)[: node.outputs]


# -- rope -------------------------------------------------------------------------------------------------
def rope_base(cosines: np.ndarray, sines: np.ndarray) -> float | None:
    """Return the base whose cosines and sines [positions, dims / 2] a table holds, or None if it is scaled."""
    half = cosines.shape[1]
    if len(cosines) < 2 or half < 2:
        return None
    angles = np.arctan2(sines[1].astype(np.float64), cosines[1].astype(np.float64))
    if abs(angles[0] - 1.0) > 1e-5 or (angles <= 0).any():
        return None
    slopes = -np.log(angles[1:]) * half / np.arange(1, half)
    rough = math.exp(float(np.median(slopes)))
    near = round(rough)
    base = float(near) if abs(near - rough) < 1e-3 * rough and _fits(cosines, sines, float(near)) else rough
    return base if _fits(cosines, sines, base) else None


def _fits(cosines: np.ndarray, sines: np.ndarray, base: float) -> bool:
    half = cosines.shape[1]
    positions = np.unique(np.linspace(0, len(cosines) - 1, 64).astype(int))
    angles = positions[:, None] * base ** (-np.arange(half) / half)[None]
    tolerance = 1e-4 + 2e-7 * float(positions[-1])  # tables are made in f32
    return bool(
        np.abs(np.cos(angles) - cosines[positions]).max() < tolerance
        and np.abs(np.sin(angles) - sines[positions]).max() < tolerance
    )


def _rotate(c: Converter, x: Flow, cosines: Tensor, sines: Tensor, interleaved: bool, positions: Flow) -> Flow:
    """Rotate x [B, H, T, D] by tables [positions, dims / 2]."""
    tables = [c.numbers(t) if not isinstance(t, Stored) else c.read(t) for t in (cosines, sines)]
    if tables[0] is None or tables[1] is None:
        raise Refusal("its tables of cosines and sines are not constant")
    dims = 2 * tables[0].shape[1]
    base = rope_base(tables[0], tables[1])
    if base is not None:
        return Flow(c.f.op("rope", x.value, positions.value, base=base, dims=dims, interleaved=interleaved))
    c.table_needs(len(tables[0]), S)
    width = x.shape[-1]
    batch, tokens = positions.shape
    looked = [c.reshape(c.pick(c.emit(t), 0, positions), (batch, 1, tokens, dims // 2)) for t in (cosines, sines)]
    turned, rest = x, None
    if width != dims:
        parts = c.f.emit("split", x.value, axis=3, sizes=(dims, width - dims))
        turned, rest = Flow(parts[0]), parts[1]
    batch_, heads, count, _ = turned.shape
    if interleaved:
        pairs = c.reshape(turned, (batch_, heads, count, dims // 2, 2))
        halves = [c.reshape(Flow(v), (batch_, heads, count, dims // 2))
                  for v in c.f.emit("split", pairs.value, axis=4, sizes=(1, 1))]
    else:
        halves = [Flow(v) for v in c.f.emit("split", turned.value, axis=3, sizes=(dims // 2, dims // 2))]
    (a, b), (cos, sin) = halves, looked
    new = [c.binary("sub", c.binary("mul", a, cos), c.binary("mul", b, sin)),
           c.binary("add", c.binary("mul", a, sin), c.binary("mul", b, cos))]
    if interleaved:
        wide = [c.reshape(n, (batch_, heads, count, dims // 2, 1)).value for n in new]
        out = c.reshape(Flow(c.f.op("concat", *wide, axis=4)), turned.shape)
    else:
        out = Flow(c.f.op("concat", *(n.value for n in new), axis=3))
    return out if rest is None else Flow(c.f.op("concat", out.value, rest, axis=3))


def _rotary(c: Converter, node: OnnxNode) -> Tensor:
    x, positions = c.emit(node.need(0)), c.emit(node.need(1))
    cosines, sines = node.need(2), node.need(3)
    if len(positions.shape) != 2:
        raise Refusal("positions that are one offset for all tokens")
    shape, flat = x.shape, len(x.shape) == 3
    if flat:
        width = shape[2]
        size = 2 * int(str(cosines.shape[1])) if not node.integer("rotary_embedding_dim", 0) else 0
        heads = node.integer("num_heads", 0) or (width // size if isinstance(width, int) and size else 0)
        if not heads or not isinstance(width, int):
            raise Refusal("it does not say how many heads there are")
        x = c.transpose(c.reshape(x, (*shape[:2], heads, width // heads)), (0, 2, 1, 3))
    out = _rotate(c, x, cosines, sines, bool(node.integer("interleaved", 0)), positions)
    return c.reshape(c.transpose(out, (0, 2, 1, 3)), shape) if flat else out


# -- attention --------------------------------------------------------------------------------------------
def _heads(c: Converter, x: Flow, heads: int) -> Flow:
    batch, tokens, width = x.shape
    assert isinstance(width, int)
    return c.transpose(c.reshape(x, (batch, tokens, heads, width // heads)), (0, 2, 1, 3))


def _scale(given: float, size: int) -> float:
    """Return the scale of an attention node: 0 means 1/sqrt(size), and so does its f32 neighbour."""
    usual = 1.0 / math.sqrt(size)
    return usual if given == 0.0 or abs(given - usual) < 1e-6 * usual else given


def _grouped(c: Converter, node: OnnxNode) -> tuple[Tensor, ...]:
    """GroupQueryAttention: positions and lengths follow from the call; the seqlens_k inputs only repeat them."""
    heads, groups = node.integer("num_heads"), node.integer("kv_num_heads")
    past_k, past_v = node.get(3), node.get(4)
    if not isinstance(past_k, Past) or not isinstance(past_v, Past):
        raise Refusal("its past keys and values are not inputs of the graph")
    for index, what in ((10, "an additive bias"), (12, "quantised keys")):
        if node.get(index) is not None:
            raise Refusal(what)
    if node.integer("smooth_softmax", 0):
        raise Refusal("smooth_softmax = 1")
    packed = c.emit(node.need(0))
    if node.get(1) is None:
        width = packed.shape[-1]
        assert isinstance(width, int)
        size = width // (heads + 2 * groups)
        q, k, v = (Flow(p) for p in c.f.emit(
            "split", packed.value, axis=2, sizes=(heads * size, groups * size, groups * size)))
    else:
        q, k, v = packed, c.emit(node.need(1)), c.emit(node.need(2))
        width = q.shape[-1]
        assert isinstance(width, int)
        size = width // heads
    q, k, v = _heads(c, q, heads), _heads(c, k, groups), _heads(c, v, groups)
    if node.integer("do_rotary", 0):
        given = node.get(9)
        positions = c.emit(given) if given is not None else Flow(c.q_index())
        interleaved = bool(node.integer("rotary_interleaved", 0))
        q, k = (_rotate(c, x, node.need(7), node.need(8), interleaved, positions) for x in (q, k))
    keys, index = c.cached(past_k, k)
    values, _ = c.cached(past_v, v)
    sink = node.get(11)
    window = node.integer("local_window_size", -1)
    y = Flow(c.f.op(
        "attention", q.value, keys.value, values.value, c.q_index(), index,
        c.emit(sink).value if sink is not None else None,
        scale=_scale(node.number("scale", 0.0), size),
        window=max(window, 0), softcap=node.number("softcap", 0.0),
    ))  # fmt: skip
    batch, tokens = y.shape[0], y.shape[2]
    merged: tuple[Dim, ...] = (batch, tokens, heads * size)
    out = c.reshape(c.transpose(y, (0, 2, 1, 3)), merged)
    return (out, keys, values)[: node.outputs]


CONTRIB: dict[str, Lowering] = {
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "SkipLayerNormalization": _skip_norm,
    "RotaryEmbedding": _rotary,
    "GroupQueryAttention": _grouped,
    **CONTRIB_ELEMENTWISE,
}
