"""Lowering of rotations, attention and experts to torch operators that ExecuTorch has kernels for.

Attention over linear or ring states in f32 or in codes whose keys and values have one width is ``llama::custom_sdpa``,
which reads the live slots only; with sinks, a softcap, latents or newest tokens in f16 it is an explicit softmax.
Codes are decoded first: ``llama::custom_quantized_sdpa`` would round the queries too, and the IR says no such thing.
``scaled_dot_product_attention`` is never written: its decomposition guards against rows that see nothing, in a dozen
operators.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.ir.graph import Node
from omnic.ir.rope import rope_frequencies
from omnic.targets.executorch.module import StateRef, Walk

__all__ = ["STATEFUL", "activated", "gated"]


# -- rotations
def rope(walk: Walk, node: Node, x: Tensor, positions: Tensor, *, interleaved: bool, **settings: Any) -> Tensor:
    """Rotate the leading dims of each head; angles in f64, made once for all layers of one base."""

    def make() -> tuple[Tensor, Tensor]:
        frequencies, magnitude = rope_frequencies(**settings)
        angles = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
        return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()

    key = ("rope", id(positions), *((k, v) for k, v in settings.items()))
    cos, sin = walk.once(key, make)
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    if interleaved:
        pairs = x[..., : 2 * half].reshape(*x.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        return torch.cat([turned, x[..., 2 * half :]], dim=-1) if x.shape[-1] > 2 * half else turned
    a, b = x[..., :half], x[..., half : 2 * half]
    parts = [a * cos - b * sin, a * sin + b * cos]
    return torch.cat([*parts, x[..., 2 * half :]] if x.shape[-1] > 2 * half else parts, dim=-1)


# -- attention
def _bias(walk: Walk, q_index: Tensor, k_index: Tensor, window: int) -> Tensor:
    """Return 0 where query t sees key s and -inf elsewhere, f32 [T, S]."""

    def make() -> Tensor:
        query, key = q_index[0, :, None], k_index[0, None, :]
        seen = (key >= 0) & (key <= query)
        if window:
            seen = seen & (key > query - window)
        return torch.where(seen, 0.0, float("-inf"))

    return walk.once(("bias", id(q_index), id(k_index), window), make)


def attention(
    walk: Walk,
    node: Node,
    q: Tensor,
    k: Any,
    v: Any,
    q_index: Tensor,
    k_index: Tensor,
    sinks: Tensor | None,
    parents: Any,
    start: Any,
    *,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Masked softmax attention over states or plain keys: [1, H, T, Dv]."""
    alike = _held(k) and _held(v) and k.shape == v.shape
    if alike and sinks is None and not softcap and not walk.plain:
        begin = walk.memo.get(("start", id(_start_of(walk, node))))
        query = q.transpose(1, 2)
        if not window and begin is not None:
            # What is decoded is decoded up to the last token of the call.
            keys, values = (x.tensor if x.element is None else x.slots(begin + q.shape[2]) for x in (k, v))
            out = torch.ops.llama.custom_sdpa(query, keys, values, begin, None, 0.0, True, scale)
        else:
            bias = _bias(walk, q_index, k_index, window)
            out = torch.ops.llama.custom_sdpa(query, k.slots(), v.slots(), 0, bias, 0.0, False, scale)
        return out.transpose(1, 2)
    bias = _bias(walk, q_index, k_index, window)
    return _explicit(walk, node, q, _numbers(k), _numbers(v), bias, sinks, scale, softcap)


def _held(x: Any) -> bool:
    """Whether x is a state that is f32 or becomes it when it is decoded."""
    return isinstance(x, StateRef) and (x.element is not None or x.tensor.dtype == torch.float32)


def _numbers(x: Any) -> Tensor:
    return x.numbers() if isinstance(x, StateRef) else x


def _explicit(
    walk: Walk,
    node: Node,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Attention as a softmax that is written out; ``bias`` [T, S] is -inf where a query does not see a key."""
    _, heads, tokens, width = q.shape
    groups, slots = keys.shape[1], keys.shape[2]
    per = heads // groups
    if per > 1 and not isinstance(node.operands[0].type.shape[2], int):  # type: ignore[union-attr]
        # Queries of one group side by side are a dim per * T, about which torch.export has to know more than it can of
        # a symbolic T; so each query head gets the keys of its group, selected, since slots may be a symbol too.
        group = walk.once(("group", heads, per), lambda: torch.tensor([head // per for head in range(heads)]))
        keys, values = keys[0].index_select(0, group), values[0].index_select(0, group)
        return (_shares((q[0] @ keys.transpose(-1, -2)) * scale, bias, softcap, sinks) @ values)[None]
    scores = (q.reshape(groups, per * tokens, width) @ keys[0].transpose(-1, -2)) * scale
    shares = _shares(scores.reshape(heads, tokens, slots), bias, softcap, sinks)
    return (shares.reshape(groups, per * tokens, slots) @ values[0]).reshape(1, heads, tokens, values.shape[-1])


def _start_of(walk: Walk, node: Node) -> Any:
    """Return the ``start`` of the call where the queries are its tokens in order, before keys of a linear state.

    Only then is which key a query sees a matter of their places alone; None otherwise.
    """
    made = walk.once("made by", lambda: {v: n for n in walk.function.nodes for v in n.results})
    read, index = made.get(node.operands[1]), made.get(node.operands[3])
    if read is None or index is None or read.op != "cache_read" or index.op != "add":
        return None
    if node.operands[4] != read.results[1]:
        return None
    start = read.operands[1]
    sides = [made.get(v) for v in index.operands]
    counted = any(n is not None and n.op == "iota" for n in sides)
    begun = any(n is not None and n.op == "reshape" and n.operands[0] == start for n in sides)
    return walk.values.get(start) if counted and begun else None


def _shares(scores: Tensor, bias: Tensor, softcap: float, sinks: Tensor | None) -> Tensor:
    """Return the shares [H, T, S] of scores [H, T, S]; every query sees at least itself."""
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + bias
    if sinks is None:
        return torch.softmax(scores, -1)
    sink = sinks.reshape(-1, 1, 1)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    power = torch.exp(scores - top)
    return power / (power.sum(-1, keepdim=True) + torch.exp(sink - top))


def _newest_bias(
    walk: Walk, q_index: Tensor, k_index: Tensor, recent_index: Tensor, window: int, block: int, keep: int
) -> Tensor:
    """Return the bias [T, S + N] of attention over slots and recent tokens: each token's other copy is hidden."""

    def make() -> Tensor:
        query = q_index[0, :, None]

        def newest(index: Tensor) -> Tensor:
            end = torch.floor_divide(index.clamp(min=0), block) * block + (block + keep - 1)
            return end[0, None, :] > query

        old = torch.where(newest(k_index), float("-inf"), _bias(walk, q_index, k_index, window))
        new = torch.where(newest(recent_index), _bias(walk, q_index, recent_index, window), float("-inf"))
        return torch.cat([old, new], -1)

    return walk.once(("newest", id(q_index), id(k_index), id(recent_index), window, block, keep), make)


def block_attention(
    walk: Walk,
    node: Node,
    q: Tensor,
    k: Any,
    v: Any,
    recent: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    recent_index: Tensor,
    sinks: Tensor | None,
    recent_v: Tensor,
    *,
    block: int,
    keep: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Attention over the slots of states and the recent tokens behind them: [1, H, T, Dv]."""
    keys, values = torch.cat([_numbers(k), recent], 2), torch.cat([_numbers(v), recent_v], 2)
    bias = _newest_bias(walk, q_index, k_index, recent_index, window, block, keep)
    return _explicit(walk, node, q, keys, values, bias, sinks, scale, softcap)


def mla(
    walk: Walk,
    node: Node,
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Any,
    rope_k: Any,
    w_k: Tensor,
    w_v: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    parents: Any,
    start: Any,
    recent: Any,
    recent_index: Any,
    *,
    scale: float,
    window: int,
    softcap: float,
    **attrs: Any,
) -> Tensor:
    """Latent attention in the absorbed order, which reads the latents alone: [1, H, T, V]."""
    latents, turned = _numbers(latent)[0], _numbers(rope_k)[0]
    _, heads, tokens, _ = q_nope.shape
    absorbed = (q_nope[0] @ w_k).reshape(heads * tokens, -1)
    scores = absorbed @ latents.transpose(0, 1) + q_rope[0].reshape(heads * tokens, -1) @ turned.transpose(0, 1)
    scores = scores.reshape(heads, tokens, latents.shape[0]) * scale
    shares = _shares(scores, _bias(walk, q_index, k_index, window), softcap, None)
    mixed = shares.reshape(heads * tokens, -1) @ latents
    return (mixed.reshape(heads, tokens, -1) @ w_v.transpose(1, 2))[None]


# -- experts
def activated(x: Tensor, kind: str) -> Tensor:
    """The activation ``kind`` of x."""
    if kind == "gelu_tanh":
        # In its own operators: XNNPACK takes gelu and computes the exact one, whatever ``approximate`` says.
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    if kind == "relu2":
        positive = F.relu(x)
        return positive * positive
    return {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[kind](x)


def gated(gate: Tensor, up: Tensor, kind: str, alpha: float, beta: float, limit: float | None) -> Tensor:
    """act(min(gate, limit)) * (clamp(up, -limit, limit) + beta); alpha is silu's, no limit is none."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    opening = activated(gate, kind) if alpha == 1.0 else gate * torch.sigmoid(alpha * gate)
    return opening * (up if beta == 0.0 else up + beta)


def moe(
    walk: Walk,
    node: Node,
    x: Tensor,
    indices: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    *,
    kind: str,
    alpha: float,
    beta: float,
    limit: float | None,
    **attrs: Any,
) -> Tensor:
    """A token's own experts by ``index_select`` where a call has one token; else every expert on every token.

    To gather for many tokens would copy a set of weights for each of them.
    """
    source = node.operands[0]
    chosen: Tensor | None = None
    if source is not None and source.type.shape[1] == 1:
        chosen = indices.reshape(-1)
        rows, share = x.reshape(1, 1, -1).expand(chosen.shape[0], -1, -1), gates.reshape(-1, 1, 1)
    else:
        experts = up.shape[0]
        rows = x.expand(experts, -1, -1)
        names = torch.arange(experts)[:, None, None]
        share = torch.where(indices == names, gates, 0.0).sum(-1, keepdim=True)

    def pick(weight: Tensor) -> Tensor:
        return weight if chosen is None else weight.index_select(0, chosen)

    def product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = h @ pick(weight).transpose(1, 2)
        return y if bias is None else y + pick(bias)[:, None]

    inner = product(rows, up, up_bias)
    if gate is None:
        inner = activated(inner, kind)
    else:
        inner = gated(product(rows, gate, gate_bias), inner, kind, alpha, beta, limit)
    return (product(inner, down, down_bias) * share).sum(0)[None]


STATEFUL = {
    "rope": rope,
    "attention": attention,
    "block_attention": block_attention,
    "mla": mla,
    "moe": moe,
}
