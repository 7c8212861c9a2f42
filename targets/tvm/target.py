"""The tvm target: options, emission and the look inside a saved program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.weights import Source
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.bundle import Bundle
from omnic.targets.base import EmitRequest, Emitted, Phase, Ran, Target, Tuned, TuneRequest
from omnic.targets.cut import float_values, module_of
from omnic.targets.tvm.caps import CAPS
from omnic.targets.tvm.emit import emit
from omnic.targets.tvm.matrices import PAGE, panels_of
from omnic.targets.tvm.options import parse_options
from omnic.targets.tvm.part import run_part
from omnic.targets.tvm.profile import profile, ran
from omnic.targets.tvm.program import WEIGHTS_FILE
from omnic.targets.tvm.tuning.lookup import fingerprint
from omnic.targets.tvm.weights_file import ProgramSource

__all__ = ["TARGET", "TvmTarget"]


class TvmTarget(Target):
    """A whole program in C over the kernel library, compiled for this machine (docs/targets_tvm.md).

    Options: ``activations``, ``batch``, ``cpu``, ``emit``, ``level``, ``triple``, ``tuning``
    (:mod:`omnic.targets.tvm.options`).
    """

    name: ClassVar[str] = "tvm"
    caps: ClassVar[Caps] = CAPS

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with defaults filled in."""
        return parse_options(given)

    def emit(self, request: EmitRequest) -> Emitted:
        """Write ``program.c``, its library, ``weights.bin`` and ``program.json``."""
        return emit(request)

    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the function once from empty states, with what makes the values called ``names`` kept."""
        return run_part(bundle, inputs, names, function)

    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run only the part of the function between ``inputs`` and ``names`` on the program's own weights."""
        return run_part(bundle, inputs, names, function)

    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the float values that :meth:`capture` can show."""
        found = module_of(bundle).function(function)
        reads = {n.results[0].name for n in found.nodes if n.op == "cache_read"}
        return tuple(name for name in float_values(found) if name not in reads)

    def weights(self, bundle: Path) -> Source:
        """Return the weights as they lie in the program's file."""
        return ProgramSource(bundle, WEIGHTS_FILE, module_of(bundle))

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill and ``steps`` single tokens with the clock of the program on."""
        return profile(bundle, tokens, steps, threads)

    def ran(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Ran]:
        """Return the kernels that the program calls for a token, and their level."""
        del tokens, steps
        return ran(bundle, threads)

    def passes(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return ``round-activations`` where the calibration text decides how products round their inputs."""
        return ("round-activations",) if options["activations"] == "calibrated" else ()

    def depends_on(self, options: Mapping[str, Any]) -> str:
        """Return a hash of the records that the program may use."""
        return fingerprint(options)

    def tune(self, request: TuneRequest) -> Iterator[Tuned]:
        """Time products, and loops, in several ways (docs/tuning.md)."""
        from omnic.targets.tvm.tuning.tune import tune

        return tune(request)

    def tuning_file(self, request: TuneRequest) -> Path:
        """Return the file of records: the one given, or this user's of this processor."""
        from omnic.targets.tvm.tuning.tune import default_file

        return request.records or default_file()

    def disk_bytes(self, module: Module) -> int:
        """Weights whose codes have no panels lie in the file as f32; every matrix begins at a page."""
        total = 64_000_000
        for weight in module.weights.values():
            count = int(np.prod(fixed_shape(weight.type), dtype=np.int64))
            matrix = weight.type.rank in (2, 3) and weight.type.is_float
            decoded = matrix and panels_of(weight.type).code == "f32"
            total += 3 * PAGE + (4 * count if decoded or not matrix else weight.type.bytes() * 9 // 8)
        return total


TARGET = TvmTarget()
