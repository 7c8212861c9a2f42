"""Sessions of the executorch target: the rows of a batch run one after the other over one set of weights.

The program's buffers hold the states of one row.  Before another row (or a fork) runs, they are saved and the other's
restored, so a session of one row, which is what phones have, copies nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.runtime import resources
from omnic.runtime.mtp_session import MtpSession, mtp_functions
from omnic.runtime.session import Call, Ints, Outputs, SessionInfo, SessionOptions
from omnic.targets.executorch.methods import new_states
from omnic.targets.executorch.program import Program, RowStates

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["ExecutorchSession", "load"]


def load(bundle: Bundle, options: SessionOptions) -> ExecutorchSession:
    """Return a session for a bundle of kind ``executorch``.

    Raises:
        BundleError: the program is missing or the runtime refuses it.
        MissingExtraError: it was built for a delegate that does not run here.
        InputError: more memory is needed than ``options.memory``.
    """
    need = sum(f.stat().st_size for f in (*bundle.path.glob("*.pte"), *bundle.path.glob("*.ptd")))
    if options.memory is not None and need > options.memory:
        raise InputError(
            f"the program takes {need:,} bytes; the limit is {options.memory:,}",
            "raise the limit, or store the weights in fewer bits",
        )
    program = Program(bundle.path, options.threads or resources.threads())
    return ExecutorchSession(program, bundle.module)


class ExecutorchSession(MtpSession):
    """A batch of rows: their states, and the program they share with other sessions.

    Args:
        program: the loaded program.
        module: its IR.
        batch: rows.
    """

    def __init__(self, program: Program, module: Module, batch: int = 1) -> None:
        info = SessionInfo.of(module, "executorch", class_of(module))
        super().__init__(info, mtp_functions(module.functions), batch)
        self.program, self.module = program, module
        self._reset(batch)

    def _reset(self, batch: int) -> None:
        """A slot of tokens that was not written yet is seen by nobody, so only other states must be emptied."""
        clean = self.program.explicit or any(not s["token"] for s in self.program.about["states"].values())
        self._rows = [RowStates(list(new_states(self.module).values()) if clean else None) for _ in range(batch)]

    def _fork(self) -> ExecutorchSession:
        other = ExecutorchSession.__new__(ExecutorchSession)
        MtpSession.__init__(other, self._info, mtp_functions(self.module.functions), len(self._start))
        other.program, other.module = self.program, self.module
        other._rows = [RowStates(self.program.tensors(row) or None) for row in self._rows]
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        types = (s.type for s in self.module.states.values())
        return len(self._rows) * sum(t.with_shape(*(evaluate(d, {"B": 1}) for d in t.shape)).bytes() for t in types)

    def _run(self, call: Call) -> Outputs:
        inputs = {n: getattr(call, n) for n in ("tokens", "positions", "start", "length", "rows", "parents")}
        found = self._call("forward", {n: a for n, a in inputs.items() if a is not None})
        return Outputs(found["logits"], found.get("hidden"), found.get("mtp"), found.get("verifier"))

    def _call(self, function: str, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Run every row's valid tokens; what belongs to no token is 0."""
        batch, count = inputs["positions"].shape
        wanted = inputs["rows"]
        whole: dict[str, npt.NDArray[np.float32]] = {}
        for row in range(batch):
            valid = int(inputs["length"][row])
            if valid == 0:
                continue
            given = {n: a[row : row + 1] for n, a in inputs.items()}
            given |= {
                n: given[n][:, :valid]
                for n in ("tokens", "next_tokens", "positions", "hidden", "parents")
                if n in given
            }
            rows = np.minimum(given["rows"], valid - 1)
            given["rows"] = rows[:, :1] if valid == 1 else rows
            found = self.program.run(function, self._rows[row], given)
            for name, array in found.items():
                size = count if name == "hidden" else wanted.shape[1]
                if batch == 1 and array.shape[1] == size:
                    whole[name] = array
                    continue
                if name not in whole:
                    whole[name] = np.zeros((batch, size, *array.shape[2:]), np.float32)
                whole[name][row, : array.shape[1] if name == "hidden" else size] = array[0]
        return whole or self._nothing(function, batch, count, wanted.shape[1])

    def _nothing(self, function: str, batch: int, count: int, rows: int) -> dict[str, npt.NDArray[np.float32]]:
        """Return zeros: no row has a valid token."""
        sizes = {"B": batch, "T": count, "R": rows}
        results = self.module.function(function).results
        return {
            r.name: np.zeros([evaluate(d, sizes) for d in r.value.type.shape], np.float32)
            for r in results
            if r.state is None
        }

    def _move(self, source: Ints, target: Ints) -> None:
        names = list(self.program.about["states"])
        held = {p.state for p in self.module.function("forward").params}
        for row, states in enumerate(self._rows):
            keep = (source[row] >= 0) & (target[row] >= 0)
            if not keep.any():
                continue
            tensors = self.program.tensors(states)
            for name, tensor in zip(names, tensors, strict=True):
                about = self.program.about["states"][name]
                if about["state"] in held and about["token"]:
                    slots = tensor.shape[1]
                    read, write = (torch.from_numpy(x[row][keep] % slots) for x in (source, target))
                    tensor[:, write] = tensor[:, read]
            self.program.replace(states, tensors)

    def _rollback(self, lengths: Ints) -> None:
        super()._rollback(lengths)
        fresh = new_states(self.module)
        if any(not s["token"] for s in self.program.about["states"].values()):
            for row, states in enumerate(self._rows):
                if lengths[row] == 0:
                    self.program.replace(states, list(fresh.values()))
