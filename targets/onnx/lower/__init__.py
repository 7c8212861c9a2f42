"""Lowerings: for each op of the IR, the ONNX nodes that compute it, as tables by profile.

An op that is composite and has no entry is decomposed; ``plain`` uses the standard operator set alone,
``fused`` adds the ``com.microsoft`` operators of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from omnic.ir.graph import Node
from omnic.targets.onnx.lower import attend, composites, core, experts, indexing, recent, states
from omnic.targets.onnx.plan import Cached
from omnic.targets.onnx.writer import GraphWriter

__all__ = ["CACHED", "FUSED", "PLAIN", "PROFILES", "Lowering"]

Lowering = Callable[[GraphWriter, Node], None]

PLAIN: Mapping[str, Lowering] = {
    **core.TABLE,
    **indexing.TABLE,
    **states.TABLE,
    **recent.TABLE,
    **composites.TABLE,
    **experts.TABLE,
}
FUSED: Mapping[str, Lowering] = {**PLAIN, **experts.CONTRIB}
PROFILES: Mapping[str, Mapping[str, Lowering]] = {"plain": PLAIN, "fused": FUSED}
#: ops that are lowered where their keys and values are states; elsewhere they are decomposed
CACHED: Mapping[str, Callable[[GraphWriter, Cached], None]] = {
    "attention": attend.standard_attention,
    "block_attention": recent.recent_attention,
    "mla": recent.latent_attention,
}
