"""From a spec to a configuration of a published family, proven by reading it again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omnic.errors import InputError, OmnicError
from omnic.ir.graph import Module, Recipe
from omnic.ir.weights.store import fixed_shape
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.family import Family, Tensors, families
from omnic.models.checkpoints.inverse import inverse
from omnic.spec import Spec, parse_spec

__all__ = ["Published", "publish"]

#: parts of a spec's meaning that a configuration does not hold
_OURS = frozenset((
    "omnic", "model", "tokenizer", "weights", "draft", "budget", "chunk", "chunk_verify", "dtype", "kv_dtype", "init",
    "passes", "targets", "bias",
))  # fmt: skip


@dataclass(frozen=True)
class Published:
    """How a spec is written in a family.

    Attributes:
        family: the family.
        config: what ``config.json`` holds.
        tensors: the recipe of each published tensor over omnic's weights.
    """

    family: Family
    config: Mapping[str, Any]
    tensors: Mapping[str, Recipe]


def publish(spec: Spec, module: Module, name: str | None = None) -> Published:
    """Return the spec in the family ``name``, or in the first family that can express it.

    Raises:
        InputError: no family can, with what the nearest one lacks; or an unknown name.
    """
    known = {f.model_types[0]: f for f in dict.fromkeys(families().values()) if f.publish is not None}
    if name is not None and name not in known:
        raise InputError(f"omnic does not write the family '{name}'", f"it writes {', '.join(known)}")
    misses: dict[str, list[str]] = {}
    for model_type, family in known.items():
        if name in (None, model_type):
            config, differing = _tried(spec, family)
            if config is not None and not differing:
                return Published(family, config, _tensors(spec, module, family))
            misses[model_type] = differing
    nearest = min(misses, key=lambda m: len(misses[m]))
    raise InputError(
        f"no published family that omnic writes can express {spec.model}: "
        f"{nearest} lacks {'; '.join(misses[nearest][:4])}",
        "heads beside the main one can be left out: --without-heads"
        if any(miss.startswith("heads.") for miss in misses[nearest])
        else f"families: {', '.join(known)}; --family NAME tells what another one lacks",
    )


def _tried(spec: Spec, family: Family) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Return the configuration and what reading it again gives another value."""
    assert family.publish is not None
    try:
        config = dict(family.publish(spec))
        described = {"model": spec.model, **family.describe(Config(json.loads(json.dumps(config)), "config.json"))}
        again = parse_spec(json.dumps(described), "config.json", syntax="yaml")
    except OmnicError as error:
        return None, [error.message]
    return config, list(_differences(_meaning(spec), _meaning(again), ""))


def _meaning(spec: Spec) -> dict[str, Any]:
    return {key: value for key, value in spec.meaning().items() if key not in _OURS}


def _differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        seen: set[str] = set()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            for line in _differences(a, b, f"{path}[{i}]"):
                if (rest := line.partition("]")[2]) not in seen:  # equal layers differ alike
                    seen.add(rest)
                    yield line
    elif isinstance(ours, float) and isinstance(theirs, float) and math.isclose(ours, theirs, rel_tol=1e-12):
        return  # a number that a configuration has as another one's root or inverse
    elif ours != theirs:
        yield f"{path} {json.dumps(ours)} (it would be {json.dumps(theirs)})"


def _tensors(spec: Spec, module: Module, family: Family) -> dict[str, Recipe]:
    shapes = {name: fixed_shape(weight.type) for name, weight in module.weights.items()}
    table = family.weights(spec, Tensors({}))
    unknown = [n for n in shapes if n not in table]
    if unknown:
        raise InputError(f"{family.title} has no place for {', '.join(unknown[:4])}")
    return inverse(table, shapes)
