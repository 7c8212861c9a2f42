"""What sessions with multi-token-prediction blocks and movable states share: checks and bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.runtime.session import SessionBase
from omnic.runtime.session_info import Ints, SessionInfo

__all__ = ["MtpSession", "mtp_functions"]

Floats = npt.NDArray[np.float32]


def mtp_functions(functions: Iterable[str]) -> tuple[str, ...]:
    """Return which of a module's functions are MTP blocks: ``mtp``, or ``mtp.0``, ``mtp.1`` and so on, in order."""
    return tuple(name for name in functions if name == "mtp" or name.startswith("mtp."))


class MtpSession(SessionBase):
    """A session whose program may have MTP blocks, and whose states are slots that tokens can be moved between.

    A target derives from it and writes, beside what :class:`SessionBase` asks for, ``_call`` and ``_move``.

    Args:
        info: what the session can do.
        blocks: names of the functions of the MTP blocks, in order; empty without.
        batch: rows.
    """

    def __init__(self, info: SessionInfo, blocks: Iterable[str], batch: int = 1) -> None:
        super().__init__(info, batch)
        self._mtp_start = {name: np.zeros(batch, np.int64) for name in blocks}

    # Targets write these.

    def _call(self, function: str, inputs: dict[str, Any]) -> Mapping[str, Floats]:
        """Run a function on the states; ``inputs`` may have more than it takes."""
        raise NotImplementedError

    def _move(self, source: Ints, target: Ints) -> None:
        """Copy token ``source[b, n]`` to ``target[b, n]`` in every state; a pair with -1 is skipped."""
        raise NotImplementedError

    # The interface.

    def reset(self, batch: int = 1) -> None:
        """Forget everything and hold ``batch`` empty rows."""
        super().reset(batch)
        self._mtp_start = {name: np.zeros(batch, np.int64) for name in self._mtp_start}

    def fork(self) -> SessionBase:
        """Return an independent session with a copy of the states."""
        other = super().fork()
        assert isinstance(other, MtpSession)
        other._mtp_start = {name: start.copy() for name, start in self._mtp_start.items()}
        return other

    def _rollback(self, lengths: Ints) -> None:
        self.mtp_rollback(lengths)

    @property
    def mtp_start(self) -> Ints:
        """Tokens that the (first) MTP block has seen of each row, i64[B]; rolled back with the main states."""
        return next((start.copy() for start in self._mtp_start.values()), np.zeros_like(self._start))

    def mtp_rollback(self, lengths: npt.ArrayLike) -> None:
        """Keep at most the first ``lengths[b]`` tokens of each MTP block's states, so dropping drafts."""
        limit = np.asarray(lengths, np.int64)
        self._mtp_start = {name: np.minimum(start, limit) for name, start in self._mtp_start.items()}

    def mtp_forward(
        self,
        hidden: npt.NDArray[np.float32],
        next_tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        depth: int = 0,
    ) -> tuple[Floats, Floats]:
        """Append tokens to an MTP block's states and return its logits [B, R, V] and hidden [B, T, D].

        Args:
            hidden: f32[B, T, D], what the main model gave as hidden (or the block, for further drafts).
            next_tokens: i64[B, T], the token after each.
            length: i64[B], valid tokens of each row; T when None.
            rows: i64[B, R], indices whose logits are wanted; all when None.
            depth: which block; the last one where there are fewer.

        Raises:
            InputError: the model has no such block, shapes do not fit, or the states are full.
        """
        if not self._mtp_start:
            raise InputError("this program has no MTP block")
        function = list(self._mtp_start)[min(depth, len(self._mtp_start) - 1)]
        start = self._mtp_start[function]
        stream, tokens = np.asarray(hidden, np.float32), np.asarray(next_tokens, np.int64)
        batch = len(self._start)
        if stream.ndim != 3 or tokens.shape != stream.shape[:2] or len(tokens) != batch:
            raise InputError(
                f"hidden must be [{batch}, T, D] and next_tokens [{batch}, T], "
                f"not {list(stream.shape)} and {list(tokens.shape)}"
            )
        if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= self._info.vocab):
            raise InputError(f"a token id is outside the vocabulary 0..{self._info.vocab - 1}")
        count = tokens.shape[1]
        if not 1 <= count <= self._info.chunk:
            raise InputError(f"{count} tokens in one call; this program takes 1 to {self._info.chunk}")
        step = np.arange(count, dtype=np.int64)[None]
        valid = np.full(batch, count, np.int64) if length is None else np.asarray(length, np.int64)
        wanted = np.repeat(step, batch, 0) if rows is None else np.asarray(rows, np.int64)
        if valid.shape != (batch,) or (valid < 0).any() or (valid > count).any():
            raise InputError(f"length must be in 0..{count} for every row")
        if ((start + valid) > self._info.capacity).any():
            raise InputError(
                f"a row would hold more than {self._info.capacity} tokens in the MTP block",
                "shorten the prompt, or compile with a larger budget.context",
            )
        inputs = {
            "hidden": stream,
            "next_tokens": tokens,
            "positions": start[:, None] + step,
            "start": start,
            "length": valid,
            "rows": wanted,
            "parents": np.repeat(step - 1, batch, 0),
        }
        found = self._call(function, inputs)
        self._mtp_start[function] = start + valid
        return found["logits"], found["hidden"]

    def move(self, source: npt.ArrayLike, target: npt.ArrayLike) -> None:
        """Copy token ``source[b, n]`` to ``target[b, n]`` in every state (logical indices, -1 skips the pair).

        This compacts the accepted path of a token tree; ``rollback`` to its end comes after it.

        Raises:
            InputError: an index is outside what the row holds.
        """
        read, write = np.asarray(source, np.int64), np.asarray(target, np.int64)
        held = self._start[:, None]
        if read.ndim != 2 or read.shape != write.shape or len(read) != len(held):
            raise InputError(f"source and target must both be i64[{len(held)}, N]")
        if (read < -1).any() or (write < -1).any() or (read >= held).any() or (write >= held).any():
            raise InputError("source and target must be -1 or indices of tokens that the row holds")
        self._move(read, write)
