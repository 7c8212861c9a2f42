"""Running modules: what ``forward`` gives, and the interface by which calibrating passes look inside."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from omnic.ir.graph import Module
    from omnic.ir.weights import WeightStore

__all__ = ["Executor", "ExecutorFactory", "Outputs", "Visit"]

Floats = npt.NDArray[np.floating[Any]]
Visit = Callable[[str, tuple[npt.NDArray[Any] | None, ...], tuple[npt.NDArray[Any], ...]], None]


@dataclass(frozen=True)
class Outputs:
    """The results of one call of ``forward``; None where the program has no such head.

    Attributes:
        logits: [B, R, V], the wanted rows.
        hidden: [B, T, D], the residual stream before the final norm.
        mtp: [B, R, depth, V], linear multi-token-prediction heads; head j predicts token t+1+j.
        verifier: [B, R, V].
    """

    logits: Floats
    hidden: Floats | None = None
    mtp: Floats | None = None
    verifier: Floats | None = None


class Executor(Protocol):
    """Evaluates one module on whole sequences, for passes that need real activations (GPTQ, AWQ, KV statistics).

    The command line injects one that computes in torch; the reference's is
    :class:`omnic.ir.reference.ReferenceExecutor`.
    """

    def forward(self, tokens: npt.NDArray[np.int64]) -> Outputs:
        """Return what ``forward`` says about tokens i64[B, T] from empty states, logits of every position."""
        ...

    def observe(self, tokens: npt.NDArray[np.int64], nodes: Collection[str], visit: Visit) -> None:
        """Run ``forward`` on tokens i64[B, T] and call ``visit(node, operands, results)`` for each named node.

        Long sequences may be run in chunks, so a node may be visited several times, in order of the tokens.

        Raises:
            InputError: a name is not a node of the function.
        """
        ...


ExecutorFactory = Callable[["Module", "WeightStore"], Executor]
