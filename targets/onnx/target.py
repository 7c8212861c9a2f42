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
from omnic.ir.types import Storage, TensorType
from omnic.ir.weights import Source
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.bundle import Bundle
from omnic.targets.base import EmitRequest, Emitted, Phase, Ran, Target
from omnic.targets.onnx.blocks import blocks_of
from omnic.targets.onnx.caps import CAPS, PROFILE_CAPS
from omnic.targets.onnx.emit import TABLE_FILE, emit
from omnic.targets.onnx.profile import profile, ran
from omnic.targets.onnx.program import describe, run_part, run_whole
from omnic.targets.onnx.tensors import ProgramSource

__all__ = ["TARGET", "OnnxTarget"]

#: name -> values, the default first
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "profile": tuple(PROFILE_CAPS),
    "ep": ("cpu",),
    "accuracy_level": (4, 0),
    "prepacked": (False, True),
}


class OnnxTarget(Target):
    """ONNX programs for ONNX Runtime.

    Options: ``profile`` (``fused``, the default, with ``com.microsoft`` operators; ``plain`` with the
    standard set alone), ``ep`` (execution provider: ``cpu``), ``accuracy_level`` (of products with stored weights:
    4, the default, quantises activations to 8 bits by block; 0 keeps them in f32), ``prepacked`` (a second copy of
    the weights, packed for this processor, that sessions map; false by default).
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
            known = {str(v).lower(): v for v in OPTIONS[name]}
            if str(value).lower() not in known:
                raise InputError(f"target onnx: {name} must be one of {', '.join(known)}, not '{value}'")
            found[name] = known[str(value).lower()]
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

    def ran(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Ran]:
        """Return the operators of a decoded token, and the provider of each, from ONNX Runtime's profiler."""
        return ran(bundle, tokens, steps, threads)

    def disk_bytes(self, module: Module) -> int:
        """Plain weights are f32 whatever the spec stores, scales too; small models pay for page alignment."""
        return sum(_disk_bytes(w.type) for w in module.weights.values()) + 64_000_000


def _disk_bytes(type: TensorType) -> int:
    numbers = fixed_shape(type)
    count = int(np.prod(numbers, dtype=np.int64))
    if not isinstance(type.element, Storage):
        return 4 * count
    form = blocks_of(type.element, numbers[-1])
    if isinstance(form, str):
        return 2 * count
    return count // max(numbers[-1], 1) * (form.row_bytes + 5 * form.count)


TARGET = OnnxTarget()
