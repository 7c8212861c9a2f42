"""Sessions of the torch target: emitted inference functions over buffers that they update in place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.runtime.session import Call, Ints, Outputs, SessionBase, SessionInfo, SessionOptions
from omnic.targets.torch.inference import InferenceModule, legalised, load_weights, new_states
from omnic.targets.torch.kernels import cache_move

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["WEIGHTS_FILE", "TorchSession", "load"]

WEIGHTS_FILE = "weights.safetensors"


def load(bundle: Bundle, options: SessionOptions) -> TorchSession:
    """Return a session for a bundle of kind ``torch``; its code is emitted anew from the bundle's IR text.

    Raises:
        BundleError: weights are missing, damaged, or do not fit the module.
        InputError: more memory is needed than ``options.memory``.
    """
    weights = WeightStore.load(bundle.module, bundle.file(WEIGHTS_FILE))
    return TorchSession.of(bundle.module, weights, options)


def session_info(module: Module) -> SessionInfo:
    """Return what a session of ``module`` can do."""
    forward = module.function()
    shapes = {r.name: r.value.type.shape for r in forward.results}
    vocab = shapes["logits"][-1]
    rings = [int(str(s.type.shape[-2])) for s in module.states.values() if s.ring]
    linear = [int(str(s.type.shape[-2])) for s in module.states.values() if not s.ring]
    capacity = module.meta.get("capacity")
    depth = shapes["mtp"][2] if "mtp" in shapes else 0
    sixteen = any(s.type.element.bits < 32 for s in module.states.values())
    return SessionInfo(
        kind="torch",
        vocab=int(str(vocab)),
        capacity=int(str(capacity)) if capacity is not None else min(linear),
        chunk=module.dims["T"].high,
        max_batch=module.dims["B"].high,
        ring=min(rings) if rings else None,
        rollback=all(s.rollback == "positional" for s in module.states.values()),
        hidden="hidden" in shapes,
        mtp_depth=int(str(depth)),
        verifier="verifier" in shapes,
        parents=forward.param("parents") is not None,
        embeds=forward.param("embeds") is not None,
        numeric_class="f16" if sixteen else "f32",
        batch_invariant=True,
    )


def _no_tokens(module: Module, batch: int) -> dict[str, Ints]:
    """Return how many tokens each MTP block has seen before the first: none."""
    blocks = [name for name in module.functions if name == "mtp" or name.startswith("mtp.")]
    return {name: np.zeros(batch, np.int64) for name in blocks}


class TorchSession(SessionBase):
    """A batch of rows: their states, and the program they share with other sessions.

    Args:
        program: emitted functions and weights.
        threads: threads of one operator.
        batch: rows.
    """

    def __init__(self, program: InferenceModule, threads: int, batch: int = 1) -> None:
        super().__init__(session_info(program.module), batch)
        self.program, self.threads = program, threads
        self._states = new_states(program.module, batch)
        self._mtp_start = _no_tokens(program.module, batch)

    @classmethod
    def of(cls, module: Module, weights: WeightStore, options: SessionOptions | None = None) -> TorchSession:
        """Return a session of ``module`` (after any lossy passes; legalised here).

        Raises:
            InputError: the target cannot run the module, or it needs more than ``options.memory``.
        """
        options = options or SessionOptions()
        ready = legalised(module)
        need = 4 * ready.parameters()
        if options.memory is not None and need > options.memory:
            raise InputError(
                f"the weights take {need:,} bytes in f32; the limit is {options.memory:,}",
                "raise the limit, or compile for a target that keeps weights in fewer bits",
            )
        threads = (
            options.threads or len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else options.threads or os.cpu_count()
        )
        return cls(InferenceModule(ready, load_weights(ready, weights)), threads or 1)

    # -- what SessionBase asks for -----------------------------------------------------------------------
    def _reset(self, batch: int) -> None:
        self._states = new_states(self.program.module, batch)
        self._mtp_start = _no_tokens(self.program.module, batch)

    def _call(self, function: str, inputs: dict[str, Any]) -> dict[str, Tensor]:
        before = torch.get_num_threads()
        if before != self.threads:
            torch.set_num_threads(self.threads)
        try:
            return self.program.run(function, self._states, inputs)
        finally:
            if before != self.threads:
                torch.set_num_threads(before)

    def _run(self, call: Call) -> Outputs:
        inputs = {
            n: getattr(call, n)
            for n in ("tokens", "positions", "start", "length", "rows", "parents", "embeds", "embed_mask")
        }
        if self._info.parents and inputs["parents"] is None:
            # A chain: each token's parent is the one before it.
            inputs["parents"] = np.broadcast_to(np.arange(-1, call.tokens.shape[1] - 1), call.tokens.shape).copy()
        found = self._call("forward", {n: v for n, v in inputs.items() if v is not None})
        return Outputs(**{n: found[n].numpy() for n in ("logits", "hidden", "mtp", "verifier") if n in found})

    def _fork(self) -> TorchSession:
        other = TorchSession.__new__(TorchSession)
        SessionBase.__init__(other, self._info, len(self._start))
        other.program, other.threads = self.program, self.threads
        other._states = {n: s.clone() for n, s in self._states.items()}
        other._mtp_start = dict(self._mtp_start)
        return other

    def _rollback(self, lengths: Ints) -> None:
        self.mtp_rollback(lengths)

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        return sum(s.numel() * s.element_size() for s in self._states.values())

    # -- beyond the common interface ------------------------------------------------------------------------
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
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Append tokens to the MTP block's states and return its logits [B, R, V] and hidden [B, T, D].

        Args:
            hidden: f32[B, T, D], the residual stream of the main model (or of the block, for further drafts).
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
        states = np.asarray(hidden, np.float32)
        tokens = np.asarray(next_tokens, np.int64)
        batch = len(self._start)
        if states.ndim != 3 or tokens.shape != states.shape[:2] or len(tokens) != batch:
            raise InputError(
                f"hidden must be [{batch}, T, D] and next_tokens [{batch}, T], "
                f"not {list(states.shape)} and {list(tokens.shape)}"
            )
        if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= self._info.vocab):
            raise InputError(f"a token id is outside the vocabulary 0..{self._info.vocab - 1}")
        count = tokens.shape[1]
        if not 1 <= count <= self._info.chunk:
            raise InputError(f"{count} tokens in one call; this program takes 1 to {self._info.chunk}")
        step = np.arange(count, dtype=np.int64)[None]
        valid = np.full(batch, count, np.int64) if length is None else np.asarray(length, np.int64)
        wanted = np.repeat(step, batch, 0) if rows is None else np.asarray(rows, np.int64)
        start = self._mtp_start[function]
        if valid.shape != (batch,) or (valid < 0).any() or (valid > count).any():
            raise InputError(f"length must be in 0..{count} for every row")
        if ((start + valid) > self._info.capacity).any():
            raise InputError(
                f"a row would hold more than {self._info.capacity} tokens in the MTP block",
                "shorten the prompt, or compile with a larger budget.context",
            )
        inputs: dict[str, Any] = {
            "hidden": states,
            "next_tokens": tokens,
            "positions": start[:, None] + step,
            "start": start,
            "length": valid,
            "rows": wanted,
            "parents": np.repeat(step - 1, batch, 0),
        }
        found = self._call(function, inputs)
        self._mtp_start[function] = start + valid
        return found["logits"].numpy(), found["hidden"].numpy()

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
        for name, state in self.program.module.states.items():
            capacity = int(str(state.type.shape[-2]))
            cache_move(self._states[name], torch.from_numpy(read), torch.from_numpy(write), capacity, state.ring)
