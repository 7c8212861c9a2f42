"""Decoders that other tools exported to ONNX, imported as modules: see ``docs/onnx_import.md``."""

from omnic.models.onnx.graph import import_onnx

__all__ = ["import_onnx"]
