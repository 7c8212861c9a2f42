"""Sessions of compiled programs: states in one block of memory, written in place; forks copy the block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.runtime import resources
from omnic.runtime.mtp_session import MtpSession, mtp_functions
from omnic.runtime.session import Call, Ints, Outputs, SessionOptions, most_likely
from omnic.targets.tvm.facts import facts_of
from omnic.targets.tvm.program import WEIGHTS_FILE, Bound, Program, zero_pages

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["NativeSession", "load"]

#: arrays of results up to this many bytes are kept for the next call of the same shape
_KEPT_BYTES, _KEPT_SHAPES = 32 << 20, 8


def load(bundle: Bundle, options: SessionOptions) -> NativeSession:
    """Return a session for a bundle of kind ``native``.

    Raises:
        BundleError: a file is missing, truncated, or not of this machine.
        InputError: this CPU lacks the level it was compiled to force, or more memory is needed than allowed.
    """
    path = bundle.path / WEIGHTS_FILE
    need = path.stat().st_size if path.is_file() else 0
    if options.memory is not None and need > options.memory:
        raise InputError(
            f"the weights take {need:,} bytes; the limit is {options.memory:,}",
            "raise the limit, or store the weights in fewer bits",
        )
    return NativeSession(Program(bundle.path, options.threads or resources.threads()))


class NativeSession(MtpSession):
    """A batch of rows: their states, and the program they share with other sessions.

    Args:
        program: the opened program.
        batch: rows.

    Raises:
        BundleError: the program does not say what a session has to know.
    """

    def __init__(self, program: Program, batch: int = 1) -> None:
        self._facts = facts_of(program.about, program.folder)
        super().__init__(self._facts.info, mtp_functions(program.about["functions"]), batch)
        self.program, self._forms = program, self._facts.states
        self._reset(batch)

    # -- what SessionBase asks for ----------------------------------------------------------------------
    def _reset(self, batch: int) -> None:
        self._hold(zero_pages(batch * self.program.row_bytes))

    def _hold(self, states: npt.NDArray[np.uint8]) -> None:
        """Keep this block as the states."""
        self._states, self._address = states, states.ctypes.data
        self._bound: dict[tuple[str, int, int, int], Bound] = {}

    def _fork(self) -> NativeSession:
        other = NativeSession.__new__(NativeSession)
        batch = len(self._start)
        MtpSession.__init__(other, self._info, mtp_functions(self.program.about["functions"]), batch)
        other.program, other._facts, other._forms = self.program, self._facts, self._forms
        block = zero_pages(self._states.nbytes)
        tokens = int(self._written.max())
        for form in self._forms:
            for to, of in zip(form.slots_of(block, batch), form.slots_of(self._states, batch), strict=True):
                to[:, :tokens] = of[:, :tokens]
        other._hold(block)
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        return self._states.nbytes

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

        A decoded token of one row takes a short way, since the general one costs as much as a layer of a small model.
        """
        rest = (length, rows, positions, parents, embeds, embed_mask)
        if isinstance(tokens, np.ndarray) and tokens.shape == (1, 1) and all(r is None for r in rest):
            found = self._next("forward", tokens)
            if found is not None:
                return _outputs(found)
        return super().forward(tokens, *rest)

    def _next(self, function: str, tokens: npt.NDArray[Any]) -> Mapping[str, npt.NDArray[Any]] | None:
        """Append one valid token to the only row; None where the general way must look at it."""
        bound = self._bound.get((function, 1, 1, 1))
        if bound is None or len(self._start) != 1 or tokens.dtype.kind not in "iu":
            return None
        token, at = int(tokens[0, 0]), int(self._start[0])
        if not 0 <= token < self._info.vocab or at >= self._info.capacity:
            return None
        given = bound.inputs
        given["tokens"][0, 0] = token
        given["positions"][0, 0] = at
        given["start"][0] = at
        given["length"][0] = 1
        given["rows"][0, 0] = 0
        if "parents" in given:
            given["parents"][0, 0] = -1
        self._written[0] = max(int(self._written[0]), at + 1)
        self.program.run(bound, self._address)
        self._start = np.array([at + 1])
        return bound.outputs

    def greedy(self, tokens: npt.ArrayLike, length: npt.ArrayLike | None = None) -> Ints:
        """Append tokens and return the most likely next one (:meth:`omnic.runtime.session.Session.greedy`)."""
        if not self._info.greedy or np.ndim(tokens) == 0 or np.shape(tokens)[-1] != 1:
            return super().greedy(tokens, length)
        found = None
        if isinstance(tokens, np.ndarray) and tokens.shape == (1, 1) and length is None:
            found = self._next("greedy", tokens)
        if found is None:
            call = self._checked(tokens, length, None, None, None, None, None)
            self._written = np.maximum(self._written, call.start + call.length)
            found = self._call("greedy", _given(call))
            self._start = call.start + call.length
        return most_likely(found["token"][:, 0], found["logit"][:, 0])

    def _run(self, call: Call) -> Outputs:
        return _outputs(self._call(self._facts.called(call.tokens.shape[1]), _given(call)))

    # -- running a program ---------------------------------------------------------------------------------
    def _call(self, function: str, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Run a function on the states; tokens beyond the longest row's ``length`` are not computed."""
        batch, count = inputs["positions"].shape
        longest = max(int(inputs["length"].max()), 1)
        if longest < count:
            inputs = {n: a[:, :longest] if n not in ("start", "length", "rows") else a for n, a in inputs.items()}
            inputs["rows"] = np.minimum(inputs["rows"], longest - 1)
        bound = self._bind(function, batch, longest, inputs["rows"].shape[1])
        for name, array in bound.inputs.items():
            array[...] = inputs[name]
        self.program.run(bound, self._address)
        found = dict(bound.outputs)
        if longest < count and "hidden" in found:
            short = found["hidden"]
            found["hidden"] = np.zeros((batch, count, *short.shape[2:]), np.float32)
            found["hidden"][:, :longest] = short
        return found

    def _bind(self, function: str, batch: int, count: int, rows: int) -> Bound:
        key = function, batch, count, rows
        found = self._bound.get(key)
        if found is None:
            found = self.program.bind(*key)
            if sum(a.nbytes for a in found.outputs.values()) <= _KEPT_BYTES:
                if len(self._bound) >= _KEPT_SHAPES:
                    self._bound.pop(next(iter(self._bound)))
                self._bound[key] = found
        return found

    def _move(self, source: Ints, target: Ints) -> None:
        held = set(self.program.about["functions"]["forward"]["states"])
        moved = [at for at, form in enumerate(self._forms) if form.cache and form.name in held]
        self.program.move(moved, source, target, self._address)

    def _rollback(self, lengths: Ints) -> None:
        super()._rollback(lengths)
        batch = len(lengths)
        for form in self._forms:
            if not form.cache:
                # What no token has a slot in can only be forgotten whole.
                form.plain(self._states, batch)[lengths == 0] = 0


def _given(call: Call) -> dict[str, npt.NDArray[Any]]:
    """Return the arguments of a function that are not states."""
    names = ("tokens", "positions", "start", "length", "rows", "parents")
    return {name: array for name in names if (array := getattr(call, name)) is not None}


def _outputs(found: Mapping[str, npt.NDArray[Any]]) -> Outputs:
    return Outputs(found["logits"], found.get("hidden"), found.get("mtp"), found.get("verifier"))
