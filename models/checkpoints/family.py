"""Families of checkpoints: how a configuration becomes a spec, and where each weight lies in the files.

A family is one object in one file.  omnic's own are in :mod:`omnic.models.checkpoints.families`; a package adds one
through the entry-point group ``omnic.families``, the entry's name being the ``model_type`` of the configuration and
its value the :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from omnic.errors import InputError, nearest
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.spec import Spec

__all__ = ["ENTRY_POINT_GROUP", "Family", "Tensors", "families", "family_of"]

ENTRY_POINT_GROUP = "omnic.families"

#: the modules of omnic's own families, in the order of the documentation
_OURS = ("gpt2", "gpt_neox", "llama", "granite", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2",
         "starcoder2", "smollm3", "nanochat", "mixtral", "qwen2_moe", "qwen3_moe",
         "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe")


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint as a family's table sees them: names and shapes, no numbers."""

    shapes: Mapping[str, tuple[int, ...]]
    coded: frozenset[str] = frozenset()
    """Those that the files hold quantised, as codes."""

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def first(self, *names: str) -> str:
        """Return the first name that the checkpoint has (the first of all where it has none, to be reported)."""
        return next((n for n in names if n in self.shapes), names[0])


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture as published.

    Attributes:
        model_types: values of ``model_type`` in ``config.json``.
        title: the models' name in documents.
        describe: reads the configuration and returns the spec as plain data (without ``weights`` and ``tokenizer``).
        weights: the recipe of every weight of the spec's model over the checkpoint's tensors, by omnic's names.
        ignored: patterns (``fnmatch``) of tensors without meaning, such as saved rope frequencies, and why.
        copies: tensors that a checkpoint may hold twice, and which tensor each must equal, for the model has one.
        left_out: patterns of tensors that this model has no use for, and why.
        source: where the architecture is described.
        publish: the configuration of a spec, the way back; what it cannot say is found by reading it again.  None:
            omnic does not write this family.
    """

    model_types: tuple[str, ...]
    title: str
    describe: Callable[[Config], Mapping[str, Any]]
    weights: Callable[[Spec, Tensors], Mapping[str, Recipe]]
    ignored: Mapping[str, str] | None = None
    copies: Callable[[Spec, Tensors], Mapping[str, str]] | None = None
    left_out: Callable[[Spec, Tensors], Mapping[str, str]] | None = None
    source: str = ""
    publish: Callable[[Spec], Mapping[str, Any]] | None = None


@cache
def families() -> dict[str, Family]:
    """Return omnic's own families by ``model_type``."""
    found: dict[str, Family] = {}
    for name in _OURS:
        family: Family = import_module(f"omnic.models.checkpoints.families.{name}").FAMILY
        found |= dict.fromkeys(family.model_types, family)
    return found


def family_of(config: Config) -> Family:
    """Return the family of a configuration.

    Raises:
        InputError: it names none that omnic or an installed package knows.
    """
    name = config.raw("model_type", "the family", None)
    if not isinstance(name, str):
        raise InputError(
            f"{config.origin} has no 'model_type'", "it is not the configuration of a transformers checkpoint"
        )
    own = families()
    if name in own:
        return own[name]
    added = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name in added:
        return added[name].load()
    known = sorted({*own, *added})
    near = nearest(name, known)
    raise InputError(
        f"{config.origin}: omnic knows no family '{name}'" + (f"; did you mean '{near}'?" if near else ""),
        f"known: {', '.join(known)}; a package can add one (docs/models.md)",
    )
