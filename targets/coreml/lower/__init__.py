"""Lowerings, in tables: the MIL operations that compute each op; a composite without an entry is decomposed."""

from __future__ import annotations

from collections.abc import Mapping

from omnic.targets.coreml.lower import attend, composites, core, indexing, states
from omnic.targets.coreml.lower.core import Lowering

__all__ = ["CACHED", "COLUMNS", "SINGLE", "TABLE", "Lowering"]

TABLE: Mapping[str, Lowering] = {**core.TABLE, **indexing.TABLE, **states.TABLE, **composites.TABLE}
#: entries of the recipe for the neural engine
COLUMNS: Mapping[str, Lowering] = {**TABLE, **composites.COLUMNS}
#: lowered where keys and values are caches; decomposed elsewhere
CACHED: Mapping[str, Lowering] = {"attention": attend.attention, "mla": attend.latent_attention}
#: computed in fp32 in an fp16 program, but on the neural engine, which has fp16 only
SINGLE = frozenset({"rms_norm", "layer_norm", "rope", "router"})
