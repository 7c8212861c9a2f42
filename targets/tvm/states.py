"""The states of a program: how each lies in the block of a session, to the byte.

State i of a batch of B begins ``B * at`` bytes into the block; its rows follow each other, [G, S, D] each.  Codes,
scales and zero points are separate parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module, State
from omnic.ir.types import DType

__all__ = ["PLAIN_ROLES", "StateForm", "state_forms", "state_refusal"]

#: roles of states that no token has a slot in
PLAIN_ROLES = ("recurrent", "conv")
_ALIGNMENT = 64
_BITS = {"F32": 32, "F16": 16, "BF16": 16, "I8": 8, "I4": 4}
_TYPES = {DType.F32: "F32", DType.F16: "F16", DType.BF16: "BF16"}


@dataclass(frozen=True)
class StateForm:
    """One state of one row.

    Attributes:
        name: of the state.
        heads: G; 1 for [B, S, D].
        slots: S.
        d: D.
        group: numbers with one scale; 0 for plain numbers.
        type: of its numbers, as the kernel library names it.
        scale_type: of its scales, "" without.
        zeros: with zero points.
        ring: whether slots are reused.
        cache: whether tokens have slots in it.
        at: bytes of the parts before, per row: numbers or codes.
        scales_at: the same of the scales; -1 without.
        zeros_at: the same of the zero points; -1 without.
        shape: of one row in the IR.
    """

    name: str
    heads: int
    slots: int
    d: int
    group: int
    type: str
    scale_type: str
    zeros: bool
    ring: bool
    cache: bool
    at: int
    scales_at: int
    zeros_at: int
    shape: tuple[int, ...]

    def plain(self, block: NDArray[np.uint8], batch: int) -> NDArray[np.generic]:
        """Return a state of plain numbers as an array [B, ...] over the block of a session."""
        dtype = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16)}[self.type]
        count = int(np.prod(self.shape)) * batch
        begin = self.at * batch
        return block[begin : begin + count * dtype.itemsize].view(dtype).reshape(batch, *self.shape)

    def slots_of(self, block: NDArray[np.uint8], batch: int) -> list[NDArray[np.uint8]]:
        """Return the bytes of each part of the state over the block of a session.

        A cache is [rows and heads, slots, bytes of one slot]; what no token has a slot in is [1, 1, bytes].
        """
        count = int(np.prod(self.shape))
        sizes = [(self.at, count * _BITS[self.type] // 8)]
        if self.scales_at >= 0:
            groups = count // self.d * -(-self.d // self.group)
            sizes.append((self.scales_at, groups * (4 if self.scale_type == "F32" else 2)))
            sizes += [(self.zeros_at, groups)] if self.zeros_at >= 0 else []
        shape = (batch * self.heads, self.slots, -1) if self.cache else (1, 1, -1)
        return [block[at * batch : (at + size) * batch].reshape(shape) for at, size in sizes]


def state_refusal(state: State) -> str | None:
    """Return why a state cannot be kept, or None when it can."""
    element = state.type.element
    if isinstance(element, DType):
        return None if element in _TYPES else f"{element} is no type of states"
    if element.kind not in ("i8", "i4"):
        return f"states are kept in f32, f16, bf16, i8 or i4, not in {element.kind}"
    if element.axis != -1:
        return "states of codes are grouped along the numbers of a token"
    if element.scale not in ("f16", "f32"):
        return f"scales of states are f16 or f32, not {element.scale}"
    return None


def state_forms(module: Module) -> tuple[tuple[StateForm, ...], int]:
    """Return the states of a module in order, and the bytes of one row of all of them.

    Raises:
        InputError: a state that cannot be kept.
    """
    found: list[StateForm] = []
    at = 0
    for name, state in module.states.items():
        why = state_refusal(state)
        if why is not None:
            raise InputError(f"target tvm: state '{name}' ({state.type}): {why}", "leave out kv-quant for this target")
        shape = tuple(evaluate(d, {"B": 1}) for d in state.type.shape[1:])
        cache = state.role not in PLAIN_ROLES
        heads, slots, d = (int(np.prod(shape[:-2])), *shape[-2:])
        element = state.type.element
        count = int(np.prod(shape))
        begin, scales_at, zeros_at = at, -1, -1
        if isinstance(element, DType):
            group, type, scale_type, zeros = 0, _TYPES[element], "", False
            at = _up(at + count * element.bits // 8)
        else:
            group = element.group or d
            type, scale_type, zeros = element.kind.upper(), element.scale.upper(), element.asym
            groups = count // d * element.groups(d)
            at = scales_at = _up(at + count * element.bits // 8)
            at = _up(at + groups * (4 if element.scale == "f32" else 2))
            if zeros:
                zeros_at = at
                at = _up(at + groups)
        found.append(
            StateForm(name, heads, slots, d, group, type, scale_type, zeros, state.ring, cache, begin, scales_at,
                      zeros_at, shape)
        )
    return tuple(found), at


def _up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


