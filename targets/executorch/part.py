"""Values inside a function: the part between given and wanted values, lowered anew from the saved program's weights.

A .pte shows what its methods return and nothing between.  So the IR of the part is lowered again, the same way, with
the weights that were read back from the program's own bytes, and run; its shapes are those of the given arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import export

from omnic.ir.graph import Module, Param
from omnic.ir.types import Storage, TensorType
from omnic.ir.weights import WeightStore, saved
from omnic.passes.specialise import substitute_dims
from omnic.targets.cut import module_of, part_of
from omnic.targets.executorch.cache import keep, kept
from omnic.targets.executorch.codes import buffers_of, encode
from omnic.targets.executorch.emit import load_weights
from omnic.targets.executorch.files import ABOUT_FILE, PROGRAM_FILE, TABLE_FILE
from omnic.targets.executorch.lower import LOWERINGS
from omnic.targets.executorch.lowered import lower_methods, lowered_key
from omnic.targets.executorch.methods import Method, new_states, token_state, zeros_of
from omnic.targets.executorch.module import FunctionModule
from omnic.targets.executorch.program import open_program
from omnic.targets.executorch.stored import ProgramSource

__all__ = ["run_part"]


def run_part(
    bundle: Path, inputs: Mapping[str, NDArray[Any]], names: Sequence[str], function: str
) -> dict[str, NDArray[np.float32]]:
    """Run the part of ``function`` between ``inputs`` and ``names``, row by row.

    Raises:
        InputError: a name is not a value of the function, or the inputs do not determine it.
    """
    module = module_of(bundle)
    part, _ = part_of(module.function(function), inputs, names)
    batch = max((len(np.atleast_1d(inputs[p.value.name])) for p in part.params if p.value.name in inputs), default=1)
    sizes: dict[str, int] = {"B": 1}
    for param in part.params:
        if param.value.name in inputs:
            shape = np.shape(inputs[param.value.name])
            sizes |= {
                str(d): n
                for d, n in zip(param.value.type.shape[1:], shape[1:], strict=True)
                if not isinstance(d, int) and str(d) in module.dims
            }
    for dim in ("T", "R"):
        sizes.setdefault(dim, 1)
    small = replace(
        module, functions={function: part}, weights={n: w for n, w in module.weights.items() if n in part.weights()}
    )
    source = ProgramSource(bundle / PROGRAM_FILE, bundle / TABLE_FILE)
    store = WeightStore.loaded(saved(module), source)
    weights = load_weights(small, store.with_module(saved(small)))
    method = Method("part", "phase", substitute_dims(part, dict(sizes)), function, ("T", "R"))
    # A state that the caller gives may be one after a write: it is a parameter like any other.
    states = new_states(module)
    about = json.loads((bundle / ABOUT_FILE).read_text(encoding="utf-8"))
    options = {"delegate": about["delegate"], "state": "explicit"}
    key = lowered_key(small, weights, {"part": sorted(sizes.items()), **options})
    path = kept(key)
    if path is None:
        made = lower_methods(small, [method], weights, options, {}, lambda what, share: None, _exported)
        keep(key, bytes(made.buffer))
        path = kept(key)
        assert path is not None
    loaded = open_program(path).load_method("part")
    rows: list[list[NDArray[Any]]] = []
    for row in range(batch):
        given: list[torch.Tensor] = []
        for param in part.params:
            array = inputs.get(param.value.name)
            if array is None:
                assert param.state is not None
                given += [states[b] for b in buffers_of(param.state, states).values()]
                continue
            tensor = torch.as_tensor(np.ascontiguousarray(np.asarray(array)[row : row + 1]))
            tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
            if param.state is not None and token_state(module, param.state):
                given += _as_state(tensor, module.states[param.state].type, states[param.state])
            else:
                given.append(tensor)
        rows.append([t.numpy() for t in loaded.execute(given)[: len(names)]])
    return {name: np.concatenate([r[at] for r in rows]).astype(np.float32) for at, name in enumerate(names)}


def _as_state(tensor: torch.Tensor, type: TensorType, like: torch.Tensor) -> list[torch.Tensor]:
    """Return numbers in the order of the IR as the buffers of a state."""
    _, slots, heads, _ = like.shape
    numbers = tensor.reshape(1, heads, slots, -1).transpose(1, 2).contiguous()
    if isinstance(type.element, Storage):
        return list(encode(numbers, type.element).values())
    return [numbers.to(like.dtype)]


def _exported(module: Module, method: Method, weights: Any, states: Any, options: Any) -> Any:
    """Export a part: its sizes are numbers, its states parameters that are given and not returned."""
    function = method.function
    assert function is not None
    inner = FunctionModule(module, function, weights, states, LOWERINGS, in_place=False).eval()
    arguments = [example for p in function.params for example in _examples(p, states)]
    return export(inner, tuple(arguments), strict=False)


def _examples(param: Param, states: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    if param.state is None:
        return [zeros_of(param.value)]
    return [torch.zeros_like(states[b]) for b in buffers_of(param.state, states).values()]
