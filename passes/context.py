"""What a compile lends a pass besides the module: numbers, text to calibrate on, and the target's abilities.

Most passes rewrite the graph and need none of it.  A pass that does asks by the methods below, so that a
missing piece is a clear error of the caller and never a quiet other result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.caps import Caps
from omnic.ir.executor import ExecutorFactory
from omnic.ir.weights import ResultStore, WeightStore

__all__ = ["Calibration", "PassContext"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Real text a pass may look at.

    Attributes:
        tokens: i64[N, T] windows, none of them of the held-out text.
        text: what it is, for manifests and reports.
    """

    tokens: Ints
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the tokens and their shape."""
        shape = repr(self.tokens.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.tokens, "<i8").tobytes()).hexdigest()


def _silent(what: str, share: float) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class PassContext:
    """The surroundings of a pass.

    Attributes:
        weights: the numbers of the module, lazily; its module may be an earlier stage.
        weights_key: hash of the source the weights come from, part of the key of a stored result.
        calibration: makes the calibration windows, when there is text.
        executor: makes an executor of a module, for passes that look at activations.
        results: where results of calibration are kept by the hash of all that went in.
        caps: what the target can do; None outside a compile.
        progress: called with what is being done and the share done, 0..1.
    """

    weights: WeightStore | None = None
    weights_key: str = ""
    calibration: Callable[[], Calibration] | None = None
    executor: ExecutorFactory | None = None
    results: ResultStore | None = None
    caps: Caps | None = None
    progress: Callable[[str, float], None] = _silent

    def need_weights(self, name: str) -> WeightStore:
        """Return the weights for the pass ``name``.

        Raises:
            InputError: the caller gave none.
        """
        if self.weights is None:
            raise InputError(f"pass '{name}' reads the weights, and none were given", "give --weights FILE or --seed N")
        return self.weights

    def need_calibration(self, name: str) -> Calibration:
        """Return the calibration text for the pass ``name``.

        Raises:
            InputError: there is none.
        """
        if self.calibration is None:
            raise InputError(
                f"pass '{name}' needs text to calibrate on, and there is none",
                "give the model a tokenizer, or --calibration FILE",
            )
        return self.calibration()

    def need_executor(self, name: str) -> ExecutorFactory:
        """Return what makes executors, for the pass ``name``.

        Raises:
            InputError: the caller gave none.
        """
        if self.executor is None:
            raise InputError(f"pass '{name}' looks at activations, and nothing to run the model with was given")
        return self.executor

    def need_results(self, name: str) -> ResultStore:
        """Return the store of results, for the pass ``name``.

        Raises:
            InputError: the caller gave none.
        """
        if self.results is None:
            raise InputError(f"pass '{name}' stores what it finds, and no result store was given")
        return self.results
