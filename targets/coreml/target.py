"""The coreml target: options, emission and the look inside a saved package."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError
from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.text import parse_module
from omnic.ir.types import DType
from omnic.ir.weights import Source
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions
from omnic.targets.base import EmitRequest, Emitted, Phase, Target
from omnic.targets.coreml.caps import CAPS
from omnic.targets.coreml.files import NAMES_FILE
from omnic.targets.coreml.matrix import check_device
from omnic.targets.coreml.options import parse_options

__all__ = ["TARGET", "CoremlTarget"]

# It takes seconds to import, which a compile that finds its bundle finished does not need.
if find_spec("coremltools") is None:
    raise ModuleNotFoundError("No module named 'coremltools'", name="coremltools")


class CoremlTarget(Target):
    """ML Programs of iOS 18 and macOS 15 on, for Core ML.

    Options: ``compute`` (``cpu``, the default; ``gpu``; ``ane``), ``state`` (``explicit``, ``stateful``), ``length``
    (``fixed``, ``enumerated``, ``ranged``) with ``sizes``, ``verify`` (lengths of functions that give every token's
    logits), ``precision`` (``f32``, ``f16``), ``device`` (a chip of the device matrix, or ``all``), ``chunk_bytes``
    (most bytes of one package; a larger model is cut between its blocks).
    """

    name: ClassVar[str] = "coreml"
    caps: ClassVar[Caps] = CAPS

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with defaults filled in."""
        options = parse_options(given)
        check_device(options.device)
        return options.record()

    def emit(self, request: EmitRequest) -> Emitted:
        """Write ``model.mlpackage`` (or several) with a function for each length, and ``coreml.json``, its names."""
        from omnic.targets.coreml.emit import emit

        return emit(request)

    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the saved program from empty states and return the values called ``names``."""
        from omnic.targets.coreml.capture import run_whole

        return run_whole(_package(bundle), function, inputs, names)

    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run only the part of the saved program between ``inputs`` and ``names``."""
        from omnic.targets.coreml.capture import run_part

        return run_part(_package(bundle), function, inputs, names)

    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the values of the IR that every function of the package has."""
        from omnic.targets.coreml.capture import preserved

        return preserved(_package(bundle), function)

    def weights(self, bundle: Path) -> Source:
        """Return the weights as they lie in the package's weight file, in the IR's own layouts."""
        from omnic.targets.coreml.readback import PackageSource

        path = bundle / NAMES_FILE
        if not path.is_file():
            raise BundleError(f"{bundle}: the bundle has no file '{NAMES_FILE}'",
                              "copy the bundle again, or compile it again")
        about = json.loads(path.read_text(encoding="utf-8"))
        return PackageSource(bundle, about["packages"], _module(bundle), about["weights"], bool(about["tables"]))

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Time a prefill and ``steps`` single tokens; the time of a scope is not known, so all of it is shared."""
        from omnic.targets.coreml.session import load

        session = load(bundle, SessionOptions(threads=threads))
        began = time.perf_counter()
        session.forward(tokens[None], rows=np.array([[len(tokens) - 1]]))
        first = time.perf_counter()
        for _ in range(steps):
            session.forward(tokens[None, -1:])
        return [Phase("prefill", len(tokens), {"": first - began}),
                Phase("decode", steps, {"": time.perf_counter() - first})]

    def disk_bytes(self, module: Module) -> int:
        """Plain weights are fp32 or fp16 whatever the spec stores."""
        wide = (w.type.with_element(DType.F32) if isinstance(w.type.element, DType) else w.type
                for w in module.weights.values())
        return sum(type.bytes() for type in wide) + 64_000_000


def _module(bundle: Path) -> Module:
    return parse_module((bundle / "module.ir").read_text(encoding="utf-8"), str(bundle / "module.ir"))


def _package(bundle: Path) -> Any:
    from omnic.targets.coreml.program import Package

    return Package(bundle, _module(bundle))


TARGET = CoremlTarget()
