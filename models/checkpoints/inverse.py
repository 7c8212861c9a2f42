"""A family's table read backwards: the recipe of every published tensor over omnic's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.tensors import concat, load, reshape, rows, shift, transpose

__all__ = ["inverse"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """What lies at ``start:stop:step`` of a dim."""

    axis: int
    start: int
    stop: int
    step: int
    value: Recipe
    shape: Shape


class _Inversion:
    """What is known of the published tensors so far.

    ``found`` holds whole tensors; ``pieces`` the parts of a tensor (or of something made of one) by the recipe they
    were cut from.
    """

    def __init__(self) -> None:
        self.found: dict[str, Recipe] = {}
        self.pieces: dict[str, tuple[Recipe, list[_Piece]]] = {}

    def push(self, recipe: Recipe, value: Recipe, shape: Shape) -> None:
        """Take note that ``recipe`` makes ``value`` of ``shape``, and follow it to the tensors it is made of."""
        kind, args = recipe.kind, recipe.args
        if kind == "load":
            self.found.setdefault(str(args["name"]), value)
        elif kind == "transpose":
            perm = cast(tuple[int, ...], args["perm"])
            back = tuple(perm.index(i) for i in range(len(perm)))
            self.push(recipe.inputs[0], transpose(value, *back), tuple(shape[i] for i in back))
        elif kind == "reshape":
            inner = _shape_before(recipe.inputs[0], shape)
            self.push(recipe.inputs[0], reshape(value, *inner), inner)
        elif kind == "shift":
            self.push(recipe.inputs[0], shift(value, -float(cast(float, args["value"]))), shape)
        elif kind == "stack":
            for i, part in enumerate(recipe.inputs):
                self.push(part, reshape(rows(value, i, i + 1), *shape[1:]), shape[1:])
        elif kind == "concat":
            axis, start = int(cast(int, args["axis"])), 0
            for part in recipe.inputs:
                stop = start + _size(part, axis, shape[axis] - start if part is recipe.inputs[-1] else None)
                self.push(part, rows(value, start, stop, axis), (*shape[:axis], stop - start, *shape[axis + 1 :]))
                start = stop
        elif kind == "slice":
            axis, start, stop = (int(cast(int, args[k])) for k in ("axis", "start", "stop"))
            inner, step = recipe.inputs[0], int(cast(int, args.get("step", 1)))
            self.pieces.setdefault(repr(inner), (inner, []))[1].append(_Piece(axis, start, stop, step, value, shape))
        else:
            raise InputError(f"omnic cannot write weights of this family: no way back from '{kind}'")

    def join(self) -> None:
        """Put the pieces of tensors together until none is left."""
        while self.pieces:
            _, (inner, parts) = self.pieces.popitem()
            value, shape = _together(sorted(parts, key=lambda p: p.start), inner)
            self.push(inner, value, shape)


def _together(parts: list[_Piece], inner: Recipe) -> tuple[Recipe, Shape]:
    """Return what neighbouring pieces, or pieces that take turns, are parts of, and its shape."""
    first = parts[0]
    axis, shape = first.axis, first.shape
    before, after = shape[:axis], shape[axis + 1 :]
    every = [(axis, i, first.step) for i in range(first.step)]
    turns = first.step > 1 and [(p.axis, p.start, p.step) for p in parts] == every
    if turns:
        apart = (reshape(p.value, *before, shape[axis], 1, *after) for p in parts)
        whole = (*before, shape[axis] * len(parts), *after)
        return reshape(concat(*apart, axis=axis + 1), *whole), whole
    at = 0
    for part in parts:
        if (part.axis, part.start, part.step) != (axis, at, 1):
            raise InputError(f"omnic cannot write weights of this family: {_leaf(inner)} is not covered")
        at = part.stop
    return concat(*(p.value for p in parts), axis=axis), (*before, at, *after)


def inverse(table: Mapping[str, Recipe], shapes: Mapping[str, Shape]) -> dict[str, Recipe]:
    """Return the recipe of every tensor that ``table`` reads, over the weights the table makes.

    Args:
        table: the recipe of each weight over published tensors.
        shapes: of the weights.

    Raises:
        InputError: a tensor is not wholly made of the weights.
    """
    state = _Inversion()
    for name, recipe in table.items():
        state.push(recipe, load(name), shapes[name])
    state.join()
    return state.found


def _shape_before(inner: Recipe, shape: Shape) -> Shape:
    """Return the shape of what was reshaped: as it says itself, else that of a matrix whose rows were split."""
    known = _known(inner)
    if known is not None:
        return known
    size = 1
    for dim in shape[:-1]:
        size *= dim
    return (size, shape[-1])


def _known(recipe: Recipe) -> Shape | None:
    """Return the shape of what a recipe makes where the recipe tells it, without looking at tensors."""
    if "shape" in recipe.args:
        return cast(Shape, recipe.args["shape"])
    inner = _known(recipe.inputs[0]) if recipe.inputs else None
    if inner is None:
        return None
    if recipe.kind == "shift":
        return inner
    if recipe.kind == "transpose":
        return tuple(inner[i] for i in cast(tuple[int, ...], recipe.args["perm"]))
    if recipe.kind == "slice" and "step" not in recipe.args:
        axis, start, stop = (int(cast(int, recipe.args[k])) for k in ("axis", "start", "stop"))
        return (*inner[:axis], stop - start, *inner[axis + 1 :])
    return None


def _size(part: Recipe, axis: int, rest: int | None) -> int:
    known = _known(part)
    if known is not None:
        return known[axis]
    if part.kind == "slice" and int(cast(int, part.args["axis"])) == axis:
        return int(cast(int, part.args["stop"])) - int(cast(int, part.args["start"]))
    if rest is not None:
        return rest
    raise InputError(f"omnic cannot write weights of this family: the size of {_leaf(part)} is not known")


def _leaf(recipe: Recipe) -> str:
    while recipe.inputs:
        recipe = recipe.inputs[0]
    return f"'{recipe.args.get('name')}'"
