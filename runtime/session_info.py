"""What a session can do, what its user chooses, and one checked call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from omnic.ir.dims import evaluate

if TYPE_CHECKING:
    from omnic.ir.graph import Module

__all__ = ["Call", "Ints", "SessionInfo", "SessionOptions"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SessionOptions:
    """What the user of a session chooses.

    Attributes:
        threads: threads of one operator; None = the cores this process really has.
        memory: bytes the session may hold for weights and states; None = no limit asked for.
    """

    threads: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class SessionInfo:
    """What a session can do; fixed for its life.

    Attributes:
        kind: executable kind, such as ``onnx``.
        vocab: V, the number of logits.
        capacity: S, the most tokens a row can hold.
        chunk: T_max, the most tokens of one call.
        max_batch: the most rows.
        ring: slots of the smallest ring cache; None when every state holds the whole capacity.
        reach: tokens that a rollback of a full ring may drop; ``chunk`` when None.
        rollback: whether the states can be rolled back at all (to 0 they always can).
        hidden: whether ``Outputs.hidden`` is filled.
        mtp_depth: depth of linear MTP heads, 0 without.
        verifier: whether ``Outputs.verifier`` is filled.
        greedy: whether ``Session.greedy`` has a function of its own for single tokens.
        parents: whether ``forward`` takes ``parents`` (token trees).
        embeds: whether ``forward`` takes ``embeds`` and ``embed_mask``.
        numeric_class: ``f64``, ``f32``, ``f16`` or ``int8`` (docs/ir.md, Numbers).
        batch_invariant: whether a row is bitwise the same for any batch and any T in 1..16.
    """

    kind: str
    vocab: int
    capacity: int
    chunk: int
    max_batch: int = 64
    ring: int | None = None
    reach: int | None = None
    rollback: bool = True
    hidden: bool = False
    mtp_depth: int = 0
    verifier: bool = False
    greedy: bool = False
    parents: bool = False
    embeds: bool = False
    numeric_class: str = "f32"
    batch_invariant: bool = False

    @staticmethod
    def of(module: Module, kind: str, numeric_class: str = "f32", batch_invariant: bool = False) -> SessionInfo:
        """Return what a program that implements all of ``@forward`` of ``module`` can do."""
        function = module.function()
        results = {result.name: result.value.type for result in function.results if result.state is None}
        states = [module.states[param.state] for param in function.params if param.state]
        highs = {name: dims.high for name, dims in module.dims.items()}
        slots = [(evaluate(state.type.shape[-2], highs), state.ring) for state in states]
        capacity = module.meta.get("capacity")
        return SessionInfo(
            kind=kind,
            vocab=evaluate(results["logits"].shape[-1], highs),
            capacity=capacity if isinstance(capacity, int) else min(size for size, ring in slots if not ring),
            chunk=highs["T"],
            max_batch=highs["B"],
            ring=min((size for size, ring in slots if ring), default=None),
            reach=min((evaluate(s.type.shape[-2], highs) - s.window + 1 for s in states if s.ring), default=None),
            rollback=all(state.rollback == "positional" for state in states),
            hidden="hidden" in results,
            mtp_depth=evaluate(results["mtp"].shape[2], highs) if "mtp" in results else 0,
            verifier="verifier" in results,
            greedy="greedy" in module.functions and any(r.name == "token" for r in module.function("greedy").results),
            parents=function.param("parents") is not None,
            embeds=function.param("embeds") is not None,
            numeric_class=numeric_class,
            batch_invariant=batch_invariant,
        )


@dataclass(frozen=True)
class Call:
    """One checked ``forward``: every array has its final shape and type.

    Attributes:
        tokens: i64[B, T].
        positions: i64[B, T].
        start: i64[B].
        length: i64[B].
        rows: i64[B, R].
        parents: i64[B, T] (a chain where the caller gave none); None when the program takes no trees.
        embeds: f32[B, T, D] or None.
        embed_mask: bool[B, T] or None.
    """

    tokens: Ints
    positions: Ints
    start: Ints
    length: Ints
    rows: Ints
    parents: Ints | None = None
    embeds: npt.NDArray[np.float32] | None = None
    embed_mask: npt.NDArray[np.bool_] | None = None
