"""Lowering of methods to the bytes of a .pte, and the key by which what came out is kept.

Lowering is minutes of work for a model that loads in a moment, so what came out is kept (:mod:`.cache`) under the hash
of all that went in: the text of the IR, every number of the weights, the options, and the versions of ExecuTorch, torch
and this target.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.targets.base import Progress
from omnic.targets.executorch.coded import Coded, tensors_of
from omnic.targets.executorch.delegates import partitioners
from omnic.targets.executorch.methods import Method, exported, new_states
from omnic.targets.executorch.outside import outside_tag, tag_weights
from omnic.targets.executorch.quiet import quiet
from omnic.targets.executorch.shortened import decomposed, without_idle_passes
from omnic.targets.executorch.traced import traced

__all__ = ["lower_methods", "lowered_key"]

#: modules of this target that a program depends on
_SHAPING = ("attend", "coded", "codes", "delegates", "lower", "lowered", "methods", "module", "outside", "shortened",
            "states", "traced")
_PACKAGES = ("executorch", "torch", "torchao")


@cache
def _ours() -> str:
    """Return the hash of this target's source: another lowering is another program."""
    digest = hashlib.sha256()
    for name in _SHAPING:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def lowered_key(module: Module, weights: Mapping[str, Tensor | Coded], facts: Mapping[str, Any]) -> str:
    """Return the key of a program: the hash of all that it depends on."""
    digest = hashlib.sha256()
    versions = {name: version(name) for name in _PACKAGES}
    digest.update(json.dumps([_ours(), versions, dict(facts)], sort_keys=True, default=str).encode())
    digest.update(print_module(module).encode())
    for name, tensor in weights.items():
        digest.update(name.encode())
        for part in tensors_of(tensor):
            digest.update(part.numpy().reshape(-1).view("u1").data)
    return digest.hexdigest()


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Look for cycles among objects seldom: a lowering makes millions that live to its end, and a tenth of its time
    went into looking through them.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def lower_methods(
    module: Module,
    methods: Sequence[Method],
    weights: Mapping[str, Tensor | Coded],
    options: Mapping[str, Any],
    constants: Mapping[str, Any],
    progress: Progress,
    export_one: Callable[..., Any] = exported,
) -> Any:
    """Return the ExecuTorch program of methods, from ``to_executorch``.

    Raises:
        InputError: ExecuTorch cannot take an operator; it says which.
    """
    with quiet(), _seldom_collected():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.extension.llm.custom_ops import custom_ops as _  # noqa: F401  (registers llama::*)

        states = new_states(module)
        programs: dict[str, Any] = {}
        outside, delegate = options.get("weights") == "ptd", str(options["delegate"])
        # Reading and writing states is copying, which no delegate has to be asked for.
        taken = {m.name: partitioners(delegate) if m.function is not None else [] for m in methods}
        with torch.no_grad():
            for done, method in enumerate(methods):
                progress(f"export {method.name}", done / len(methods))
                with traced():
                    program = export_one(module, method, weights, states, options)
                wanted = {op for p in taken[method.name] for op in p.ops_to_not_decompose(program)[0]}
                programs[method.name] = decomposed(program, wanted)
                if outside:
                    tag_weights(programs[method.name])
            progress(f"lower {', '.join(programs)}", 0.0)
            with without_idle_passes():
                edge = to_edge_transform_and_lower(
                    programs,
                    partitioner=taken,
                    compile_config=EdgeCompileConfig(_check_ir_validity=False),
                    constant_methods=dict(constants) or None,
                )
            progress("plan memory", 0.0)
            # The text runner gives no memory for results, so the plan has to.
            planning = MemoryPlanningPass(
                share_mutable_buffers=True, alloc_graph_input=False, alloc_graph_output=bool(options.get("runner"))
            )
            return edge.to_executorch(
                ExecutorchBackendConfig(
                    memory_planning_pass=planning, external_constants=outside_tag if outside else False
                )
            )
