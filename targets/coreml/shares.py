"""What the functions of a package cost: bytes that each would take alone, and all of them together."""

from __future__ import annotations

from pathlib import Path

from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.evaluator.graph import Op
from omnic.targets.coreml.evaluator.package import Package
from omnic.targets.coreml.evaluator.stored import FileConst

__all__ = ["shares"]


def shares(package: Path) -> tuple[int, dict[str, int]]:
    """Return the bytes of a package's program and weights, and of each function as if it were the only one.

    Weights are counted once for each place in the weight file, so that what functions share is counted once in the sum.

    Args:
        package: the folder ``*.mlpackage``.
    """
    saved = Package(package).model.mlProgram.functions
    sizes = {str(name): int(saved[name].ByteSize()) for name in saved}
    with Program.open(package) as program:
        places = {name: _places(program, name) for name in program.functions}
    together = {where: size for found in places.values() for where, size in found.items()}
    each = {name: sizes[name] + sum(found.values()) for name, found in places.items()}
    return sum(sizes.values()) + sum(together.values()), each


def _places(program: Program, name: str) -> dict[tuple[str, int], int]:
    """Return (file, offset) -> bytes of what a function reads from the weight files."""
    found: dict[tuple[str, int], int] = {}

    def visit(op: Op) -> None:
        given = [g[0] for values in op.inputs.values() for g in values if not isinstance(g, str)]
        for value in (op.value, *given):
            if isinstance(value, FileConst):
                found[str(value.file.path), value.offset] = value.file.entry(value.offset).size
        for block in op.blocks:
            for inner in block.ops:
                visit(inner)

    for op in program.function(name).ops:
        visit(op)
    return found
