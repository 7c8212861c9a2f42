"""The torch target as the compiler sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.weights import SafetensorsSource, Source, WeightStore, saved
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions
from omnic.targets.base import EmitRequest, Emitted, Phase, Target
from omnic.targets.cut import float_values, module_of, part_of
from omnic.targets.torch import emit
from omnic.targets.torch.caps import CAPS
from omnic.targets.torch.inference import InferenceModule, load_weights, new_states
from omnic.targets.torch.kernels import to_blocks
from omnic.targets.torch.profile import profile
from omnic.targets.torch.session import WEIGHTS_FILE, load
from omnic.targets.torch.states import Rows

__all__ = ["TARGET", "TorchTarget"]


class TorchTarget(Target):
    """Python over torch's CPU kernels: readable, trainable, batch-invariant."""

    name = "torch"
    caps = CAPS

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, of which there are none.

        Raises:
            InputError: one was given.
        """
        for name in given:
            raise InputError(f"the target torch has no option '{name}'", "it takes none: remove the key")
        return {}

    def emit(self, request: EmitRequest) -> Emitted:
        """Write the Python files and the weights."""
        return emit.compile(request.module, request.weights, request.out, request.progress)

    def capture(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the saved program once from empty states and return the values called ``names``."""
        return self.capture_part(bundle, inputs, names, function)

    def capture_part(
        self, bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str = "forward"
    ) -> dict[str, NDArray[np.float32]]:
        """Run the part of the saved program between ``inputs`` and ``names``; states not among the inputs are empty.

        Raises:
            InputError: a name is not a value of the function, or the inputs do not determine it.
        """
        module = saved(module_of(bundle))
        part, states = part_of(module.function(function), inputs, names)
        small = replace(
            module, functions={function: part}, weights={n: w for n, w in module.weights.items() if n in part.weights()}
        )
        store = WeightStore.load(module, bundle / WEIGHTS_FILE)
        batch = next((len(a) for a in inputs.values() if np.ndim(a)), 1)
        buffers = new_states(module, batch)
        given: dict[str, torch.Tensor] = {}
        for name, array in inputs.items():
            tensor = torch.as_tensor(np.array(array, order="C"))
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if name in states:
                # A copy: the program writes into it, and the array is the caller's.
                buffer = buffers[states[name]]
                if isinstance(buffer, Rows):
                    buffer.fill(tensor)
                else:
                    buffer.copy_(to_blocks(tensor))
            else:
                given[name] = tensor
        found = InferenceModule(small, load_weights(small, store.with_module(small))).run(function, buffers, given)
        return {name: found[name].float().numpy() for name in names}

    def preserved(self, bundle: Path, function: str = "forward") -> tuple[str, ...]:
        """Return the names of the float values that :meth:`capture` can show; states are shown where they are read."""
        return float_values(module_of(bundle).function(function))

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill and ``steps`` single tokens with a clock on every line of the emitted function."""
        return profile(load(bundle, SessionOptions(threads=threads)), tokens, steps)

    def weights(self, bundle: Path) -> Source:
        """Return the weights as the program holds them."""
        return SafetensorsSource(bundle / WEIGHTS_FILE)


TARGET = TorchTarget()
