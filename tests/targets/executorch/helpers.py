"""Programs of small modules for ExecuTorch: run as torch modules, or lowered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.executorch.emit import legalised
from omnic.targets.executorch.lower import LOWERINGS
from omnic.targets.executorch.module import FunctionModule
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.session import ExecutorchSession
from omnic.targets.executorch.target import TARGET


def run_eager(module: Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run @forward of a module without weights and states as the torch module that is exported."""
    ready = legalised(module)
    function = ready.function()
    arguments = [torch.as_tensor(np.asarray(inputs[p.value.name])) for p in function.params]
    found = FunctionModule(ready, function, {}, {}, LOWERINGS, in_place=False)(*arguments)
    return {r.name: t.numpy() for r, t in zip(function.results, found, strict=True)}


def emitted(module: Module, weights: WeightStore, out: Path, **options: Any) -> Emitted:
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
