"""The executorch target: options, emission and the look inside a saved program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.weights import Source
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.bundle import Bundle
from omnic.targets.base import EmitRequest, Emitted, Phase, Target
from omnic.targets.cut import float_values, module_of
from omnic.targets.executorch.caps import CAPS
from omnic.targets.executorch.files import PROGRAM_FILE, TABLE_FILE
from omnic.targets.executorch.options import parse_options

__all__ = ["TARGET", "ExecutorchTarget"]

# They take seconds to import, which a compile that finds its bundle finished does not need.
for _package in ("torch", "executorch", "torchao"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(f"No module named '{_package}'", name=_package)


class ExecutorchTarget(Target):
    """A .pte for ExecuTorch.

    Options: ``delegate`` (``xnnpack``, the default; ``portable``; ``coreml`` and ``vulkan``, which are built and not
    run here), ``state`` (``buffers``, the default, of the program; ``explicit`` inputs and outputs), ``runner`` (a
    method ``forward`` as ExecuTorch's text runner calls it; true by default), ``verify`` (lengths of the methods
    ``verify_K``), ``weights`` (``inside``, the default, or ``ptd``).
    """

    name: ClassVar[str] = "executorch"
    caps: ClassVar[Caps] = CAPS

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with defaults filled in."""
        return parse_options(given)

    def emit(self, request: EmitRequest) -> Emitted:
        """Write ``program.pte``, ``program.json`` (what it is called with) and ``weights.json`` (where they lie)."""
        from omnic.targets.executorch.emit import emit

        return emit(request)

    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the saved program once from empty states and return the values called ``names``.

        What its methods return comes from the program itself; any other value from its function lowered again with
        the program's own weights (:mod:`omnic.targets.executorch.part`).
        """
        from omnic.targets.executorch.part import run_part
        from omnic.targets.executorch.program import Program, RowStates

        program = Program(bundle)
        results = {r["value"]: r["name"] for r in program.about["methods"][program.choose(function, 2)]["results"]}
        length = np.asarray(inputs["length"]) if "length" in inputs else np.zeros(0)
        full = bool(len(length)) and bool((length == np.shape(inputs["positions"])[1]).all())
        if not full or any(n not in results for n in names) or program.explicit:
            return run_part(bundle, inputs, names, function)
        rows: list[dict[str, NDArray[np.float32]]] = []
        for row in range(len(length)):
            given = {n: np.asarray(a)[row : row + 1] for n, a in inputs.items()}
            rows.append(program.run(function, RowStates(), given))
        return {n: np.concatenate([r[results[n]] for r in rows]) for n in names}

    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run only the part of the function between ``inputs`` and ``names``, lowered with the program's weights."""
        from omnic.targets.executorch.part import run_part

        return run_part(bundle, inputs, names, function)

    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the float values that :meth:`capture` can show."""
        return float_values(module_of(bundle).function(function))

    def weights(self, bundle: Path) -> Source:
        """Return the weights as they lie in the program's bytes."""
        from omnic.targets.executorch.stored import ProgramSource

        return ProgramSource(bundle / PROGRAM_FILE, bundle / TABLE_FILE)

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill and ``steps`` single tokens under ExecuTorch's event tracer."""
        from omnic.targets.executorch.profile import profile

        return profile(bundle, tokens, steps, threads)

    def disk_bytes(self, module: Module) -> int:
        """Plain weights are f32 whatever the spec stores; an embedding that is a head too lies in the file twice."""
        count = sum(int(np.prod(fixed_shape(w.type), dtype=np.int64)) for w in module.weights.values())
        return 6 * count + 64_000_000


TARGET = ExecutorchTarget()
