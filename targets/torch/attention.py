"""Batch-invariant attention and mixtures of experts (see :mod:`omnic.targets.torch.kernels` for the rules)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.targets.torch.kernels import (
    FEW,
    KEYS,
    Seen,
    act,
    aligned,
    gated_act,
    head_product,
    linear,
    pointwise,
    product,
    product_in_blocks,
    softmax,
    topk,
)
from omnic.targets.torch.states import Rows

__all__ = ["attention", "block_attention", "mla", "moe", "route"]

State = Tensor | Rows


def _key_blocks(state: State, row: int, count: int) -> Tensor:
    """Return the first ``count`` blocks of one row as f32 [count, G, KEYS, D], or [count, KEYS, D] without heads."""
    if isinstance(state, Tensor):
        return state[row, :count].float()
    slots = min(count * KEYS, state.shape[-2])
    numbers = state.live(row, slots)
    if slots < count * KEYS:
        numbers = torch.cat([numbers, numbers.new_zeros(count * KEYS - slots, *numbers.shape[1:])])
    blocks = numbers.unflatten(0, (count, KEYS))
    return blocks.transpose(1, 2) if blocks.dim() == 4 else blocks


def _spread(state: State, seen: Seen) -> Tensor:
    """Return the live part of a state as f32 [B, G, slots, D], or [B, slots, D] without heads."""
    live = max(seen.blocks)
    if isinstance(state, Tensor):
        if state.dim() == 4:
            return state[:, :live].flatten(1, 2).float()
        return state[:, :live].transpose(1, 2).flatten(2, 3).float()
    slots = min(live * KEYS, state.shape[-2])
    numbers = state.live(slice(None), slots).movedim(1, -2)
    return F.pad(numbers, (0, 0, 0, live * KEYS - slots))


def _heads(state: State) -> int:
    """Return the KV heads of a state that has some."""
    return state.shape[2] if isinstance(state, Tensor) else state.shape[1]


def attention(
    q: Tensor, k: State, v: State, seen: Seen, scale: float, softcap: float = 0.0, sinks: Tensor | None = None
) -> Tensor:
    """Masked softmax attention of q [B, H, T, Dk] over states: [B, H, T, Dv]."""
    if q.shape[2] > FEW:
        return _attend_many(q, _spread(k, seen), _spread(v, seen), seen.mask, scale, softcap, sinks)
    batch, heads, tokens, width = q.shape
    groups, value = _heads(k), v.shape[-1]
    out = q.new_empty(batch, tokens, heads, value)
    for row, count in enumerate(seen.blocks):
        keys = _key_blocks(k, row, count).reshape(count * groups, KEYS, width).transpose(1, 2)
        values = _key_blocks(v, row, count).reshape(count * groups, KEYS, value)
        for token in range(tokens):
            query = q[row, :, token].reshape(1, groups, heads // groups, width).expand(count, -1, -1, -1)
            scores = torch.bmm(aligned(query.reshape(count * groups, heads // groups, width)), keys)
            out[row, token] = _mix(
                scores.reshape(count, groups, -1, KEYS), values, seen, row, token, scale, softcap, sinks
            )
    return out.transpose(1, 2)


def _mix(
    scores: Tensor, values: Tensor, seen: Seen, row: int, token: int, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Return the weighted values [H, Dv] of one query from its scores [blocks, G, H/G, KEYS]."""
    assert seen.bias is not None
    count, groups, per, _ = scores.shape
    scores = scores * scale
    if softcap:
        scores = pointwise(torch.tanh, scores / softcap) * softcap
    scores = scores + seen.bias[row, token, :count, None, None]
    # Finite, so that a query that sees nothing gives exp(-inf) = 0 and not NaN.
    top = scores.amax((0, 3)).clamp(min=-1e30)
    if sinks is not None:
        top = torch.maximum(top, sinks.reshape(groups, per))
    weights = pointwise(torch.exp, scores - top[:, :, None])
    # cumsum adds the blocks one after the other, so empty ones behind the last visible key change nothing.
    total = weights.sum(-1).cumsum(0)[-1]
    if sinks is not None:
        total = total + torch.exp(sinks.reshape(groups, per) - top)
    mixed = torch.bmm(weights.reshape(count * groups, per, KEYS), values).reshape(count, groups, per, -1).cumsum(0)[-1]
    return (mixed / torch.where(total == 0, 1.0, total)[..., None]).reshape(groups * per, -1)


@dataclass(frozen=True)
class Recent:
    """The newest tokens as they were before quantisation, and which of them a query reads.

    Attributes:
        index: i64 [B, N] logical index of each, -1 = none.
        q_index: i64 [B, T] logical index of each query.
        k_index: i64 [B, S] logical index of each slot.
        block: tokens of a block.
        keep: tokens before the open block.
    """

    index: Tensor
    q_index: Tensor
    k_index: Tensor
    block: int
    keep: int

    def of_query(self, row: int, token: int, slots: int) -> tuple[Tensor, Tensor]:
        """Return slots below ``slots`` whose numbers a query reads from the recent ones, and where those stand."""
        at = int(self.q_index[row, token])
        wanted = torch.arange(max((at + 1 - self.keep) // self.block, 0) * self.block, at + 1)
        slot = wanted % self.k_index.shape[1]
        inside = slot < slots
        wanted, slot = wanted[inside], slot[inside]
        return slot, (self.index[row] == wanted[:, None]).to(torch.uint8).argmax(-1) if len(wanted) else wanted

    def masks(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what of ``mask`` [B, T, S or more] is read from the slots, and from recent tokens [B, T, N].

        The second result's tokens lie in the slots :attr:`slot`.
        """
        slots, now = mask.shape[2], self.q_index[:, :, None] + 1
        index = F.pad(self.k_index, (0, max(slots - self.k_index.shape[1], 0)), value=-1)[:, :slots]
        closed = ((index // self.block + 1) * self.block + self.keep)[:, None] <= now
        place = self.slot.clamp(max=slots - 1)
        there = (self.index >= 0) & (index.gather(1, place) == self.index)
        behind = mask.gather(2, place[:, None].expand(-1, mask.shape[1], -1)) & there[:, None]
        behind &= ((self.index // self.block + 1) * self.block + self.keep)[:, None] > now
        return mask & closed, behind

    @property
    def slot(self) -> Tensor:
        """i64 [B, N]: the slot of each token."""
        return self.index.clamp(min=0) % self.k_index.shape[1]


def block_attention(
    q: Tensor,
    k: Rows,
    v: State,
    recent: Tensor,
    recent_index: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    seen: Seen,
    recent_v: Tensor | None = None,
    *,
    block: int,
    keep: int = 0,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention over quantised keys; those that are recent at a query come from ``recent``.

    recent is [B, G, N, Dk], recent_v [B, G, N, Dv], recent_index i64[B, N], q_index i64[B, T], k_index i64[B, S].
    """
    newest = Recent(recent_index, q_index, k_index, block, keep)
    if q.shape[2] > FEW:
        keys, values = _spread(k, seen), _spread(v, seen)
        closed, behind = newest.masks(seen.mask[..., : keys.shape[2]])
        if recent_v is None:
            place = newest.slot.clamp(max=keys.shape[2] - 1)[:, None, :, None]
            recent_v = values.gather(2, place.expand(-1, values.shape[1], -1, values.shape[-1]))
        keys, values = torch.cat([keys, recent], 2), torch.cat([values, recent_v], 2)
        return _attend_many(q, keys, values, torch.cat([closed, behind], 2), scale, softcap, sinks)
    batch, heads, tokens, width = q.shape
    groups, value = _heads(k), v.shape[-1]
    out = q.new_empty(batch, tokens, heads, value)
    for row, count in enumerate(seen.blocks):
        held = [_key_blocks(x, row, count).clone(memory_format=torch.contiguous_format) for x in (k, v)]
        keys = held[0].view(count * groups, KEYS, width).transpose(1, 2)
        values = held[1].view(count * groups, KEYS, value)
        fresh = [x[row].transpose(0, 1) for x in (recent, recent_v) if x is not None]
        for token in range(tokens):
            slot, found = newest.of_query(row, token, count * KEYS)
            places = slot // KEYS, slot % KEYS
            # What the query reads as plain numbers stands in its slots meanwhile, wherever the call got it from.
            before = [old[places[0], :, places[1]] for old in held]
            for old, new in zip(held, fresh, strict=False):
                old[places[0], :, places[1]] = new[found]
            query = q[row, :, token].reshape(1, groups, heads // groups, width).expand(count, -1, -1, -1)
            scores = torch.bmm(aligned(query.reshape(count * groups, heads // groups, width)), keys)
            out[row, token] = _mix(
                scores.reshape(count, groups, -1, KEYS), values, seen, row, token, scale, softcap, sinks
            )
            for old, saved in zip(held, before, strict=True):
                old[places[0], :, places[1]] = saved
    return out.transpose(1, 2)


def _attend_many(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Attention of a long call: keys [B, G, S, D] of the live slots, ``seen`` bool [B, T, S or more]."""
    batch, heads, tokens, width = q.shape
    groups, slots, value = k.shape[1], k.shape[2], v.shape[-1]
    mask = seen[:, None, :, :slots]
    if not softcap and sinks is None:
        padded = F.pad(v, (0, width - value)) if value < width else v
        out = F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, scale=scale, enable_gqa=heads != groups)
        return out[..., :value].nan_to_num(0.0)
    scores = (q.reshape(batch, groups, -1, width) @ k.transpose(-1, -2)).reshape(
        batch, groups, -1, tokens, slots
    ) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill_(~mask[:, :, None], float("-inf"))
    top = scores.amax(-1, keepdim=True).clamp(min=-1e30)
    sink = None if sinks is None else sinks.reshape(groups, -1, 1, 1)
    top = top if sink is None else torch.maximum(top, sink)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    total = total if sink is None else total + torch.exp(sink - top)
    weights = weights / torch.where(total == 0, 1.0, total)
    return (weights.reshape(batch, groups, -1, slots) @ v).reshape(batch, heads, tokens, value)


def mla(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: State,
    rope_k: State,
    w_k: Tensor,
    w_v: Tensor,
    seen: Seen,
    recent: Tensor | None = None,
    recent_index: Tensor | None = None,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    block: int = 1,
    keep: int = 0,
) -> Tensor:
    """Latent attention over the states latent and rope_k: [B, H, T, V].

    Short calls move w_k into the query and w_v behind the softmax, so they read the latents only; long calls
    expand keys and values once for all their queries, which costs fewer products.  Latents that are recent at a query
    come from ``recent`` [B, N, L] by ``recent_index`` [B, N].
    """
    batch, heads, tokens, _ = q_nope.shape
    newest = None
    if recent is not None:
        assert recent_index is not None and q_index is not None and k_index is not None
        newest = Recent(recent_index, q_index, k_index, block, keep)
    if tokens > FEW:
        latents, turned, mask = _spread(latent, seen), _spread(rope_k, seen), seen.mask
        if newest is not None:
            assert recent is not None
            closed, behind = newest.masks(mask[..., : latents.shape[1]])
            place = newest.slot.clamp(max=latents.shape[1] - 1)[..., None].expand(-1, -1, turned.shape[-1])
            latents, turned = torch.cat([latents, recent], 1), torch.cat([turned, turned.gather(1, place)], 1)
            mask = torch.cat([closed, behind], 2)
        latents, turned = latents[:, None], turned[:, None].expand(-1, heads, -1, -1)
        keys = torch.cat([latents @ w_k.transpose(1, 2), turned], dim=-1)
        query = torch.cat([q_nope, q_rope], dim=-1)
        return _attend_many(query, keys, latents @ w_v.transpose(1, 2), mask, scale, softcap, None)
    absorbed = head_product(q_nope, w_k)
    width, turn = latent.shape[-1], rope_k.shape[-1]
    out = q_nope.new_empty(batch, tokens, heads, width)
    for row, count in enumerate(seen.blocks):
        latents, turned = _key_blocks(latent, row, count), _key_blocks(rope_k, row, count).transpose(1, 2)
        if newest is not None:
            latents = latents.clone(memory_format=torch.contiguous_format)
        keys = latents.transpose(1, 2)
        flat = latents.view(count * KEYS, width) if newest is not None else latents
        for token in range(tokens):
            slot = before = None
            if newest is not None:
                assert recent is not None
                slot, found = newest.of_query(row, token, count * KEYS)
                before = flat[slot]
                flat[slot] = recent[row, found]
            scores = torch.bmm(aligned(absorbed[row, :, token].expand(count, heads, width)), keys)
            scores = scores + torch.bmm(aligned(q_rope[row, :, token].expand(count, heads, turn)), turned)
            out[row, token] = _mix(scores[:, None], latents, seen, row, token, scale, softcap, None)
            if slot is not None and before is not None:
                flat[slot] = before
    return head_product(out.transpose(1, 2), w_v.transpose(1, 2))


# -- mixtures of experts ----------------------------------------------------------------------------------
def route(
    x: Tensor,
    weight: Tensor,
    group_weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate_bias: Tensor | None = None,
    top_k: int,
    groups: tuple[int, ...] | None = None,
    top_groups: int = 1,
    group_score: str = "max",
    score: str = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: (indices [B, T, k], gates [B, T, k], logits [B, T, E]); the bias enters the selection only."""
    logits = linear(x, weight, gate_bias)
    squashed = pointwise(torch.sigmoid, logits) if score == "sigmoid" else logits
    select = squashed if bias is None else squashed + bias
    group_logits = None if group_weight is None else linear(x, group_weight)
    member = None
    if groups is not None:
        member = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
        best = group_logits
        if best is None:
            parts = select.split(list(groups), dim=-1)
            two = group_score == "top2_sum"
            best = torch.stack([topk(p, 2)[0].sum(-1) if two else p.amax(-1) for p in parts], dim=-1)
        kept = topk(best, top_groups)[1]
        select = select.masked_fill((member[:, None] != kept[..., None, :]).all(-1), float("-inf"))
    indices = topk(select, top_k)[1]
    if score == "sigmoid":
        gates = squashed.gather(-1, indices)
        gates = gates / gates.cumsum(-1)[..., -1:] if renormalise else gates
    elif renormalise:
        gates = softmax(logits.gather(-1, indices))
    else:
        gates = softmax(logits).gather(-1, indices)
    if group_logits is not None and member is not None:
        share = softmax(group_logits).gather(-1, member[indices])
        gates = gates * (share / share.cumsum(-1)[..., -1:] if top_groups > 1 else share)
    return indices, gates * scale if scale != 1.0 else gates, logits


def moe(
    x: Tensor,
    indices: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    *,
    kind: str,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float | None = None,
) -> Tensor:
    """Sum over the chosen experts, in their order, of gates * down act(up x), or of down (act(gate x) * up x).

    ``alpha``, ``beta`` and ``limit`` are those of :func:`omnic.targets.torch.kernels.gated_act`.  Only the
    chosen experts' weights are read; no token is dropped.
    """

    def apply(rows: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
        y = (product if x.shape[1] <= FEW else product_in_blocks)(rows, weight[expert])
        return y if bias is None else y + bias[expert]

    flat, chosen = x.reshape(-1, x.shape[-1]), indices.reshape(-1, indices.shape[-1])
    share = gates.reshape(chosen.shape)
    out = flat.new_empty(*chosen.shape, x.shape[-1])
    for expert in chosen.unique().tolist():
        at, slot = (chosen == expert).nonzero(as_tuple=True)
        rows = flat[at]
        inner = apply(rows, up, up_bias, expert)
        if gate is None:
            inner = act(inner, kind)
        else:
            inner = gated_act(apply(rows, gate, gate_bias, expert), inner, kind, alpha, beta, limit)
        out[at, slot] = apply(inner, down, down_bias, expert)
    y = out[:, 0] * share[:, :1]
    for slot in range(1, chosen.shape[1]):
        y = y + out[:, slot] * share[:, slot : slot + 1]
    return y.reshape(x.shape)
