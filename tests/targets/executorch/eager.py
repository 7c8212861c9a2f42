"""Sessions over the torch modules that are exported: what a program computes, without lowering it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.targets.executorch.coded import with_activations
from omnic.targets.executorch.emit import coded_weights, describe, legalised, load_weights
from omnic.targets.executorch.lower import LOWERINGS
from omnic.targets.executorch.methods import methods_of, new_states
from omnic.targets.executorch.module import FunctionModule
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.session import ExecutorchSession
from omnic.targets.executorch.target import TARGET


class _Method:
    def __init__(self, run: Any) -> None:
        self._run = run

    def execute(self, arguments: list[Tensor]) -> list[Tensor]:
        # What a program gives are copies, and what it is given it does not keep.
        return [t.clone() for t in self._run(*[a.clone() for a in arguments])]


class EagerProgram(Program):
    """A program whose methods are the modules themselves."""

    def __init__(self, module: Module, weights: WeightStore, **options: Any) -> None:
        from executorch.extension.llm.custom_ops import custom_ops as _  # noqa: F401  (registers llama::*)

        settled: Mapping[str, Any] = {**TARGET.options({"runner": False, **options}), "verify": ()}
        ready = legalised(module)
        self.module = with_activations(ready, {n for n, why in coded_weights(ready).items() if why is None})
        numbers = load_weights(self.module, weights.with_module(self.module))
        self.buffers = new_states(self.module)
        methods = methods_of(self.module, settled)
        self.about = describe(self.module, methods, settled)
        self.explicit = settled["state"] == "explicit"
        self._active = None
        self._methods: dict[str, Any] = {
            m.name: _Method(
                FunctionModule(self.module, m.function, numbers, self.buffers, LOWERINGS, in_place=not self.explicit)
            )
            for m in methods
            if m.kind == "phase" and m.function is not None
        }
        self._methods |= {"save": _Method(self._save), "restore": _Method(self._restore)}

    def _save(self) -> list[Tensor]:
        return list(self.buffers.values())

    def _restore(self, *given: Tensor) -> list[Tensor]:
        for buffer, tensor in zip(self.buffers.values(), given, strict=True):
            buffer.copy_(tensor)
        return [torch.zeros(1)]


def eager_session(module: Module, weights: WeightStore, **options: Any) -> ExecutorchSession:
    """Return a session of one row over the modules of ``module``."""
    program = EagerProgram(module, weights, **options)
    return ExecutorchSession(program, program.module)
