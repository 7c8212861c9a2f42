"""Running a module on real text in torch: the executor that compiles lend to calibrating passes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from omnic.errors import InputError, nearest
from omnic.ir.executor import Outputs, Visit
from omnic.ir.graph import Function, Module, Node, Result, Value
from omnic.ir.rewrite import eliminate_dead_code
from omnic.ir.weights import WeightStore
from omnic.targets.torch.inference import InferenceModule, legalised, load_weights, new_states

__all__ = ["TorchExecutor", "torch_executor"]

Ints = npt.NDArray[np.int64]

#: tokens of one call: large enough for full products, small enough that what is observed stays in memory
CALL_TOKENS = 4096


def torch_executor(module: Module, weights: WeightStore) -> TorchExecutor:
    """Return an :class:`omnic.ir.executor.Executor` of ``module`` on the torch target's kernels.

    Raises:
        InputError: the torch target excludes an op of the module.
        BundleError: a weight is missing, misfits or is not finite.
    """
    return TorchExecutor(module, weights)


@dataclass(frozen=True)
class _Probe:
    """A program that shows what some nodes read and make."""

    program: InferenceModule
    nodes: tuple[Node, ...]


class TorchExecutor:
    """One module, evaluated in f32 from empty states on as many rows of tokens as asked for.

    A state lies in a buffer that its writes change, so where :meth:`observe` visits a node that reads or makes
    a state as a whole (``cache_write``, ``cache_read``), None stands in its place.
    """

    def __init__(self, module: Module, weights: WeightStore) -> None:
        self._front = module
        self._ready = legalised(module)
        self._weights = load_weights(self._ready, weights)
        self._program = InferenceModule(self._ready, self._weights)
        self._chunk = module.dims["T"].high
        self._rows = module.dims["B"].high
        self._probes: dict[frozenset[str], _Probe] = {}

    def forward(self, tokens: Ints) -> Outputs:
        """Return what the module says about every position of i64[B, T], from empty states; f32 numbers."""
        parts: list[dict[str, npt.NDArray[Any]]] = []
        for batch in self._batches(tokens):
            calls = [found for _, found in self._calls(self._program, batch)]
            names = [n for n in ("logits", "hidden", "mtp", "verifier") if n in calls[0]]
            parts.append({n: np.concatenate([c[n].numpy() for c in calls], axis=1) for n in names})
        return Outputs(**{n: np.concatenate([p[n] for p in parts]) for n in parts[0]})

    def observe(self, tokens: Ints, nodes: Collection[str], visit: Visit) -> None:
        """Call ``visit(node, operands, results)`` for each named node of ``forward``, call by call.

        Raises:
            InputError: a name is not a node of the function.
        """
        probe = self._probe(frozenset(nodes))
        for batch in self._batches(tokens):
            for inputs, found in self._calls(probe.program, batch):
                for node in probe.nodes:
                    operands = tuple(self._shown(v, inputs, found) for v in node.operands)
                    visit(node.name, operands, tuple(self._shown(v, inputs, found) for v in node.results))  # type: ignore[misc]

    def _shown(self, value: Value | None, inputs: dict[str, Any], found: dict[str, Tensor]) -> npt.NDArray[Any] | None:
        if value is None:
            return None
        if value.weight:
            return self._weights[value.name].numpy()
        if value.name in inputs:
            return np.asarray(inputs[value.name])
        return found[value.name].numpy() if value.name in found else None

    def _probe(self, names: frozenset[str]) -> _Probe:
        """Return the program that returns what the named nodes read and make, and computes nothing else."""
        if names in self._probes:
            return self._probes[names]
        have = {n.name: n for n in self._front.function().nodes}
        for name in sorted(names - set(have)):
            near = nearest(name, sorted(have))
            hint = f"did you mean '{near}'?" if near else None
            raise InputError(f"@forward has no node '{name}'", hint)
        # The ops that torch decomposes keep their names only in the module before that.
        kept = {n.name for n in self._ready.function().nodes}
        lost = sorted(names - kept)
        if lost:
            raise InputError(f"{lost[0]} is an op that torch runs as several, so it cannot be observed")
        function = self._ready.function()
        nodes = tuple(n for n in function.nodes if n.name in names)
        probe = _Probe(self._showing(function, nodes), nodes)
        self._probes[names] = probe
        return probe

    def _showing(self, function: Function, nodes: tuple[Node, ...]) -> InferenceModule:
        params = {p.value for p in function.params}
        buffers = _state_values(function)
        wanted = dict.fromkeys(v for n in nodes for v in (*n.inputs(), *n.results)
                               if not v.weight and v not in params and v not in buffers)
        results = [*(Result(v.name, v) for v in wanted), *(r for r in function.results if r.state is not None)]
        shown = eliminate_dead_code(replace(function, results=tuple(results)))
        module = replace(self._ready, functions={"forward": shown})
        return InferenceModule(module, self._weights)

    def _batches(self, tokens: Ints) -> Iterator[Ints]:
        ids = np.atleast_2d(np.asarray(tokens, np.int64))
        step = max(1, min(self._rows, CALL_TOKENS // max(min(ids.shape[1], self._chunk), 1)))
        for first in range(0, len(ids), step):
            yield ids[first : first + step]

    def _calls(self, program: InferenceModule, tokens: Ints) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Run one batch in chunks from empty states; yield the arguments and the results of each call."""
        takes = {p.value.name for p in program.module.function().params if p.state is None}
        states = new_states(program.module, len(tokens))
        for first in range(0, tokens.shape[1], self._chunk):
            part = np.ascontiguousarray(tokens[:, first : first + self._chunk])
            batch, count = part.shape
            steps = np.repeat(np.arange(int(count))[None], batch, 0)
            every = {"tokens": part, "positions": first + steps, "start": np.full(batch, first),
                     "length": np.full(batch, count), "rows": steps,
                     "parents": np.repeat(np.arange(-1, int(count) - 1)[None], batch, 0)}
            inputs = {name: value for name, value in every.items() if name in takes}
            yield inputs, program.run("forward", states, inputs)


def _state_values(function: Function) -> set[Value]:
    """Return the values that are a state: parameters, and what writes and moves make of them."""
    found = {p.value for p in function.params if p.state is not None}
    for node in function.nodes:
        if node.op in ("cache_write", "cache_move", "cache_close") and node.operands[0] in found:
            found.add(node.results[0])
    return found
