"""Loaded programs: methods opened when they are first used, and whose states the buffers hold."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnic.errors import BundleError, InputError, MissingDeviceError
from omnic.targets.executorch import runtime
from omnic.targets.executorch.delegates import DELEGATES, missing_device
from omnic.targets.executorch.methods import DECODE, PREFILL, VERIFY
from omnic.targets.executorch.outside import DATA_FILE
from omnic.targets.executorch.quiet import quiet

# It is imported when a program is opened; whether it is there is said at once.
if find_spec("executorch") is None:
    raise ModuleNotFoundError("No module named 'executorch'", name="executorch")

__all__ = ["Program", "RowStates", "open_program"]

_POOL = threading.Lock()
_sized: list[int] = []


def _use_threads(count: int) -> None:
    """Set the threads of the process's pool, once: to set them after a program was loaded crashes ExecuTorch 1.5.1."""
    with _POOL:
        if not _sized:
            runtime.set_threads(count)
            _sized.append(count)


def open_program(path: Path, threads: int = 1, data: Path | None = None, *, trace: bool = False) -> Any:
    """Load a program file with ExecuTorch's runtime.

    Args:
        path: of the program.
        threads: of the process's pool, if this is the first program.
        data: file of the weights, where they lie outside the program.
        trace: let its event tracer time every operator.

    Raises:
        BundleError: a file is missing, or the runtime refuses it.
    """
    for file in (path, data):
        if file is not None and not file.is_file():
            raise BundleError(
                f"{file.parent}: the bundle has no file '{file.name}'", "copy the bundle again, or compile it again"
            )
    with quiet():
        _use_threads(threads)
        try:
            return runtime.load(path, data, trace=trace)
        except RuntimeError as error:
            raise BundleError(
                f"{path}: ExecuTorch refuses it: {str(error).splitlines()[0]}",
                "copy the bundle again, or compile it again",
            ) from error


class RowStates:
    """The states of one row while the buffers hold another's.

    Attributes:
        tensors: by name, None while the buffers hold them or before the first token.
    """

    def __init__(self, tensors: list[Tensor] | None = None) -> None:
        self.tensors = tensors


class Program:
    """A program of a bundle, shared by every session and fork of it.

    Args:
        folder: of the bundle.
        threads: of the process's pool, if this is the first program.
        trace: let ExecuTorch's event tracer time every operator.

    Raises:
        BundleError: a file is missing, or the runtime refuses it.
        MissingDeviceError: its delegate computes on a device that this machine is not.
    """

    def __init__(self, folder: Path, threads: int = 1, *, trace: bool = False) -> None:
        self.folder = folder
        path = folder / "program.json"
        if not path.is_file():
            raise BundleError(
                f"{folder}: the bundle has no file 'program.json'", "copy the bundle again, or compile it again"
            )
        self.about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        delegate = str(self.about["delegate"])
        needs = missing_device(delegate)
        if needs:
            raise MissingDeviceError(
                f"{folder}: the program is for the {DELEGATES[delegate].title} delegate of ExecuTorch", needs
            )
        data = folder / DATA_FILE if self.about.get("weights") == "ptd" else None
        self.handle = open_program(folder / "program.pte", threads, data, trace=trace)
        self._methods: dict[str, Any] = {}
        self._active: weakref.ref[RowStates] | None = None
        self.explicit = self.about["state"] == "explicit"

    def method(self, name: str) -> Any:
        """Return a loaded method.

        Raises:
            InputError: the program has none of that name.
            BundleError: an operator or a delegate of it is missing from this runtime.
        """
        if name not in self._methods:
            if name not in self.handle.method_names:
                raise InputError(f"this bundle has no program '{name}'", "the model has no such block")
            with quiet():
                try:
                    self._methods[name] = self.handle.load_method(name)
                except RuntimeError as error:
                    raise BundleError(
                        f"{self.folder}: ExecuTorch cannot load the method {name}: {str(error).splitlines()[0]}",
                        "this runtime may lack an operator of it: install the executorch that compiled it",
                    ) from error
        return self._methods[name]

    def choose(self, function: str, count: int, rows: int = 0) -> str:
        """Return the method that computes ``count`` tokens of a function and the logits of ``rows`` of them."""
        if function != "forward":
            return function
        fixed = f"{VERIFY}{count}"
        if rows == count and fixed in self.about["methods"]:
            return fixed
        return DECODE if count == 1 or PREFILL not in self.about["methods"] else PREFILL

    def run(
        self, function: str, states: RowStates, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one row's call; every token is valid."""
        name = self.choose(function, inputs["positions"].shape[1], inputs["rows"].shape[1])
        about, method = self.about["methods"][name], self.method(name)
        arguments = [_tensor(inputs[n]) for n in about["inputs"]]
        if self.explicit:
            assert states.tensors is not None
            at = {n: i for i, n in enumerate(self.about["states"])}
            arguments += [states.tensors[at[n]] for n in about["states"]]
        else:
            self.activate(states)
        found = self._execute(method, arguments)
        count = len(about["results"])
        if self.explicit:
            assert states.tensors is not None
            for state, tensor in zip(about["states"], found[count:], strict=True):
                states.tensors[list(self.about["states"]).index(state)] = tensor
        return {r["name"]: t.numpy() for r, t in zip(about["results"], found[:count], strict=True)}

    @staticmethod
    def _execute(method: Any, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode():
            return method.execute(arguments)

    # -- whose states the buffers hold
    def activate(self, states: RowStates) -> None:
        """Let the buffers hold ``states``; those of another row are kept in its tensors."""
        before = None if self._active is None else self._active()
        if before is states:
            return
        if before is not None:
            before.tensors = self._saved()
        if states.tensors is not None:
            self._execute(self.method("restore"), states.tensors)
            states.tensors = None
        self._active = weakref.ref(states)

    def tensors(self, states: RowStates) -> list[Tensor]:
        """Return a copy of the states of a row."""
        holds = self._active is not None and self._active() is states
        if holds and not self.explicit:
            return self._saved()
        return [t.clone() for t in states.tensors or []]

    def replace(self, states: RowStates, tensors: list[Tensor]) -> None:
        """Give a row other states."""
        if not self.explicit and self._active is not None and self._active() is states:
            self._active = None
        states.tensors = tensors

    def _saved(self) -> list[Tensor]:
        if not self.about["states"]:
            return []
        return [t.clone() for t in self._execute(self.method("save"), [])]


def _tensor(array: NDArray[Any]) -> Tensor:
    kind = np.int64 if array.dtype.kind in "iu" else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, kind))
