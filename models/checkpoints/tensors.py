"""How weights are made of a checkpoint's tensors: short names for the recipes of the IR.

A recipe is evaluated row by row when a weight is read (:mod:`omnic.ir.weights`), so no tensor is ever held whole.
Quantised tensors are joined along their first dim and cut along the dims before the grouped one as codes; nothing is
rounded twice.
"""

from __future__ import annotations

from omnic.ir.graph import Recipe

__all__ = ["concat", "load", "reshape", "rows", "shift", "stack", "transpose"]


def load(name: str, *shape: int) -> Recipe:
    """The tensor of that name; its published shape where a table has to be read backwards and cannot guess it."""
    return Recipe("load", {"name": name, "shape": shape} if shape else {"name": name})


def transpose(of: Recipe, *perm: int) -> Recipe:
    """With its dims in another order (the two of a matrix swapped when none is given)."""
    return Recipe("transpose", {"perm": perm or (1, 0)}, (of,))


def rows(of: Recipe, start: int, stop: int, axis: int = 0, step: int = 1) -> Recipe:
    """Its rows ``start`` to ``stop``, not included, along ``axis``: every one, or every ``step``-th."""
    args = {"axis": axis, "start": start, "stop": stop}
    return Recipe("slice", args if step == 1 else {**args, "step": step}, (of,))


def concat(*parts: Recipe, axis: int = 0) -> Recipe:
    """The parts one behind the other along ``axis``."""
    return parts[0] if len(parts) == 1 else Recipe("concat", {"axis": axis}, parts)


def stack(*parts: Recipe) -> Recipe:
    """The parts along a new first dim."""
    return Recipe("stack", {}, parts)


def reshape(of: Recipe, *shape: int) -> Recipe:
    """The same numbers in another shape."""
    return Recipe("reshape", {"shape": shape}, (of,))


def shift(of: Recipe, value: float) -> Recipe:
    """Every number plus ``value``, in f32."""
    return Recipe("shift", {"value": value}, (of,))
