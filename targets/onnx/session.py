"""Sessions of the onnx target: one ONNX Runtime session, states bound once and updated in place.

A state is one buffer, bound as input and as output of the program, so that nothing is copied between
calls.  What a call of the same shape binds is kept: a decoded token writes a few integers into bound
arrays and runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import (
    NotImplemented as OperatorMissing,
)

from omnic.errors import BundleError, InputError, MissingExtraError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.runtime import resources
from omnic.runtime.mtp_session import MtpSession, mtp_functions
from omnic.runtime.session import Call, Ints, Outputs, SessionBase, SessionInfo, SessionOptions
from omnic.targets.onnx.codes import BUFFER_TYPES, buffers
from omnic.targets.onnx.packed import packed_program
from omnic.targets.onnx.program import METADATA, row_program, runtime_options

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["OnnxSession", "Programs", "load"]

#: result buffers up to this many bytes are kept for the next call of the same shape
KEPT_BYTES = 32 << 20
KEPT_SHAPES = 8
#: tokens of one row that a program is given at a time
PIECE = 256


def load(bundle: Bundle, options: SessionOptions) -> OnnxSession:
    """Return a session for a bundle of kind ``onnx``.

    Raises:
        BundleError: a program is missing or ONNX Runtime refuses it.
        InputError: more memory is needed than ``options.memory``.
    """
    return OnnxSession(Programs(bundle.path, bundle.module, options))


class Programs:
    """The programs of a bundle; each is opened when it is first used and shared by every fork.

    A function may have a program for every call and one for calls of a single row.  Both pack the weights for
    themselves, so a session of one row opens the second alone, and a session of several rows the first alone.

    Args:
        folder: of the bundle.
        module: its IR.
        options: threads and memory.
    """

    def __init__(self, folder: Path, module: Module, options: SessionOptions) -> None:
        self.folder, self.module = folder, module
        self.threads = options.threads or resources.threads()
        need = sum(f.stat().st_size for f in folder.glob("*.bin"))
        if options.memory is not None and need > options.memory:
            raise InputError(
                f"the weights take {need:,} bytes; the limit is {options.memory:,}",
                "raise the limit, or compile for a target that keeps weights in fewer bits",
            )
        self._open: dict[str, tuple[ort.InferenceSession, dict[str, Any]]] = {}

    def use(self, file: str, session: ort.InferenceSession) -> None:
        """Take ``session`` for a program instead of opening its file."""
        self._open[file] = session, json.loads(session.get_modelmeta().custom_metadata_map[METADATA])

    def file(self, function: str, row: bool = False) -> str:
        """Return the file for calls of a function: that of one row where it is asked for and there is one."""
        alone = row_program(function)
        return alone if row and (self.folder / alone).is_file() else f"{function}.onnx"

    def get(self, function: str, row: bool = False) -> tuple[ort.InferenceSession, dict[str, Any]]:
        """Return the ONNX Runtime session of a function and what the program says about itself."""
        file = self.file(function, row)
        if file not in self._open:
            path = self.folder / file
            if not path.is_file():
                raise InputError(f"this bundle has no program '{function}'", "the model has no such block")
            self.use(file, open_program(packed_program(self.folder, path.stem) or path, self.threads))
        return self._open[file]


def open_program(path: Path, threads: int) -> ort.InferenceSession:
    """Open one program.

    Raises:
        BundleError: ONNX Runtime refuses the file.
    """
    try:
        return ort.InferenceSession(str(path), runtime_options(threads), providers=["CPUExecutionProvider"])
    except (
        Fail,
        InvalidProtobuf,
        InvalidGraph,
        NoSuchFile,
        InvalidArgument,
        RuntimeException,
    ) as error:
        raise BundleError(
            f"{path}: ONNX Runtime {ort.__version__} refuses it: {str(error).splitlines()[0]}",
            "copy the bundle again, or compile it again",
        ) from error
    except OperatorMissing as error:
        raise MissingExtraError(f"an operator of {path.name} in ONNX Runtime {ort.__version__}", "onnx") from error


@dataclass(frozen=True)
class _Step:
    """What calls of one shape share: how to run, bound inputs to write into, and bound results to read."""

    run: Callable[[], None]
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[np.float32]]
    positions: int
    owned: tuple[Any, ...]


class OnnxSession(MtpSession):
    """A batch of rows: their states, and the programs they share with other sessions.

    Args:
        programs: the programs.
        batch: rows.
    """

    def __init__(self, programs: Programs, batch: int = 1) -> None:
        info = SessionInfo.of(programs.module, "onnx", class_of(programs.module))
        super().__init__(info, mtp_functions(programs.module.functions), batch)
        self.programs = programs
        self._reset(batch)

    # -- what SessionBase asks for ----------------------------------------------------------------------
    def _reset(self, batch: int) -> None:
        states: dict[str, npt.NDArray[Any]] = {}
        for name, state in self.programs.module.states.items():
            for suffix, (kind, dims) in buffers(state.type).items():
                shape = [evaluate(d, {"B": batch}) for d in dims]
                states[name + suffix] = np.zeros(shape, BUFFER_TYPES[kind])
        self._hold(states)

    def _hold(self, states: dict[str, npt.NDArray[Any]]) -> None:
        """Keep these buffers as the states; what was bound before is dropped."""
        self._states = states
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in states.items()}
        self._steps: dict[tuple[str, int, int, int, bool], _Step] = {}

    def _fork(self) -> OnnxSession:
        other = OnnxSession.__new__(OnnxSession)
        SessionBase.__init__(other, self._info, len(self._start))
        other.programs = self.programs
        other._hold({name: array.copy() for name, array in self._states.items()})
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        return sum(array.nbytes for array in self._states.values())

    def forward(
        self,
        tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        parents: npt.ArrayLike | None = None,
        embeds: npt.NDArray[Any] | None = None,
        embed_mask: npt.NDArray[np.bool_] | None = None,
    ) -> Outputs:
        """Append tokens and return what the program says of them (:meth:`omnic.runtime.session.Session.forward`).

        A decoded token of one row takes a short way: reading the weights has emptied the caches, so that what the
        general one does in Python costs half a millisecond.
        """
        rest = (length, rows, positions, parents, embeds, embed_mask)
        if isinstance(tokens, np.ndarray) and tokens.shape == (1, 1) and all(r is None for r in rest):
            found = self._next(tokens)
            if found is not None:
                return found
        return super().forward(tokens, *rest)

    def _next(self, tokens: npt.NDArray[Any]) -> Outputs | None:
        """Append one valid token to the only row; None where the general way must look at it."""
        step = self._steps.get(("forward", 1, 1, 1, True))
        if step is None or len(self._start) != 1 or tokens.dtype.kind not in "iu":
            return None
        token, at = int(tokens[0, 0]), int(self._start[0])
        if not 0 <= token < self._info.vocab or at >= min(self._info.capacity, step.positions):
            return None
        given = step.inputs
        given["tokens"][0, 0] = token
        given["positions"][0, 0] = at
        given["start"][0] = at
        given["length"][0] = 1
        given["rows"][0, 0] = 0
        if "parents" in given:
            given["parents"][0, 0] = -1
        self._written[0] = max(int(self._written[0]), at + 1)
        step.run()
        self._start = np.array([at + 1])
        found = step.outputs
        return Outputs(found["logits"], found.get("hidden"), found.get("mtp"), found.get("verifier"))

    def _run(self, call: Call) -> Outputs:
        inputs = {n: getattr(call, n) for n in ("tokens", "positions", "start", "length", "rows", "parents")}
        found = self._call(self.programs.module.called(call.tokens.shape[1]), inputs)
        return Outputs(found["logits"], found.get("hidden"), found.get("mtp"), found.get("verifier"))

    # -- running a program ---------------------------------------------------------------------------------
    def _call(self, function: str, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Run a program on its states; tokens beyond the longest row's ``length`` are not computed."""
        batch, count = inputs["positions"].shape
        longest = int(inputs["length"].max())
        row = batch == 1 and longest > 0 and self._counted(inputs["positions"][0, :longest])
        about = self.programs.get(function, row)[1]
        inputs = {n: inputs[n] for n in about["inputs"]}
        limit = about["positions"]
        if limit is not None and int(inputs["positions"].max()) >= limit:
            self._check_positions(inputs, limit)
        if longest < count:
            inputs = self._cut(inputs, max(longest, 1))
        if row and longest > PIECE and self.programs.file(function, row) == row_program(function):
            found = self._in_pieces(function, inputs, longest)
            return found if longest >= count else _padded(found, count)
        shape = batch, inputs["positions"].shape[1], inputs["rows"].shape[1]
        step = self._step(function, *shape, row=row)
        for name, array in step.inputs.items():
            array[...] = inputs[name]
        step.run()
        return dict(step.outputs) if longest >= count else _padded(step.outputs, count)

    def _in_pieces(
        self, function: str, inputs: dict[str, npt.NDArray[Any]], count: int
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a long call of one row piece by piece.

        Its scores and activations then stay in the caches.
        """
        results = {r["name"]: r for r in self.programs.get(function, row=True)[1]["results"] if r["state"] is None}
        rows = inputs["rows"][0]
        sizes = {"B": 1, "T": count, "R": len(rows)}
        found = {
            name: np.zeros([sizes[d] if d in sizes else int(d) for d in result["shape"]], np.float32)
            for name, result in results.items()
        }
        for at in range(0, count, PIECE):
            end = min(at + PIECE, count)
            inside = (rows >= at) & (rows < end)
            given = {n: a[:, at:end] if n not in ("start", "length", "rows") else a for n, a in inputs.items()}
            # A program computes one row at least; where none is wanted it is dropped.
            given["rows"] = (rows[inside] - at if inside.any() else np.zeros(1, np.int64))[None]
            given |= {"start": inputs["start"] + at, "length": np.array([end - at])}
            step = self._step(function, 1, end - at, given["rows"].shape[1], row=True)
            for name, array in step.inputs.items():
                array[...] = given[name]
            step.run()
            for name, result in results.items():
                if result["shape"][1] == "T":
                    found[name][:, at:end] = step.outputs[name]
                elif inside.any():
                    found[name][:, inside] = step.outputs[name]
        return found

    def _counted(self, positions: Ints) -> bool:
        """Whether the program of one row takes these positions [T].

        A call that fills every slot looks to the fused operator like a first prompt, whose positions it counts itself.
        """
        return len(positions) < self._info.capacity or bool((np.diff(positions) == 1).all())

    def _cut(self, inputs: dict[str, npt.NDArray[Any]], longest: int) -> dict[str, npt.NDArray[Any]]:
        cut = {n: a[:, :longest] if n not in ("start", "length", "rows") else a for n, a in inputs.items()}
        return {**cut, "rows": np.minimum(cut["rows"], longest - 1)}

    def _check_positions(self, inputs: Mapping[str, npt.NDArray[Any]], limit: int) -> None:
        valid = np.arange(inputs["positions"].shape[1])[None] < inputs["length"][:, None]
        wrong = valid & (inputs["positions"] >= limit)
        if wrong.any():
            raise InputError(
                f"position {inputs['positions'][wrong][0]} is outside this program's rotary tables, 0..{limit - 1}",
                "compile with a larger context",
            )

    def _step(self, function: str, batch: int, count: int, rows: int, row: bool) -> _Step:
        key = (function, batch, count, rows, row)
        if key in self._steps:
            return self._steps[key]
        session, about = self.programs.get(function, row)
        sizes = {"B": batch, "T": count, "R": rows}
        binding = session.io_binding()
        inputs: dict[str, npt.NDArray[Any]] = {}
        outputs: dict[str, npt.NDArray[np.float32]] = {}
        owned: list[Any] = []
        for tensor in session.get_inputs():
            if tensor.name in about["states"]:
                binding.bind_ortvalue_input(tensor.name, self._values[tensor.name])
                continue
            shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
            inputs[tensor.name] = np.zeros(shape, np.int64 if tensor.type == "tensor(int64)" else np.float32)
            owned.append(ort.OrtValue.ortvalue_from_numpy(inputs[tensor.name]))
            binding.bind_ortvalue_input(tensor.name, owned[-1])
        for result in about["results"]:
            if result["state"] is not None:
                binding.bind_ortvalue_output(result["value"], self._values[result["state"]])
                continue
            shape = [sizes[d] if d in sizes else int(d) for d in result["shape"]]
            outputs[result["name"]] = np.zeros(shape, np.float32)
            owned.append(ort.OrtValue.ortvalue_from_numpy(outputs[result["name"]]))
            binding.bind_ortvalue_output(result["value"], owned[-1])
        limit = about["positions"]
        run = partial(session.run_with_iobinding, binding)
        step = _Step(run, inputs, outputs, self._info.capacity if limit is None else limit, tuple(owned))
        if sum(a.nbytes for a in outputs.values()) <= KEPT_BYTES:
            if len(self._steps) >= KEPT_SHAPES:
                self._steps.pop(next(iter(self._steps)))
            self._steps[key] = step
        return step

    # -- beyond the common interface -------------------------------------------------------------------------
    @property
    def states(self) -> Mapping[str, npt.NDArray[Any]]:
        """The buffers of the states by name; calls write into them."""
        return self._states

    def _move(self, source: Ints, target: Ints) -> None:
        row, pair = np.nonzero((source >= 0) & (target >= 0))
        for name in self.programs.get("forward", len(self._start) == 1)[1]["states"]:
            slots = np.moveaxis(self._states[name], -2, 1)
            capacity = slots.shape[1]
            slots[row, target[row, pair] % capacity] = slots[row, source[row, pair] % capacity]


def _padded(outputs: Mapping[str, npt.NDArray[np.float32]], count: int) -> dict[str, npt.NDArray[np.float32]]:
    """Hidden states of tokens that were not computed are 0."""
    found = dict(outputs)
    if "hidden" in found:
        short = found["hidden"]
        found["hidden"] = np.zeros((short.shape[0], count, *short.shape[2:]), np.float32)
        found["hidden"][:, : short.shape[1]] = short
    return found
