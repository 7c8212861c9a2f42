"""Weights in few bits: which weight gets which storage type, and the methods that choose its codes."""

from omnic.passes.quantise.pack import Int4Packing

__all__ = ["Int4Packing"]
