"""A checkpoint's tensors under omnic's names: recipes evaluated part by part as a weight source."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import cast

import numpy as np

from omnic.errors import BundleError, InternalError
from omnic.ir import packing
from omnic.ir.graph import Module, Recipe
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights.companions import COMPANIONS
from omnic.ir.weights.recipes import SLICE_BYTES, Evaluator, leaves, whole
from omnic.ir.weights.sources import Box, Source, TypedSource
from omnic.ir.weights.store import fixed_shape

__all__ = ["CheckpointSource", "check_copies", "check_tensors", "float_types", "names_of"]

_SHOWN = 12
_SUFFIXES = (".scale", ".zero", ".row", *COMPANIONS)


class CheckpointSource:
    """The weights of a model, made of the tensors of ``source`` as ``table`` says; read part by part.

    Args:
        source: the checkpoint's tensors by their own names.
        table: the recipe of each weight.
        dtype: how the model stores its weights.
        description: what to call it in an error.
    """

    def __init__(self, source: Source, table: Mapping[str, Recipe], dtype: DType, description: str) -> None:
        self.source, self.table, self.description = source, table, description
        self._have = frozenset(source.names())
        self._types: dict[str, TensorType] = {}
        self._wider: dict[str, TensorType] = {}
        self._parts: dict[str, tuple[str, str]] = {}
        for name, recipe in table.items():
            element = _element(source, recipe)
            if element is None:
                self._parts[name] = (name, "")
                if dtype != DType.F32 and float_types(source, recipe) != {dtype.numpy}:
                    self._wider[name] = TensorType(DType.F32, self._evaluator(name).shape(recipe))
                continue
            type = TensorType(element, self._evaluator(name).shape(recipe))
            self._types[name] = type
            for suffix in packing.layout(element, fixed_shape(type)):
                self._parts[name + suffix] = (name, suffix)
        self._beside = {
            name + ending: made
            for name in self._types
            for ending in COMPANIONS
            if (made := _companion(source, self._have, table[name], ending)) is not None
        }

    def _evaluator(self, name: str) -> Evaluator:
        return Evaluator(name, (), self.source, None, None, self._have)

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights, of the parts of those that are codes, and of their companions."""
        return (*self._parts, *self._beside)

    def typed(self, name: str) -> TensorType | None:
        """Return the type of a weight that the checkpoint holds as codes, or in a wider type than ``dtype``."""
        return self._types.get(name) or self._wider.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, or of a part of one that is codes."""
        if name in self._beside:
            return self._evaluator(name).shape(self._beside[name])
        weight, suffix = self._parts[name]
        type = self._types.get(weight)
        if type is not None:
            return packing.layout(cast(Storage, type.element), fixed_shape(type))[suffix][1]
        return self._evaluator(weight).shape(self.table[weight])

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a weight: f32 for any float type, or packed codes."""
        if name in self._beside:
            return self._evaluator(name).numbers(self._beside[name], box)
        weight, suffix = self._parts[name]
        if weight not in self._types:
            return self._evaluator(weight).numbers(self.table[weight], box)
        part = packing.packed_parts(self.quantised(weight, box[0]))[suffix]
        return part[(slice(None), *(slice(a, b) for a, b in box[1:]))]

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a weight that the checkpoint holds as codes."""
        element = cast(Storage, self._types[name].element)
        return self._evaluator(name).quantised(self.table[name], element, rows)


def _companion(source: Source, have: frozenset[str], recipe: Recipe, ending: str) -> Recipe | None:
    """Return the recipe of what lies beside the tensors of a weight under ``ending``, None where nothing does.

    Raises:
        BundleError: the weight is not joined and cut by rows alone, or its columns lie in several orders.
    """
    names = names_of(recipe)
    with_it = [n for n in names if n + ending in have]
    if not with_it:
        return None

    def beside(inner: Recipe) -> Recipe | None:
        if inner.kind == "load":
            name = str(inner.args["name"]) + ending
            return Recipe("load", {"name": name}) if name in have else None
        inputs = tuple(beside(i) for i in inner.inputs)
        made = tuple(i for i in inputs if i is not None)
        if len(made) < len(inputs) or inner.kind not in ("slice", "concat") or inner.args.get("axis") != 0:
            return None
        if ending == ".order":
            each = [np.asarray(source.read(n + ending, whole(source.shape(n + ending)))) for n in names]
            return made[0] if all(np.array_equal(each[0], other) for other in each) else None
        return Recipe(inner.kind, inner.args, made)

    found = beside(recipe)
    if found is None:
        what = "inputs in an order" if ending == ".order" else "offsets"
        raise BundleError(
            f"{source.description}: {with_it[0]} is quantised with {what} of its own, and joined with others into one "
            "weight",
            "fetch the checkpoint that is not quantised, or one quantised without it (GPTQ: desc_act=False)",
        )
    return found


def float_types(source: Source, recipe: Recipe) -> set[np.dtype[np.generic]]:
    """Return the dtypes of the numbers a recipe is made of; what it computes is f32."""
    found = {source.read(n, ((0, 0),) * len(source.shape(n))).dtype for n in names_of(recipe)}
    return found | ({np.dtype(np.float32)} if _computes(recipe) else set())


def names_of(recipe: Recipe) -> list[str]:
    """Return the tensors a recipe reads."""
    return [str(leaf.args["name"]) for leaf in leaves(recipe)]


def _computes(recipe: Recipe) -> bool:
    return recipe.kind in ("shift", "scale") or any(_computes(i) for i in recipe.inputs)


def _element(source: Source, recipe: Recipe) -> Storage | None:
    """Return the storage type of what a recipe joins and cuts, None when it is made of plain tensors.

    Raises:
        BundleError: parts of one weight are of different types.
    """
    if not isinstance(source, TypedSource):
        return None
    known = {name: source.typed(name) for name in names_of(recipe)}
    elements = {None if type is None else type.element for type in known.values()}
    if len(elements) > 1:
        each = ", ".join(f"{name} is {type or 'plain'}" for name, type in known.items())
        raise BundleError(f"tensors that make one weight are of different types: {each}")
    (element,) = elements
    return cast("Storage | None", element)


def check_tensors(module: Module, source: Source, table: Mapping[str, Recipe], ignored: Mapping[str, str]) -> None:
    """Compare a checkpoint with the model its configuration describes.

    Raises:
        BundleError: tensors are missing, of another shape, or left over; all are listed together, by their own names.
        InternalError: the family's table lacks a weight of the model.
    """
    have = frozenset(source.names())
    evaluator = Evaluator("", (), source, None, None, have)
    lacking = [name for name in module.weights if name not in table]
    beyond = [name for name in table if name not in module.weights]
    if lacking or beyond:
        raise InternalError(
            f"the family's table lacks {_listed(lacking) or 'nothing'} and has {_listed(beyond) or 'nothing'} "
            "beside the model's weights"
        )
    used: dict[str, None] = {}
    missing: dict[str, None] = {}
    misshapen: list[str] = []
    for name, recipe in table.items():
        inner = names_of(recipe)
        used |= dict.fromkeys(inner)
        gone = [n for n in inner if n not in have]
        missing |= dict.fromkeys(gone)
        if gone:
            continue
        want = fixed_shape(module.weights[name].type)
        if not _fits(evaluator, recipe, want):
            shown = ", ".join(f"{n} {list(_shape(source, n))}" for n in dict.fromkeys(inner))
            misshapen.append(f"{shown} (for {name} {list(want)})")
    parts = {n + suffix for n in used for suffix in _SUFFIXES}
    extra = [
        n
        for n in source.names()
        if n not in used and n not in parts and not any(fnmatchcase(n, pattern) for pattern in ignored)
        if not _idle_bias(source, n)
    ]
    groups = (
        ("missing", list(missing)),
        ("of another shape than the configuration says", misshapen),
        ("that the architecture does not have", extra),
    )
    lines = [f"{len(names)} {what}: {_listed(names)}" for what, names in groups if names]
    if lines:
        raise BundleError(
            f"{source.description}: tensors do not fit the configuration: " + "; ".join(lines),
            "the files are of another model than config.json, or incomplete",
        )


def _idle_bias(source: Source, name: str) -> bool:
    """Whether a tensor is a bias of zeros, which quantisers write for products that have none."""
    shape = source.shape(name)
    return name.endswith(".bias") and len(shape) == 1 and not np.asarray(source.read(name, whole(shape))).any()


def check_copies(source: Source, copies: Mapping[str, str]) -> None:
    """Compare tensors that a checkpoint holds twice, part by part.

    Args:
        source: the checkpoint.
        copies: the copy and what it is one of.

    Raises:
        BundleError: one is no copy: the model would need both.
    """
    for copy, main in copies.items():
        for suffix in ("", *_SUFFIXES):
            one, other = (name + suffix for name in (copy, main))
            if not (one in source.names() or other in source.names()):
                continue
            if not _equal(source, one, other):
                raise BundleError(
                    f"{source.description}: {copy} is not the same as {main}, and the model has one for both",
                    "set num_nextn_predict_layers to 0 in config.json to leave the block for further tokens out",
                )


def _equal(source: Source, one: str, other: str) -> bool:
    """Whether two tensors are of the same type, shape and bytes."""
    if not {one, other} <= set(source.names()) or source.shape(one) != source.shape(other):
        return False
    shape = source.shape(one)
    step = max(1, SLICE_BYTES // 4 // max(1, 4 * _size(shape[1:])))
    for start in range(0, shape[0], step):
        box = ((start, min(start + step, shape[0])), *((0, d) for d in shape[1:]))
        a, b = source.read(one, box), source.read(other, box)
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            return False
    return True


def _shape(source: Source, name: str) -> tuple[object, ...]:
    known = source.typed(name) if isinstance(source, TypedSource) else None
    return source.shape(name) if known is None else known.shape


def _fits(evaluator: Evaluator, recipe: Recipe, want: tuple[int, ...]) -> bool:
    """Whether a recipe makes the wanted shape, no cut reaching beyond what it cuts."""

    def whole(inner: Recipe) -> bool:
        if not all(whole(i) for i in inner.inputs):
            return False
        try:
            if inner.kind == "slice":
                axis, stop = int(cast(int, inner.args["axis"])), int(cast(int, inner.args["stop"]))
                return stop <= evaluator.shape(inner.inputs[0])[axis]
            if inner.kind == "transpose":
                return len(evaluator.shape(inner.inputs[0])) == len(cast(tuple[int, ...], inner.args["perm"]))
            if inner.kind == "reshape":
                return _size(evaluator.shape(inner)) == _size(evaluator.shape(inner.inputs[0]))
            if inner.kind in ("stack", "concat"):
                axis = int(cast(int, inner.args.get("axis", -1)))
                shapes = {tuple(d for i, d in enumerate(evaluator.shape(p)) if i != axis) for p in inner.inputs}
                return len(shapes) == 1
        except IndexError:
            return False
        return True

    return whole(recipe) and evaluator.shape(recipe) == want


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
