"""The onnx target: options, emission and the look inside a saved program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError, nearest
from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.weights import Source
from omnic.runtime.bundle import Bundle
from omnic.targets.base import EmitRequest, Emitted, Phase, Target
from omnic.targets.onnx.caps import CAPS, PROFILE_CAPS
from omnic.targets.onnx.emit import TABLE_FILE, emit
from omnic.targets.onnx.profile import profile
from omnic.targets.onnx.program import describe, run_part, run_whole
from omnic.targets.onnx.tensors import ProgramSource

__all__ = ["TARGET", "OnnxTarget"]

OPTIONS: Mapping[str, tuple[str, ...]] = {"profile": tuple(PROFILE_CAPS), "ep": ("cpu",)}


class OnnxTarget(Target):
    """ONNX programs for ONNX Runtime.

    Options: ``profile`` (``fused``, the default, with ``com.microsoft`` operators; ``plain`` with the
    standard set alone), ``ep`` (execution provider: ``cpu``).
    """

    name: ClassVar[str] = "onnx"
    caps: ClassVar[Caps] = CAPS

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with defaults filled in."""
        found = {name: values[0] for name, values in OPTIONS.items()}
        for name, value in given.items():
            if name not in OPTIONS:
                near = nearest(name, list(OPTIONS))
                raise InputError(
                    f"target onnx has no option '{name}'",
                    f"did you mean '{near}'?" if near else f"it has: {', '.join(OPTIONS)}",
                )
            if value not in OPTIONS[name]:
                raise InputError(f"target onnx: {name} must be one of {', '.join(OPTIONS[name])}, not '{value}'")
            found[name] = value
        return found

    def emit(self, request: EmitRequest) -> Emitted:
        """Write ``<function>.onnx`` for each function, ``weights.bin`` for all, and ``weights.json``, its table."""
        return emit(request)

    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the saved program once from empty states and return the values called ``names``."""
        return run_whole(bundle, function, inputs, names)

    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run only the part of the saved program between ``inputs`` and ``names``."""
        return run_part(bundle, function, inputs, names)

    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the values of the IR that the program still has."""
        return tuple(describe(bundle, function)["shown"])

    def weights(self, bundle: Path) -> Source:
        """Return the weights as they lie in the program's data file, in the IR's own layouts."""
        path = bundle / TABLE_FILE
        if not path.is_file():
            raise BundleError(
                f"{bundle}: the bundle has no file '{TABLE_FILE}'", "copy the bundle again, or compile it again"
            )
        return ProgramSource(bundle, json.loads(path.read_text(encoding="utf-8")))

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill and ``steps`` single tokens under ONNX Runtime's profiler."""
        return profile(bundle, tokens, steps, threads)

    def disk_bytes(self, module: Module) -> int:
        """Weights are f32 whatever the spec stores; small models pay for page alignment."""
        return 4 * module.parameters() + 64_000_000


TARGET = OnnxTarget()
