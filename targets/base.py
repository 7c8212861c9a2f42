"""What a target is to the rest of omnic: capabilities, an emitter and a way to look inside its program.

``targets/<name>/target.py`` holds one :class:`Target` called ``TARGET``; nothing outside ``targets/``
branches on its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.weights import Source, WeightStore

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["EmitRequest", "Emitted", "Phase", "Progress", "Ran", "Target", "TuneRequest", "Tuned"]

#: called with what is being done and the share done, 0..1
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class EmitRequest:
    """What an emitter gets.

    Attributes:
        module: the module after the lossy passes, not yet legalised.
        weights: its numbers, lazily.
        out: an existing empty folder; relative paths in the result are inside it.
        options: the target's options, already validated by :meth:`Target.options`.
        progress: to be called as the work goes on.
        source: SHA-256 of the spec (or the imported module) as the manifest has it.
    """

    module: Module
    weights: WeightStore
    out: Path
    options: Mapping[str, Any]
    progress: Progress
    source: str = ""


@dataclass(frozen=True)
class Emitted:
    """What an emitter made.

    Attributes:
        kind: executable kind; the session registry loads by it.
        module: the module as the program computes it (legalised); parity compares against it.
        programs: role (such as ``forward``) -> relative path.
        interface: inputs, outputs and states with their types, a description that tools may read.
        nodes: node of the program -> ops of the IR it stands for, for reports (may be empty).
        remarks: what a user should know: choices made, fallbacks that were allowed.
        needs: the device that runs the program, where this machine is not one: nothing of it is measured here.
    """

    kind: str
    module: Module
    programs: Mapping[str, str]
    interface: Mapping[str, Any]
    nodes: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    remarks: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Phase:
    """Where the time of one phase went.

    Attributes:
        name: ``prefill`` or ``decode``.
        tokens: how many were computed.
        seconds: by scope of the IR (``blocks.0.attn``); the empty scope is what several parts share.
        nodes: seconds by name of the node of the IR, where the target knows them.
    """

    name: str
    tokens: int
    seconds: Mapping[str, float]
    nodes: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class TuneRequest:
    """What to measure for the programs of a module on this machine.

    Attributes:
        module: after the lossy passes; its weights' numbers are not needed.
        options: the target's, already validated.
        seconds: the budget.
        threads: of a session.
        records: the file that results go into; None: this user's own.
        ops: what to tune; empty for all that can be.
        progress: to be called as the work goes on.
    """

    module: Module
    options: Mapping[str, Any]
    seconds: float
    threads: int
    records: Path | None
    ops: Sequence[str]
    progress: Progress


@dataclass(frozen=True)
class Tuned:
    """What was found for one part of a program.

    Attributes:
        what: the part.
        rows: of a call.
        seconds: of a call as it was; None where nothing was measured.
        best: what is faster, "" where nothing is.
        gain: how many times as fast the best one that was found is.
        interval: of the gain, 99 %.
        won: whether it is faster beyond noise, and so was kept.
        note: what else is to say.
    """

    what: str
    rows: str
    seconds: float | None
    best: str
    gain: float
    interval: tuple[float, float]
    won: bool
    note: str = ""


@dataclass(frozen=True)
class Ran:
    """What ran of one kind while a token was decoded.

    Attributes:
        op: the operator or kernel, as its library calls it.
        provider: what ran it: an execution provider, or the level of a kernel.
        count: calls for one token.
        seconds: of all of them; None where the target does not time them.
    """

    op: str
    provider: str
    count: int
    seconds: float | None = None


class Target(ABC):
    """One backend."""

    name: ClassVar[str]
    caps: ClassVar[Caps]

    @abstractmethod
    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the spec's ``targets.<name>`` with defaults filled in.

        Raises:
            InputError: an unknown option or value, with what is known.
        """

    @abstractmethod
    def emit(self, request: EmitRequest) -> Emitted:
        """Write the program, its weights and what else it needs into ``request.out``.

        Raises:
            InputError: the module holds what the target cannot honour.
        """

    @abstractmethod
    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the saved program once from empty states and return the values called ``names``.

        ``inputs`` are the parameters of ``function`` without its states.
        """

    @abstractmethod
    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run only the part of the saved program between the values ``inputs`` and the values ``names``.

        ``inputs`` names any values (states included) that together determine ``names``; only the
        weights of that part are loaded.  This is how a program larger than memory is checked.
        """

    @abstractmethod
    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the values of ``function`` that :meth:`capture` can show, in order."""

    @abstractmethod
    def weights(self, bundle: Path) -> Source:
        """Return the weights of the bundle's ``module.ir`` as read back from the program's own bytes."""

    @abstractmethod
    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill of ``tokens`` [T] and ``steps`` single tokens, and say where the time went."""

    def passes(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the passes (``NAME{option=value}``) that these options run after those of the spec."""
        del options
        return ()

    def depends_on(self, options: Mapping[str, Any]) -> str:
        """Return a hash of what else a program of these options is made from, "" for nothing: records of tuning."""
        del options
        return ""

    def ran(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Ran]:
        """Decode ``steps`` tokens after ``tokens`` [T] and return what ran for one; empty if the target cannot say."""
        del bundle, tokens, steps, threads
        return []

    def tune(self, request: TuneRequest) -> Iterator[Tuned]:
        """Measure what of a program can be done in several ways, keep what is faster, and yield each result.

        Raises:
            InputError: the target has nothing to tune.
        """
        raise InputError(f"target {self.name} has nothing to tune", "tune a target with kernels of omnic's: tvm")

    def tuning_file(self, request: TuneRequest) -> Path | None:
        """Return the file that :meth:`tune` writes."""
        return request.records

    def disk_bytes(self, module: Module) -> int:
        """Return the bytes that a bundle of ``module`` takes while it is written: its weights and a margin."""
        return sum(w.type.bytes() for w in module.weights.values()) + 64_000_000
