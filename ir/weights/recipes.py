"""Recipes: shapes, names and evaluation of any part of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from omnic.errors import BundleError, InternalError
from omnic.ir import packing
from omnic.ir.graph import Recipe, Weight
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, TensorType
from omnic.ir.weights.blocks import filled
from omnic.ir.weights.results import ResultStore
from omnic.ir.weights.sources import Box, CodeSource, Source, TypedSource, normal_rows

__all__ = ["SLICE_BYTES", "Evaluator", "cut", "leaves", "pinned", "whole"]

SLICE_BYTES = 256 << 20
INITIALISERS = ("normal", "zeros", "ones", "full")
LEAVES = (*INITIALISERS, "load", "stored")


def leaves(recipe: Recipe) -> Iterator[Recipe]:
    """Iterate over the leaves of a recipe."""
    if recipe.kind in LEAVES:
        yield recipe
    for inner in recipe.inputs:
        yield from leaves(inner)


def pinned(weight: Weight) -> Recipe:
    """Return the recipe of ``weight`` so that it means the same inside another weight.

    An initialiser by itself stands for the weight that holds it (its name seeds the numbers and is looked up
    in a weight file); a pass that builds a weight from others nests their pinned recipes.
    """

    def named(recipe: Recipe) -> Recipe:
        if recipe.inputs:
            return replace(recipe, inputs=tuple(named(r) for r in recipe.inputs))
        if recipe.kind not in INITIALISERS or "name" in recipe.args:
            return recipe
        return replace(recipe, args={**recipe.args, "name": weight.name, "shape": weight.type.shape})

    return named(weight.recipe)


def _no_number(q: QTensor) -> bool:
    """Whether a power of two among the scales is the one that stands for NaN."""
    return q.type.scale == "e8m0" and bool((q.scale == 255).any())


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box of everything."""
    return tuple((0, d) for d in shape)


def _arg(recipe: Recipe, name: str) -> Any:
    if name not in recipe.args:
        raise InternalError(f"recipe {recipe.kind} has no '{name}'")
    return recipe.args[name]


def cut(recipe: Recipe) -> tuple[int, int, int, int]:
    """Return axis, start, stop and step of a slice."""
    return (
        int(_arg(recipe, "axis")), int(_arg(recipe, "start")), int(_arg(recipe, "stop")),
        int(cast(int, recipe.args.get("step", 1))),
    )


def _before(recipe: Recipe, span: tuple[int, int]) -> tuple[int, int]:
    """Return the rows of what a slice cuts that reach from the first to the last of its own rows ``span``."""
    _, start, _, step = cut(recipe)
    return start + span[0] * step, start + max(span[0] * step, (span[1] - 1) * step + 1)


class Evaluator:
    """Evaluates the recipe of one weight.

    Args:
        name: of the weight; what an initialiser without a name stands for.
        type_shape: its shape.
        source: tensors by name; initialisers read them too when it is given.
        seed: of random numbers when there is no source.
        results: results of calibrating passes.
        names: of the tensors of ``source``, where they are known; a checkpoint may have tens of thousands.
    """

    def __init__(self, name: str, type_shape: tuple[int, ...], source: Source | None, seed: int | None,
                 results: ResultStore | None, names: frozenset[str] | None = None) -> None:
        self.name, self.type_shape, self.source, self.seed, self.results = name, type_shape, source, seed, results
        self._types = source if isinstance(source, TypedSource) else None
        self._known = names

    @property
    def _names(self) -> frozenset[str]:
        if self._known is None:
            self._known = frozenset[str](() if self.source is None else self.source.names())
        return self._known

    # -- shapes and names -------------------------------------------------------------------------------
    def leaf_name(self, leaf: Recipe) -> str:
        """Return the tensor a leaf stands for."""
        return str(leaf.args.get("name", self.name))

    def shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the shape of what a recipe makes.

        Raises:
            BundleError: the source lacks a tensor.
        """
        kind, inputs = recipe.kind, recipe.inputs
        if kind in INITIALISERS:
            return cast(tuple[int, ...], recipe.args.get("shape", self.type_shape))
        if kind == "load":
            # Codes lie packed in a file, so their shape there is not the tensor's.
            if (known := self.packed(recipe)) is not None:
                return cast(tuple[int, ...], known.shape)
            packed = self.suffixes(recipe) != ("",)
            return self.type_shape if packed else self._source(recipe).shape(self.leaf_name(recipe))
        if kind == "stored":
            return self._stored(recipe).shape
        first = self.shape(inputs[0])
        if kind in ("scale", "shift", "quantise"):
            return first
        if kind == "concat":
            axis = int(_arg(recipe, "axis"))
            return (*first[:axis], sum(self.shape(i)[axis] for i in inputs), *first[axis + 1 :])
        if kind == "slice":
            axis, start, stop, step = cut(recipe)
            return (*first[:axis], len(range(start, stop, step)), *first[axis + 1 :])
        if kind == "transpose":
            return tuple(first[int(p)] for p in cast(tuple[int, ...], _arg(recipe, "perm")))
        if kind == "reshape":
            return tuple(int(d) for d in cast(tuple[int, ...], _arg(recipe, "shape")))
        if kind == "stack":
            return (len(inputs), *first)
        raise InternalError(f"weight '{self.name}': unknown recipe '{kind}'")

    def _source(self, leaf: Recipe) -> Source:
        name = self.leaf_name(leaf)
        if self.source is None:
            raise BundleError(f"weight '{self.name}' is the tensor '{name}' of a weight file, and none was given")
        if name not in self._names:
            raise BundleError(f"{self.source.description} has no tensor '{name}'")
        return self.source

    def packed(self, leaf: Recipe) -> TensorType | None:
        """Return the type of a leaf that the source says it holds as codes."""
        named = leaf.kind == "load" or leaf.kind in INITIALISERS
        known = self._types.typed(self.leaf_name(leaf)) if named and self._types is not None else None
        return known if known is not None and isinstance(known.element, Storage) else None

    def suffixes(self, leaf: Recipe) -> tuple[str, ...]:
        """Return the endings of the tensors a leaf reads: only ``""`` unless the source holds it as packed codes."""
        coded = leaf.kind == "load" or self.packed(leaf) is not None
        have = self._names if coded else frozenset[str]()
        name = self.leaf_name(leaf)
        if name + ".scale" not in have:
            return ("",)
        return tuple(s for s in ("", ".scale", ".zero", ".row") if name + s in have)

    def _stored(self, recipe: Recipe) -> Array | QTensor:
        key = str(_arg(recipe, "hash"))
        if self.results is None:
            raise BundleError(f"weight '{self.name}' is the stored result {key[:12]}, and no result store was given")
        return self.results.get(key)

    # -- numbers ------------------------------------------------------------------------------------------
    def numbers(self, recipe: Recipe, box: Box) -> Array:
        """Return the part of a recipe's numbers inside ``box``."""
        kind = recipe.kind
        if kind in INITIALISERS and self.source is None:
            return self._initial(recipe, box)
        if (known := self.packed(recipe)) is not None:
            return self._decoded(recipe, known, box)
        if kind in INITIALISERS or kind == "load":
            return self._read(recipe, box)
        if kind == "stored":
            found = self._stored(recipe)
            array = packing.decode(found) if isinstance(found, QTensor) else found
            return array[tuple(slice(a, b) for a, b in box)]
        if kind == "scale":
            inner = self.numbers(recipe.inputs[0], box)
            return inner.astype(np.float32, copy=False) * np.float32(cast(float, _arg(recipe, "value")))
        if kind == "shift":
            inner = self.numbers(recipe.inputs[0], box)
            return inner.astype(np.float32, copy=False) + np.float32(cast(float, _arg(recipe, "value")))
        if kind == "transpose":
            return self._transposed(recipe, box)
        if kind == "concat":
            return self._concat(recipe, box)
        if kind == "stack":
            low, high = box[0]
            parts = [self.numbers(i, box[1:]) for i in recipe.inputs[low:max(high, low + 1)]]
            return np.stack(parts)[: high - low]
        if kind == "slice":
            axis, _, _, step = cut(recipe)
            part = self.numbers(recipe.inputs[0], (*box[:axis], _before(recipe, box[axis]), *box[axis + 1 :]))
            return part[(*(slice(None),) * axis, slice(None, None, step))]
        if kind == "reshape":
            return self._reshaped(recipe, box)
        if kind == "quantise":
            return self._rounded(recipe, box)
        raise InternalError(f"weight '{self.name}': unknown recipe '{kind}'")

    def _initial(self, leaf: Recipe, box: Box) -> Array:
        shape = self.shape(leaf)
        part = tuple(b - a for a, b in box)
        if leaf.kind == "normal":
            if self.seed is None:
                raise BundleError(f"weight '{self.name}' is random, and neither a seed nor a weight file was given")
            rows = box[0] if box else (0, 1)
            numbers = normal_rows(self.seed, self.leaf_name(leaf), shape, float(cast(float, _arg(leaf, "std"))), rows)
            return numbers[(slice(None), *(slice(a, b) for a, b in box[1:]))] if box else numbers
        value = {"zeros": 0.0, "ones": 1.0}.get(leaf.kind)
        return np.full(part, float(cast(float, _arg(leaf, "value"))) if value is None else value, np.float32)

    def _read(self, leaf: Recipe, box: Box) -> Array:
        source, name = self._source(leaf), self.leaf_name(leaf)
        if leaf.kind != "load" and source.shape(name) != self.shape(leaf):
            raise BundleError(f"tensor '{name}' of {source.description} is {list(source.shape(name))}, the model wants "
                              f"{list(self.shape(leaf))}")
        array = source.read(name, box)
        if array.dtype.kind not in "fV":
            return np.asarray(array)
        with np.errstate(over="ignore"):
            array = np.asarray(array).astype(np.float32, copy=False)
        finite = np.isfinite(array)
        if not finite.all():
            at = [int(i) + box[d][0] for d, i in enumerate(np.argwhere(~finite)[0])]
            raise BundleError(f"tensor '{name}' of {source.description} holds {array[~finite].flat[0]} at {at}",
                              "the weights are damaged, or the training that made them diverged")
        return array

    def _decoded(self, leaf: Recipe, type: TensorType, box: Box) -> Array:
        """Return the numbers of a tensor that the source holds as codes."""
        element = cast(Storage, type.element)
        numbers = packing.decode(self._unpacked(leaf, element, box[0]))
        return numbers[(slice(None), *(slice(a, b) for a, b in box[1:]))]

    def _transposed(self, recipe: Recipe, box: Box) -> Array:
        perm = cast(tuple[int, ...], _arg(recipe, "perm"))
        inner: list[tuple[int, int]] = [(0, 0)] * len(perm)
        for place, axis in enumerate(perm):
            inner[axis] = box[place]
        return np.transpose(self.numbers(recipe.inputs[0], tuple(inner)), perm)

    def _concat(self, recipe: Recipe, box: Box) -> Array:
        axis, base = int(_arg(recipe, "axis")), 0
        low, high = box[axis]
        parts: list[Array] = []
        for inner in recipe.inputs:
            size = self.shape(inner)[axis]
            first, last = max(low, base), min(high, base + size)
            if first < last:
                parts.append(self.numbers(inner, (*box[:axis], (first - base, last - base), *box[axis + 1 :])))
            base += size
        if not parts:  # an empty part is asked for when only the dtype is wanted
            parts.append(self.numbers(recipe.inputs[0], (*box[:axis], (0, 0), *box[axis + 1 :])))
        return np.concatenate(parts, axis=axis)

    def _reshaped(self, recipe: Recipe, box: Box) -> Array:
        """Read the rows of the inner tensor that hold the wanted rows, then cut."""
        shape, inner = self.shape(recipe), self.shape(recipe.inputs[0])
        if not shape or not inner:
            return self.numbers(recipe.inputs[0], whole(inner)).reshape([b - a for a, b in box])
        width, inner_width = int(np.prod(shape[1:], dtype=np.int64)), int(np.prod(inner[1:], dtype=np.int64))
        start, stop = box[0][0] * width, box[0][1] * width
        first, last = start // max(inner_width, 1), -(-stop // max(inner_width, 1))
        flat = self.numbers(recipe.inputs[0], ((first, last), *whole(inner[1:]))).reshape(-1)
        rows = flat[start - first * inner_width : stop - first * inner_width].reshape(-1, *shape[1:])
        return rows[(slice(None), *(slice(a, b) for a, b in box[1:]))]

    def _rounded(self, recipe: Recipe, box: Box) -> Array:
        """Return what the quantised numbers decode to."""
        shape, type = self.shape(recipe), cast(Storage, _arg(recipe, "type"))
        packing.check_storage(type, shape)
        if len(shape) + type.axis == 0:
            # Groups run along dim 0, so a part of the rows cannot be made alone.
            full = packing.decode(self.quantised(recipe, type, (0, shape[0])))
            return full[tuple(slice(a, b) for a, b in box)]
        rows = packing.decode(self.quantised(recipe, type, box[0]))
        return rows[(slice(None), *(slice(a, b) for a, b in box[1:]))]

    # -- codes --------------------------------------------------------------------------------------------
    def quantised(self, recipe: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        """Return rows of a recipe in the storage type ``type``.

        Quantised tensors are joined along dim 0, cut along the dims before the grouped one, and given other dims before
        it as codes; other recipes are quantised from their numbers.

        Raises:
            InternalError: a recipe computes with numbers that are already quantised, which would round twice.
        """
        kind = recipe.kind
        if kind == "stored":
            found = self._stored(recipe)
            if isinstance(found, QTensor):
                return self._typed(found, type).pick(slice(*rows))
        known = self.packed(recipe)
        if known is not None and known.element != type:
            raise BundleError(f"weight '{self.name}' is {type}, {self.leaf_name(recipe)} holds {known.element}")
        if known is not None or (kind == "load" and self.suffixes(recipe) != ("",)):
            return self._unpacked(recipe, type, rows)
        if kind == "slice" and self._cuts_codes(recipe, type) and self.quantises(recipe):
            return self._cut(recipe, type, rows)
        if kind == "reshape" and self._keeps_rows(recipe, type) and self.quantises(recipe):
            return self._regrouped(recipe, type, rows)
        if kind == "concat" and int(_arg(recipe, "axis")) == 0 and self.quantises(recipe):
            return self._joined(recipe, type, rows)
        if kind == "stack" and self.quantises(recipe):
            return self._stacked(recipe, type, rows)
        inner = recipe
        if kind == "quantise":
            inner = recipe.inputs[0]
            if _arg(recipe, "type") != type:
                raise InternalError(f"weight '{self.name}' is {type}, its recipe quantises to {_arg(recipe, 'type')}")
        if self.quantises(inner):
            raise InternalError(f"weight '{self.name}': {inner.kind} of quantised numbers would round them twice")
        shape = self.shape(inner)
        if len(shape) + type.axis == 0:  # groups run along dim 0
            return packing.quantise(self.numbers(inner, (rows, *whole(shape[1:]))), type)

        def block(start: int, stop: int) -> dict[str, Array]:
            return packing.quantise(self.numbers(inner, ((start, stop), *whole(shape[1:]))), type).parts()

        return QTensor.of_parts(type, filled(rows, int(np.prod(shape[1:], dtype=np.int64)), block))

    def quantises(self, recipe: Recipe) -> bool:
        """Whether a recipe has quantised numbers inside (a stored result may be; it is looked at when read)."""
        if recipe.kind in ("quantise", "stored") or self.packed(recipe) is not None:
            return True
        return any(self.quantises(i) for i in recipe.inputs)

    def _typed(self, found: QTensor, type: Storage) -> QTensor:
        if found.type != type:
            raise BundleError(f"weight '{self.name}' is {type}, its stored result is {found.type}")
        return found

    def _unpacked(self, leaf: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        """Read rows of codes and scales as :meth:`omnic.ir.weights.WeightStore.parts` wrote them."""
        source, name = self._source(leaf), self.leaf_name(leaf)
        if isinstance(source, CodeSource):
            return self._checked(source.quantised(name, rows), type, (rows[1] - rows[0], *self.shape(leaf)[1:]), leaf)
        parts = {s: source.read(name + s, (rows, *whole(source.shape(name + s)[1:]))) for s in self.suffixes(leaf)}
        shape = (rows[1] - rows[0], *self.shape(leaf)[1:])
        want = packing.layout(type, shape)
        found = {s: (p.dtype, p.shape) for s, p in parts.items()}
        if found != want:
            raise BundleError(f"tensors '{name}*' of {source.description} are not {type} of {list(self.shape(leaf))}")
        scale = parts[".scale"]
        if type.scale == "s4":
            scale = packing.unpack_scales(scale, type.groups(shape[type.axis]))
        codes = packing.unpack_codes(parts[""], type, shape)
        return self._checked(QTensor(codes, scale, parts.get(".zero"), type, parts.get(".row")), type, shape, leaf)

    def _checked(self, found: QTensor, type: Storage, shape: tuple[int, ...], leaf: Recipe) -> QTensor:
        name, origin = self.leaf_name(leaf), "" if self.source is None else f" of {self.source.description}"
        if found.type != type or found.shape != shape:
            raise BundleError(f"tensors '{name}*'{origin} are {found.type} {list(found.shape)}, not {type} "
                              f"{list(shape)}")
        rows = found.scale if found.row is None else found.row
        if not (np.isfinite(found.scale).all() and np.isfinite(rows).all()) or _no_number(found):
            raise BundleError(f"tensor '{name}.scale'{origin} holds NaN or infinite scales")
        return found

    def _stacked(self, recipe: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        """Return quantised tensors along a new first dim, as codes."""
        inner = recipe.inputs[rows[0] : rows[1]]
        each = [self.quantised(i, type, (0, self.shape(i)[0])).parts() for i in inner]
        return QTensor.of_parts(type, {key: np.stack([parts[key] for parts in each]) for key in each[0]})

    def _cuts_codes(self, recipe: Recipe, type: Storage) -> bool:
        """Whether a cut is along a dim before the grouped one."""
        grouped = 1 if type.group == -1 else len(self.shape(recipe)) + type.axis
        return cut(recipe)[0] < grouped

    def _cut(self, recipe: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        axis, start, stop, step = cut(recipe)
        if axis == 0:
            return self.quantised(recipe.inputs[0], type, _before(recipe, rows)).pick(slice(None, None, step))
        inner = self.quantised(recipe.inputs[0], type, rows)
        return inner.pick((*(slice(None),) * axis, slice(start, stop, step)))

    def _keeps_rows(self, recipe: Recipe, type: Storage) -> bool:
        """Whether a matrix with groups along its last dim becomes a stack of matrices of the same rows."""
        shape, inner = self.shape(recipe), self.shape(recipe.inputs[0])
        return type.group != -1 and type.axis == -1 and len(inner) == 2 < len(shape) and shape[-1] == inner[-1]

    def _regrouped(self, recipe: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        between = self.shape(recipe)[1:-1]
        width = int(np.prod(between, dtype=np.int64))
        inner = self.quantised(recipe.inputs[0], type, (rows[0] * width, rows[1] * width))
        count = rows[1] - rows[0]
        parts = {name: part.reshape(count, *between, *part.shape[1:]) for name, part in inner.parts().items()}
        return QTensor.of_parts(type, parts)

    def _joined(self, recipe: Recipe, type: Storage, rows: tuple[int, int]) -> QTensor:
        parts: list[QTensor] = []
        base = 0
        for inner in recipe.inputs:
            size = self.shape(inner)[0]
            first, last = max(rows[0], base), min(rows[1], base + size)
            if first < last:
                parts.append(self.quantised(inner, type, (first - base, last - base)))
            base += size
        arrays = {name: np.concatenate([p.parts()[name] for p in parts]) for name in parts[0].parts()}
        return QTensor.of_parts(type, arrays)
