"""ExecuTorch's runtime without its compiler: programs are loaded and run by the binding that the wheel brings.

``executorch.runtime`` imports ``executorch.exir``, which is the whole of the compiler and takes seconds.  The binding
below it (``executorch.extension.pybindings``) is what it calls, and loads in milliseconds beside torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["LoadedMethod", "LoadedProgram", "backend_names", "load", "set_threads"]


@cache
def binding() -> Any:
    """Return the binding, with the operators for language models and those on codes registered in its runtime."""
    found = importlib.import_module("executorch.extension.pybindings._C")
    # Registers the operators of torchao's quantised programs.
    importlib.import_module("executorch.kernels.quantized")
    # Registers llama::*; the package's own module for them imports torch's compiler too.
    spec = find_spec("executorch.extension.llm.custom_ops")
    places = [Path(p) for p in (spec.submodule_search_locations or ())] if spec is not None else []
    libraries = sorted(f for p in places for f in p.glob("*custom_ops_aot_lib.*"))
    if not libraries:
        raise ModuleNotFoundError("No module named 'executorch.extension.llm.custom_ops'", name="executorch")
    torch.ops.load_library(str(libraries[0]))
    return found


def backend_names() -> list[str]:
    """Return the delegates that this runtime has."""
    return list(binding()._get_registered_backend_names())


def set_threads(count: int) -> None:
    """Set the threads of the process's pool; after a program was loaded it crashes ExecuTorch 1.5.1."""
    binding()._unsafe_reset_threadpool(count)


class LoadedMethod:
    """A loaded method of a program."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def execute(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run it; the results are copies."""
        return self._method(inputs)


class LoadedProgram:
    """A loaded program; each method is loaded when it is first asked for, and then kept."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._methods: dict[str, LoadedMethod] = {}
        self.method_names = frozenset(program.get_method_name(i) for i in range(program.num_methods()))

    def load_method(self, name: str) -> LoadedMethod:
        """Return a method.

        Raises:
            RuntimeError: an operator or a delegate of it is missing from the runtime.
        """
        if name not in self._methods:
            self._methods[name] = LoadedMethod(self._program.load_method(name))
        return self._methods[name]

    def write_etdump_result_to_file(self, path: str, debug: str) -> None:
        """Write what the event tracer recorded."""
        self._program.write_etdump_result_to_file(path, debug)


def load(path: Path, data: Path | None = None, *, trace: bool = False) -> LoadedProgram:
    """Load a program file; ``data`` is the file of weights beside it, ``trace`` lets the event tracer record.

    Raises:
        RuntimeError: the runtime refuses it.
    """
    made = binding()._load_program(
        str(path),
        enable_etdump=trace,
        debug_buffer_size=0,
        program_verification=binding().Verification.InternalConsistency,
        data_path=None if data is None else str(data),
    )
    return LoadedProgram(made)
