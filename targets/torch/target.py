"""The torch target as the compiler sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError, nearest
from omnic.ir.graph import Function, Module, Node, Param, Result, Value
from omnic.ir.text import parse_module
from omnic.ir.weights import SafetensorsSource, Source, WeightStore, saved
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions
from omnic.targets.base import EmitRequest, Emitted, Phase, Target
from omnic.targets.torch import emit
from omnic.targets.torch.caps import CAPS
from omnic.targets.torch.inference import InferenceModule, load_weights, new_states
from omnic.targets.torch.kernels import to_blocks
from omnic.targets.torch.profile import profile
from omnic.targets.torch.session import WEIGHTS_FILE, load
from omnic.targets.torch.states import Rows

__all__ = ["TARGET", "TorchTarget"]

_MODULE_FILE = "module.ir"


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
        module = saved(_module(bundle))
        part, states = _part(module.function(function), inputs, names)
        small = replace(
            module, functions={function: part}, weights={n: w for n, w in module.weights.items() if n in part.weights()}
        )
        store = WeightStore.load(module, bundle / WEIGHTS_FILE)
        batch = next((len(a) for a in inputs.values() if np.ndim(a)), 1)
        buffers = new_states(module, batch)
        given: dict[str, torch.Tensor] = {}
        for name, array in inputs.items():
            tensor = torch.as_tensor(np.ascontiguousarray(array))
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
        target = _module(bundle).function(function)
        hidden = _state_values(target)
        return tuple(v.name for node in target.nodes for v in node.results if v.type.is_float and v not in hidden)

    def profile(self, bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
        """Run a prefill and ``steps`` single tokens with a clock on every line of the emitted function."""
        return profile(load(bundle, SessionOptions(threads=threads)), tokens, steps)

    def weights(self, bundle: Path) -> Source:
        """Return the weights as the program holds them."""
        return SafetensorsSource(bundle / WEIGHTS_FILE)


def _module(bundle: Path) -> Module:
    path = bundle / _MODULE_FILE
    if not path.is_file():
        raise BundleError(
            f"{bundle}: the bundle has no file '{_MODULE_FILE}'", "copy the bundle again, or compile it again"
        )
    return parse_module(path.read_text(encoding="utf-8"), str(path))


def _state_values(function: Function) -> dict[Value, str]:
    """Return the values that are a state before or after a write -> its name."""
    found = {p.value: p.state for p in function.params if p.state is not None}
    for node in function.nodes:
        if node.op in ("cache_write", "cache_move", "cache_close") and node.operands[0] in found:
            found[node.result] = found[node.operands[0]]
    return found


def _part(function: Function, inputs: Mapping[str, Any], names: Sequence[str]) -> tuple[Function, dict[str, str]]:
    """Return the function from ``inputs`` to ``names``, and which inputs are states."""
    values = {v.name: v for v in function.values()}
    for name in (*names, *inputs):
        if name not in values:
            near = nearest(name, list(values))
            raise InputError(f"@{function.name} has no value %{name}", f"did you mean '%{near}'?" if near else None)
    states = _state_values(function)
    for name in names:
        if values[name] in states:
            raise InputError(
                f"%{name} is a state, which is a buffer here", "ask for the value that reads it (cache_read)"
            )
    stop = {values[n] for n in inputs}
    empty = {p.value: p.state for p in function.params if p.state is not None and p.value not in stop}
    producers = {v: node for node in function.nodes for v in node.results}
    wanted: set[Node] = set()
    used: set[Value] = set()
    queue = [values[n] for n in names]
    while queue:
        value = queue.pop()
        if value in used or value.weight:
            continue
        used.add(value)
        if value in stop or value in empty:
            continue
        if value not in producers:
            raise InputError(f"%{value.name} is needed and is not among the inputs")
        node = producers[value]
        if node not in wanted:
            wanted.add(node)
            queue += list(node.inputs())
    params = [Param(values[n], states.get(values[n])) for n in inputs if values[n] in used]
    params += [Param(v, s) for v, s in empty.items() if v in used]
    nodes = tuple(n for n in function.nodes if n in wanted)
    results = tuple(Result(n, values[n]) for n in names)
    return Function(function.name, tuple(params), nodes, results), {
        n: states[values[n]] for n in inputs if values[n] in states
    }


TARGET = TorchTarget()
