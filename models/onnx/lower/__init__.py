"""The table of ops: (domain, ONNX op) -> what it becomes."""

from omnic.models.onnx.lower.contrib import CONTRIB
from omnic.models.onnx.lower.elementwise import ELEMENTWISE, Lowering
from omnic.models.onnx.lower.shapes import SHAPES
from omnic.models.onnx.lower.tensors import TENSORS
from omnic.models.onnx.lower.writes import WRITES

__all__ = ["LOWERINGS", "Lowering"]

LOWERINGS: dict[tuple[str, str], Lowering] = {
    **{("", op): rule for op, rule in {**ELEMENTWISE, **SHAPES, **TENSORS, **WRITES}.items()},
    **{("com.microsoft", op): rule for op, rule in CONTRIB.items()},
}
