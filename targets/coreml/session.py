"""Sessions of Core ML packages: rows run one by one, each call in pieces that a function of the package takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.numeric import class_of
from omnic.runtime.mtp_session import MtpSession, mtp_functions
from omnic.runtime.session import Call, Ints, Outputs, SessionBase, SessionInfo, SessionOptions
from omnic.targets.coreml.program import Package

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["CoremlSession", "load"]

_BY_TOKEN = ("tokens", "next_tokens", "positions", "parents", "hidden")


def load(bundle: Bundle, options: SessionOptions) -> CoremlSession:
    """Return a session for a bundle of kind ``coreml``.

    Raises:
        BundleError: a file of the package is missing.
        InputError: more memory is needed than ``options.memory``.
    """
    package = Package(bundle.path, bundle.module)
    size = sum(f.stat().st_size for f in bundle.path.rglob("weight.bin"))
    if options.memory is not None and size > options.memory:
        raise InputError(
            f"the weights take {size:,} bytes; the limit is {options.memory:,}",
            "raise the limit, or compile weights in fewer bits",
        )
    return CoremlSession(package)


class CoremlSession(MtpSession):
    """A batch of rows, each with states of its own; the package knows one row.

    Args:
        package: the saved programs.
        batch: rows.
    """

    def __init__(self, package: Package, batch: int = 1) -> None:
        info = SessionInfo.of(package.module, "coreml", class_of(package.module))
        super().__init__(info, mtp_functions(package.module.functions), batch)
        self.package = package
        self._reset(batch)

    def _reset(self, batch: int) -> None:
        self._rows = [self.package.empty_states() for _ in range(batch)]

    def _fork(self) -> CoremlSession:
        other = CoremlSession.__new__(CoremlSession)
        SessionBase.__init__(other, self._info, len(self._start))
        other.package = self.package
        other._rows = [{n: a.copy() for n, a in row.items()} for row in self._rows]
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        return sum(a.nbytes for row in self._rows for a in row.values())

    def _run(self, call: Call) -> Outputs:
        inputs = {n: getattr(call, n) for n in ("tokens", "positions", "start", "length", "rows", "parents")}
        found = self._call("forward", {n: a for n, a in inputs.items() if a is not None})
        return Outputs(found["logits"], found.get("hidden"), found.get("mtp"), found.get("verifier"))

    def _call(self, function: str, inputs: dict[str, Any]) -> Mapping[str, npt.NDArray[np.float32]]:
        known = {p.value.name for p in self.package.module.function(function).params}
        given = {n: np.asarray(a) for n, a in inputs.items() if n in known}
        rows = [self._one(function, {n: a[b : b + 1] for n, a in given.items()}, states)
                for b, states in enumerate(self._rows)]
        return {n: np.concatenate([r[n] for r in rows]) for n in rows[0]}

    def _one(
        self, function: str, inputs: dict[str, npt.NDArray[Any]], states: dict[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a call of one row piece by piece; tokens beyond its length are not computed."""
        count, valid = inputs["positions"].shape[1], int(inputs["length"][0])
        rows = [int(r) for r in inputs["rows"][0]]
        found = self._blank(function, count, len(rows))
        at = 0
        while at < valid:
            wanted = sorted({r - at for r in rows if at <= r < valid})
            form, taken, length = self.package.piece(function, valid - at, wanted)
            part = {n: a[:, at : at + taken] if n in _BY_TOKEN else a for n, a in inputs.items()}
            here = [r for r in wanted if r < taken]
            asked = list(range(min(taken, form.rows))) if form.rows > 1 else (here or [taken - 1])[:1]
            part |= {"start": inputs["start"] + at, "length": np.array([taken]), "rows": np.array([asked])}
            for name, array in self.package.call(form, length, part, states).items():
                if name == "hidden":
                    found[name][:, at : at + taken] = array[:, :taken]
                    continue
                for place, row in enumerate(rows):
                    if row - at in asked and at <= row < at + taken:
                        found[name][:, place] = array[:, asked.index(row - at)]
            at += taken
        return found

    def _blank(self, function: str, count: int, rows: int) -> dict[str, npt.NDArray[np.float32]]:
        sizes = {"B": 1, "T": count, "R": rows}
        results = (r for r in self.package.module.function(function).results if r.state is None)
        return {r.name: np.zeros([evaluate(d, sizes) for d in r.value.type.shape], np.float32) for r in results}

    def _move(self, source: Ints, target: Ints) -> None:
        for row, states in enumerate(self._rows):
            pairs = [(int(s), int(t)) for s, t in zip(source[row], target[row], strict=True) if s >= 0 and t >= 0]
            if not pairs:
                continue
            read, write = (np.array(x) for x in zip(*pairs, strict=True))
            for name in [p.state for p in self.package.module.function().params if p.state]:
                slots = np.moveaxis(states[name], -2, 1)
                capacity = slots.shape[1]
                slots[0, write % capacity] = slots[0, read % capacity]
