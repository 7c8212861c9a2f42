"""Lowering of methods to the bytes of a .pte, and the cache of what was lowered before.

Lowering is minutes of work for a model that loads in a moment, so what came out is kept in this user's cache folder
under the hash of all that went in: the text of the IR, every number of the weights, the options, and the versions of
ExecuTorch, torch and this target.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from omnic.targets.executorch.methods import Method, exported, new_states

__all__ = ["CACHE_BYTES", "cache_folder", "keep", "kept", "lower_methods", "lowered_key", "quiet"]

#: what the cache may hold; the programs used longest ago go first
CACHE_BYTES = 4 << 30
#: modules of this target that a program depends on
_SHAPING = ("attend", "coded", "lower", "lowered", "methods", "module")
_PACKAGES = ("executorch", "torch", "torchao")


def cache_folder() -> Path:
    """Return the folder of this user's cache where lowered programs are kept (XDG Base Directory, 0.8)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "omnic" / "executorch"


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


def kept(key: str, folder: Path | None = None) -> Path | None:
    """Return the file of a program lowered before, None when there is none."""
    path = (folder or cache_folder()) / f"{key}.pte"
    if not path.is_file():
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return path


def keep(key: str, program: bytes, folder: Path | None = None) -> None:
    """Keep a program; it appears whole or not at all, and what was used longest ago makes room for it."""
    place = folder or cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f".{key}.{os.getpid()}"
    try:
        partial.write_bytes(program)
        partial.replace(place / f"{key}.pte")
    finally:
        partial.unlink(missing_ok=True)
    held = sorted(place.glob("*.pte"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for path in held:
        total += path.stat().st_size
        if total > CACHE_BYTES and path.stem != key:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and torchao's remarks on what they could not load, which nobody can act on, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def partitioners(delegate: str) -> list[Any]:
    """Return the partitioners of a delegate; ``portable`` has none."""
    if delegate == "portable":
        return []
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


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
    with quiet():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.extension.llm.custom_ops import custom_ops as _  # noqa: F401  (registers llama::*)

        states = new_states(module)
        programs: dict[str, Any] = {}
        with torch.no_grad():
            for done, method in enumerate(methods):
                progress(f"export {method.name}", done / len(methods))
                programs[method.name] = export_one(module, method, weights, states, options)
            progress(f"lower {', '.join(programs)}", 0.0)
            edge = to_edge_transform_and_lower(
                programs,
                partitioner={name: partitioners(str(options["delegate"])) for name in programs},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods=dict(constants) or None,
            )
            progress("plan memory", 0.0)
            # The text runner gives no memory for results, so the plan has to.
            planning = MemoryPlanningPass(
                share_mutable_buffers=True, alloc_graph_input=False, alloc_graph_output=bool(options.get("runner"))
            )
            return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
