"""Lowering of states that hold a token a slot: written by ``llama::update_cache``, read where they lie.

A state of codes is written and read buffer by buffer (:mod:`omnic.targets.executorch.codes`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnic.ir.graph import Node
from omnic.targets.executorch.codes import encode
from omnic.targets.executorch.module import StateRef, Walk, refuse

__all__ = ["CACHES"]


def _start(walk: Walk, start: Tensor, capacity: int, tokens: Any) -> Any:
    """Return the first new token's index as a number, with what torch.export must know of it."""

    def make() -> Any:
        number = start.item()
        torch._check_is_size(number)  # pyright: ignore[reportPrivateUsage]
        return number

    number = walk.once(("start", id(start)), make)
    torch._check(number < capacity)  # pyright: ignore[reportPrivateUsage]
    torch._check(number + tokens <= capacity)  # pyright: ignore[reportPrivateUsage]
    return number


def _slots(walk: Walk, start: Tensor, tokens: Any, capacity: int, ring: bool) -> Tensor:
    """Return the slots i64[T] of the tokens of a call."""

    def make() -> Tensor:
        slots = start + torch.arange(tokens)
        return torch.remainder(slots, capacity) if ring else slots

    return walk.once(("slots", id(start), capacity if ring else 0), make)


def cache_write(
    walk: Walk, node: Node, state: StateRef, x: Tensor, start: Tensor, length: Tensor, *, ring: bool
) -> Any:
    """Write the tokens of the call; all of them are valid."""
    _, capacity, heads, _ = state.tensor.shape
    tokens = x.shape[-2]
    fresh = x.reshape(1, heads, tokens, x.shape[-1]).transpose(1, 2)
    made = {"": fresh.to(state.tensor.dtype)} if state.element is None else encode(fresh, state.element)
    if not walk.in_place or walk.plain:
        slots = _slots(walk, start, tokens, capacity, ring)
        return state.with_parts(
            {s: torch.ops.aten.index_put(part, [None, slots], made[s]) for s, part in state.parts.items()}
        )
    for suffix, part in state.parts.items():
        if ring:
            slots = _slots(walk, start, tokens, capacity, ring)
            torch.ops.llama.update_cache_with_indices(made[suffix], part, 0, slots[None])
        else:
            torch.ops.llama.update_cache(made[suffix], part, _start(walk, start, capacity, tokens))
    return state.with_parts(state.parts)


def cache_read(walk: Walk, node: Node, state: StateRef, start: Tensor, length: Tensor, *, ring: bool) -> Any:
    """Return the state as it is (its readers take the numbers) and the logical index of each slot."""
    slots = state.tensor.shape[1]

    def make() -> Tensor:
        last = start + length - 1
        slot = torch.arange(slots)
        if ring:
            # The dividend is never negative: see ``mod`` of the lowering table.
            return (last - torch.remainder(last - slot + slots, slots)).clamp(min=-1)[None]
        return torch.where(slot <= last, slot, -1)[None]

    return state, walk.once(("index", id(start), id(length), slots, ring), make)


def cache_move(walk: Walk, node: Node, *operands: Any, **attrs: Any) -> Any:
    raise refuse(node, "its states are not moved by a program", "compact a token tree on another target")


CACHES = {"cache_write": cache_write, "cache_read": cache_read, "cache_move": cache_move}
