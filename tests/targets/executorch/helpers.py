"""Programs of small modules for ExecuTorch: run as torch modules, or lowered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.executorch.emit import legalised, load_weights
from omnic.targets.executorch.lower import LOWERINGS
from omnic.targets.executorch.methods import new_states
from omnic.targets.executorch.module import FunctionModule
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.session import ExecutorchSession
from omnic.targets.executorch.target import TARGET


def run_eager(module: Module, inputs: dict[str, Any], weights: WeightStore | None = None) -> dict[str, Any]:
    """Run @forward once from empty states as the torch module that is exported; its results but for states."""
    from executorch.extension.llm.custom_ops import custom_ops as _  # noqa: F401  (registers llama::*)

    ready = legalised(module)
    function = ready.function()
    arguments = [torch.as_tensor(np.array(inputs[p.value.name])) for p in function.params if p.state is None]
    numbers = load_weights(ready, weights.with_module(ready)) if weights is not None else {}
    found = FunctionModule(ready, function, numbers, new_states(ready), LOWERINGS)(*arguments)
    results = [r for r in function.results if r.state is None]
    return {r.name: (t.float() if t.is_floating_point() else t).numpy() for r, t in zip(results, found, strict=True)}


def emitted(module: Module, weights: WeightStore, out: Path, /, **options: Any) -> Emitted:
    """Emit into a new folder; the module is written beside the program, as a bundle has it."""
    from omnic.ir.text import print_module

    out.mkdir(parents=True, exist_ok=True)
    request = EmitRequest(module, weights, out, TARGET.options(options), lambda what, share: None)
    made = TARGET.emit(request)
    (out / "module.ir").write_text(print_module(made.module), encoding="utf-8")
    return made


def session_of(module: Module, out: Path) -> ExecutorchSession:
    """Open what :func:`emitted` wrote."""
    return ExecutorchSession(Program(out), module)
