"""Weights: lazy numbers from recipes over files, arrays or seeds, in slices that fit in memory."""

from omnic.ir.weights.recipes import SLICE_BYTES, leaves, pinned
from omnic.ir.weights.results import ResultStore
from omnic.ir.weights.sources import ArraySource, SafetensorsSource, Source, normal_rows
from omnic.ir.weights.store import WeightStore, part_layout, saved

__all__ = ["SLICE_BYTES", "ArraySource", "ResultStore", "SafetensorsSource", "Source", "WeightStore", "leaves",
           "normal_rows", "part_layout", "pinned", "saved"]
