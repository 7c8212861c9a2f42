"""From primitives to composites: the pass ``attention-fusion`` and the fusions beside it."""

from omnic.passes.fusion.fuse import AttentionFusion

__all__ = ["AttentionFusion"]
