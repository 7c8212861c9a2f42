"""Sessions of the torch target: emitted inference functions over buffers that they update in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.ir.weights import WeightStore, saved
from omnic.runtime import resources
from omnic.runtime.mtp_session import MtpSession, mtp_functions
from omnic.runtime.session import Call, Ints, Outputs, SessionBase, SessionInfo, SessionOptions
from omnic.targets.torch.inference import InferenceModule, legalised, load_weights, new_states, state_bytes
from omnic.targets.torch.kernels import cache_move

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["WEIGHTS_FILE", "TorchSession", "load"]

WEIGHTS_FILE = "weights.safetensors"
#: the longest call whose rows are bitwise those of any other call
INVARIANT = 16


def load(bundle: Bundle, options: SessionOptions) -> TorchSession:
    """Return a session for a bundle of kind ``torch``; its code is emitted anew from the bundle's IR text.

    Raises:
        BundleError: weights are missing, damaged, or do not fit the module.
        InputError: more memory is needed than ``options.memory``.
    """
    module = saved(bundle.module)
    return TorchSession.of(module, WeightStore.load(module, bundle.file(WEIGHTS_FILE)), options)


class TorchSession(MtpSession):
    """A batch of rows: their states, and the program they share with other sessions.

    Args:
        program: emitted functions and weights.
        threads: threads of one operator.
        batch: rows.
    """

    def __init__(self, program: InferenceModule, threads: int, batch: int = 1) -> None:
        module = program.module
        # A call long enough for @prefill has other numbers than the same tokens in shorter ones.
        least = module.prefill_from
        info = SessionInfo.of(module, "torch", class_of(module), batch_invariant=least is None or least > INVARIANT)
        super().__init__(info, mtp_functions(module.functions), batch)
        self.program, self.threads = program, threads
        self._states = new_states(module, batch)

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
        threads = options.threads or resources.threads()
        return cls(InferenceModule(ready, load_weights(ready, weights)), threads)

    # -- what SessionBase asks for -----------------------------------------------------------------------
    def _reset(self, batch: int) -> None:
        self._states = new_states(self.program.module, batch)

    def _call(self, function: str, inputs: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
        before = torch.get_num_threads()
        if before != self.threads:
            torch.set_num_threads(self.threads)
        try:
            found = self.program.run(function, self._states, inputs)
        finally:
            if before != self.threads:
                torch.set_num_threads(before)
        return {name: value.numpy() for name, value in found.items()}

    def _run(self, call: Call) -> Outputs:
        inputs = {
            n: getattr(call, n)
            for n in ("tokens", "positions", "start", "length", "rows", "parents", "embeds", "embed_mask")
        }
        function = self.program.module.called(call.tokens.shape[1])
        found = self._call(function, {n: v for n, v in inputs.items() if v is not None})
        return Outputs(**{n: found[n] for n in ("logits", "hidden", "mtp", "verifier") if n in found})

    def _fork(self) -> TorchSession:
        other = TorchSession.__new__(TorchSession)
        SessionBase.__init__(other, self._info, len(self._start))
        other.program, other.threads = self.program, self.threads
        other._states = {n: s.clone() for n, s in self._states.items()}
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        return state_bytes(self._states)

    def _move(self, source: Ints, target: Ints) -> None:
        for name, state in self.program.module.states.items():
            capacity = int(str(state.type.shape[-2]))
            cache_move(self._states[name], torch.from_numpy(source), torch.from_numpy(target), capacity, state.ring)
