"""Adapters merged at compile: which published tensors a model's weights are, and the weights with their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.weights import WeightStore
from omnic.ir.weights.recipes import Evaluator
from omnic.ir.weights.sources import Source, TypedSource
from omnic.models.checkpoints.family import Tensors, families
from omnic.models.checkpoints.lora import Adapter, LoraSource, open_adapter
from omnic.models.checkpoints.publish import publish
from omnic.models.checkpoints.source import CheckpointSource
from omnic.runtime.files import sha256_file
from omnic.spec import Spec

__all__ = ["parse_adapter", "recorded", "with_adapters", "with_recorded"]

Shapes = Mapping[str, tuple[int, ...]]


def parse_adapter(text: str) -> tuple[Path, float]:
    """Return folder and strength of ``DIR`` or ``DIR=STRENGTH``.

    Raises:
        InputError: the strength is not a number.
    """
    folder, given, strength = text.rpartition("=")
    if not given or Path(text).is_dir():
        return Path(text), 1.0
    try:
        return Path(folder), float(strength)
    except ValueError:
        raise InputError(f"--lora {text}: '{strength}' is not a number", "write --lora DIR or --lora DIR=0.5") from None


def recorded(adapters: Sequence[tuple[Path, float]]) -> list[dict[str, Any]]:
    """Return what tells adapters apart, for the record of where weights came from."""
    return [
        {"path": str(folder.absolute()), "strength": strength, "sha256": _fingerprint(folder)}
        for folder, strength in adapters
    ]


def _fingerprint(folder: Path) -> str:
    parts = [sha256_file(p) for p in sorted(folder.glob("adapter_*")) if p.is_file()]
    return "-".join(part[:16] for part in parts)


def with_recorded(spec: Spec, module: Module, source: Source, origin: Mapping[str, Any]) -> Source:
    """Return ``source`` with the adapters that an origin records."""
    return with_adapters(spec, module, source, [(Path(a["path"]), a["strength"]) for a in origin.get("lora", ())])


def with_adapters(spec: Spec, module: Module, source: Source, given: Sequence[tuple[Path, float]]) -> Source:
    """Return ``source`` with adapters merged into its weights.

    Args:
        spec: the model.
        module: its front module.
        source: its weights by omnic's names.
        given: folder and strength of each adapter.

    Raises:
        InputError: an adapter of another model or kind, or quantised weights.
        BundleError: a damaged adapter.
    """
    if not given:
        return source
    adapters = [open_adapter(folder, strength) for folder, strength in given]
    table, shapes = _published(spec, module, source, adapters)
    return LoraSource(source, module, table, shapes, adapters)


def _published(
    spec: Spec, module: Module, source: Source, adapters: Sequence[Adapter]
) -> tuple[Mapping[str, Recipe], Shapes]:
    """Return the recipe of each weight over published tensors, and the shapes of those.

    A checkpoint has both.  Weights under omnic's names are what the spec is in the family whose names the adapters use.
    """
    if isinstance(source, CheckpointSource):
        return source.table, {name: _shape(source.source, name) for name in source.source.names()}
    wanted = {name for adapter in adapters for name in adapter.lows}
    first: tuple[Mapping[str, Recipe], Shapes] | None = None
    reason: InputError | None = None
    for family in dict.fromkeys(families().values()):
        if family.publish is None:
            continue
        try:
            published = publish(spec, module, family.model_types[0])
        except InputError as error:
            reason = reason or error
            continue
        evaluator = Evaluator("", (), WeightShapes(module), None, None)
        shapes = {name: evaluator.shape(recipe) for name, recipe in published.tensors.items()}
        found = (family.weights(spec, Tensors({})), shapes)
        if wanted <= shapes.keys():
            return found
        first = first or found
    if first is None:
        why = "" if reason is None else f": {reason.message}"
        raise InputError(
            f"no published family can express {spec.model}, so an adapter's modules have no names{why}",
            "import the checkpoint with --link, and compile that with --lora",
        )
    return first


class WeightShapes:
    """The weights of a module as a source of shapes."""

    description = "the model"

    def __init__(self, module: Module) -> None:
        self._store = WeightStore(module, seed=0)

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights."""
        return tuple(self._store.module.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return tuple(int(str(d)) for d in self._store.module.weights[name].type.shape)

    def read(self, name: str, box: Any) -> Any:
        """Refuse: there are no numbers.

        Raises:
            InputError: always.
        """
        raise InputError(f"{name} has a shape here, and no numbers")


def _shape(source: Source, name: str) -> tuple[int, ...]:
    known = source.typed(name) if isinstance(source, TypedSource) else None
    return source.shape(name) if known is None else tuple(int(str(d)) for d in known.shape)
