"""A folder of a published model: its configuration read as a spec, its tensors as a weight source."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import BundleError, DiagnosticError, InputError
from omnic.ir.graph import Module
from omnic.ir.types import DType, Storage
from omnic.ir.weights import SafetensorsSource
from omnic.ir.weights.sources import Source, TypedSource
from omnic.ir.weights.store import fixed_shape
from omnic.models.checkpoints.config import Effect, read_config
from omnic.models.checkpoints.dialects import quantised_source
from omnic.models.checkpoints.family import Family, Tensors, family_of
from omnic.models.checkpoints.source import CheckpointSource, check_copies, check_tensors
from omnic.models.decoder import build
from omnic.spec import Spec, parse_spec, with_values

__all__ = ["CAPACITY", "Checkpoint", "effects_table", "is_checkpoint", "open_checkpoint"]

CAPACITY = 4096
"""Tokens the states of an imported model hold where nothing is said: the trained length where that is less."""

CONFIG = "config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A published model as omnic sees it.

    Attributes:
        folder: where it lies.
        family: its architecture.
        spec: the model, without files.
        module: the front module.
        source: the weights by omnic's names.
        effects: what every key of the configuration did.
    """

    folder: Path
    family: Family
    spec: Spec
    module: Module
    source: CheckpointSource
    effects: tuple[Effect, ...]

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of the configuration that omnic does not know."""
        return tuple(e.key for e in self.effects if not e.effect)


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a folder with a configuration."""
    return (path / CONFIG).is_file()


def open_checkpoint(folder: Path, *, context: int | None = None, name: str | None = None) -> Checkpoint:
    """Read a checkpoint's configuration and the headers of its weight files; no weight is read.

    Args:
        folder: with ``config.json`` and safetensors files.
        context: tokens the states shall hold.
        name: of the model; the folder's when None.

    Raises:
        BundleError: no such folder, no configuration, pickled or damaged weights, tensors that do not fit.
        InputError: a family or a value of the configuration that omnic cannot express.
    """
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a folder", "name the folder that holds config.json and the .safetensors files"
        )
    if not is_checkpoint(folder):
        raise BundleError(f"{folder} is not a model: it has no {CONFIG}", "name the folder that holds it")
    config = read_config(folder / CONFIG)
    config.capacity = CAPACITY if context is None else context
    family = family_of(config)
    quantisation = config.section("quantization_config")
    tensors = quantised_source(SafetensorsSource(_weight_files(folder)), quantisation, config.origin)
    types = tensors if isinstance(tensors, TypedSource) else None
    known = {n: None if types is None else types.typed(n) for n in tensors.names()}
    shapes = Tensors(
        {n: tensors.shape(n) if type is None else fixed_shape(type) for n, type in known.items()},
        frozenset(n for n, type in known.items() if type is not None and isinstance(type.element, Storage)),
    )
    config.tensors = shapes.shapes
    dtype = _dtype(tensors, [n for n, type in known.items() if type is None])
    described = dict(family.describe(config))
    capacity = min(CAPACITY if context is None else context, described["context"])
    data = {"model": name or _name(folder), **{key: described.pop(key) for key in ("vocab", "context")}}
    data |= {"budget": {"context": capacity}, "dtype": dtype.value, **described}
    try:
        spec = parse_spec(json.dumps(data), str(folder / "model.yaml"), syntax="yaml")
    except DiagnosticError as error:
        problems = "; ".join(d.message for d in error.diagnostics)
        raise InputError(
            f"{config.origin} describes a model that omnic cannot express: {problems}", error.diagnostics[0].hint
        ) from error
    if context is not None and context > capacity:
        try:
            spec = with_values(spec, {"budget": {"context": context}}, "--context")
        except DiagnosticError as error:
            raise InputError(f"--context {context}: {error.diagnostics[0].message}", "ask for fewer tokens") from error
    module = build(spec)
    table = family.weights(spec, shapes)
    copies = family.copies(spec, shapes) if family.copies else {}
    left_out = family.left_out(spec, shapes) if family.left_out else {}
    check_tensors(module, tensors, table, {**(family.ignored or {}), **left_out, **copies})
    check_copies(tensors, copies)
    source = CheckpointSource(tensors, table, dtype, str(folder))
    return Checkpoint(folder, family, spec, module, source, config.effects())


def _weight_files(folder: Path) -> Path:
    """Return what to read: the index of the shards, else the folder (all its safetensors files).

    Raises:
        BundleError: there is none, or only pickled ones.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return index
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    if any(folder.glob("*.safetensors")):
        return folder
    pickled = sorted({p.name for pattern in _PICKLES for p in folder.glob(pattern)})
    if pickled:
        raise BundleError(
            f"the weights of {folder} are Python pickles ({', '.join(pickled[:4])}): reading one runs code from it",
            "save it again where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT), which "
            "writes safetensors",
        )
    raise BundleError(f"{folder} holds no .safetensors file", "fetch the weights, or name the folder they lie in")


def _dtype(source: Source, names: list[str]) -> DType:
    """Return the type that most numbers of the plain tensors ``names`` have."""
    sizes: Counter[Any] = Counter()
    for name in names:
        shape = source.shape(name)
        sizes[source.read(name, ((0, 0),) * len(shape)).dtype] += int(np.prod(shape, dtype=np.int64))
    known = {d.numpy: d for d in (DType.F32, DType.F16, DType.BF16)}
    most = [known[dtype] for dtype, _ in sizes.most_common() if dtype in known]
    return most[0] if most else DType.F32


def _name(folder: Path) -> str:
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-_.")
    return text[:64] or "model"


def effects_table(effects: tuple[Effect, ...]) -> list[tuple[str, str, str]]:
    """Return (key, value, effect) of each key for printing."""
    rows: list[tuple[str, str, str]] = []
    for e in effects:
        value = json.dumps(e.value)
        shown = value if len(value) <= 40 else value[:37] + "..."
        rows.append((e.key, shown if e.given else f"({shown})", e.effect or "UNKNOWN: omnic does not know this key"))
    return rows
