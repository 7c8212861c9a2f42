"""Round to nearest: a recipe, so that nothing is computed before the numbers are asked for, slice by slice."""

from __future__ import annotations

from omnic.ir.graph import Recipe, Weight
from omnic.ir.types import Storage

__all__ = ["round_to_nearest"]


def round_to_nearest(weight: Weight, type: Storage) -> Recipe:
    """Return the recipe of ``weight`` rounded into ``type`` by the rule of :func:`omnic.ir.packing.quantise`."""
    return Recipe("quantise", {"type": type}, (weight.recipe,))
