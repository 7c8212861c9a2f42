"""The reference as a session: what a module means, with the interface of a compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceSession, WeightReader
from omnic.runtime.session import Call, Ints, Outputs, SessionBase, SessionInfo

__all__ = ["ReferenceRuntime"]


class ReferenceRuntime(SessionBase):
    """A session over the reference interpreter, for tests, scores and comparisons; it is slow.

    Args:
        module: a module with ``@forward``.
        weights: a weight store, or arrays by name.
        dtype: f64 or f32.
    """

    def __init__(
        self, module: Module, weights: WeightReader | Mapping[str, Any], dtype: DTypeLike = np.float64
    ) -> None:
        wide = np.dtype(dtype) == np.float64
        super().__init__(SessionInfo.of(module, "reference", "f64" if wide else "f32"))
        self._inner = ReferenceSession(module, weights, dtype)

    def _reset(self, batch: int) -> None:
        self._inner.reset(batch)

    def _run(self, call: Call) -> Outputs:
        return self._inner.forward(
            call.tokens, call.length, call.rows, call.positions, call.parents, call.embeds, call.embed_mask
        )

    def _rollback(self, lengths: Ints) -> None:
        self._inner.rollback(lengths)

    def _fork(self) -> ReferenceRuntime:
        other = object.__new__(ReferenceRuntime)
        SessionBase.__init__(other, self.info)
        other._inner = self._inner.fork()
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take in their storage types."""
        return self._inner.state_bytes()
