"""The weight store: the numbers and the bytes of every weight of a module, made when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import BundleError, InputError, InternalError, nearest
from omnic.ir import packing
from omnic.ir.graph import Module, Recipe, Weight
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, TensorType
from omnic.ir.weights.blocks import filled
from omnic.ir.weights.companions import with_stored_types
from omnic.ir.weights.recipes import INITIALISERS, SLICE_BYTES, Evaluator, leaves, whole
from omnic.ir.weights.results import ResultStore
from omnic.ir.weights.sources import ArraySource, SafetensorsSource, Source, code_rows

__all__ = ["WeightStore", "part_layout", "saved"]

_NAMES_SHOWN = 8


class WeightStore:
    """Numbers and bytes of the weights of ``module``.

    Nothing is read or drawn before it is asked for, and nothing is kept: a weight is made again on each call.
    Use :meth:`load`, :meth:`loaded`, :meth:`of`, :meth:`random` or :meth:`random_packed`.

    Args:
        module: whose recipes say how each weight is made.
        source: tensors by name (front weight names); initialisers are then read from it too.
        seed: of random numbers when there is no source.
        results: results of calibrating passes (``stored`` recipes).
        random_codes: weights of a storage type get random codes directly, for tests of size and speed.
    """

    def __init__(self, module: Module, source: Source | None = None, seed: int | None = None,
                 results: ResultStore | None = None, random_codes: bool = False) -> None:
        self.module, self.source, self.seed, self.results = module, source, seed, results
        self._random_codes = random_codes

    @classmethod
    def load(cls, module: Module, path: Path | str | Sequence[Path], results: ResultStore | None = None) -> WeightStore:
        """Return a store over safetensors files, its names and shapes checked.

        Raises:
            BundleError: the file is damaged or truncated, or tensors are missing, left over or misshapen.
        """
        return cls.loaded(module, SafetensorsSource(path), results)

    @classmethod
    def loaded(cls, module: Module, source: Source, results: ResultStore | None = None) -> WeightStore:
        """Return a store over ``source``, checked as :meth:`load` does.

        Where the source says which type a weight has, or holds a companion of one, the store's module has them
        (:mod:`omnic.ir.weights.companions`).
        """
        store = cls(with_stored_types(module, source), source, results=results)
        store.check()
        return store

    @classmethod
    def of(cls, module: Module, arrays: Mapping[str, Any], results: ResultStore | None = None) -> WeightStore:
        """Return a store over arrays in memory, checked as :meth:`load` does."""
        return cls.loaded(module, ArraySource(arrays), results)

    @classmethod
    def random(cls, module: Module, seed: int = 0) -> WeightStore:
        """Return a store of the initial numbers: a function of the seed and each weight's name alone."""
        return cls(module, seed=seed)

    @classmethod
    def random_packed(cls, module: Module, seed: int = 0) -> WeightStore:
        """Return a store whose storage-typed weights are random codes, never quantised from numbers."""
        return cls(module, seed=seed, random_codes=True)

    def with_module(self, module: Module) -> WeightStore:
        """Return a store of the same sources for a later stage of the module."""
        return WeightStore(module, self.source, self.seed, self.results, self._random_codes)

    # -- checks -------------------------------------------------------------------------------------------
    def check(self, whole: bool = True) -> None:
        """Compare the source with what the module's weights want.

        Args:
            whole: the module is the whole model, so that a tensor it does not want is an error.

        Raises:
            BundleError: tensors are missing, misshapen or left over; all are listed together.
        """
        if self.source is None:
            return
        have = set(self.source.names())
        wanted: dict[str, tuple[int, ...] | None] = {}
        floats: dict[str, None] = {}
        misfit: list[str] = []
        for weight in self.module.weights.values():
            evaluator = self._evaluator(weight)
            for leaf in leaves(weight.recipe):
                if leaf.kind == "stored":
                    continue
                name = evaluator.leaf_name(leaf)
                for suffix in evaluator.suffixes(leaf):
                    wanted[name + suffix] = None
                packed = evaluator.packed(leaf)
                if leaf.kind in INITIALISERS and packed is None:
                    wanted[name] = evaluator.shape(leaf)
                    if weight.type.is_float:
                        floats[name] = None
                elif packed is not None and packed.shape != weight.type.shape and leaf is weight.recipe:
                    misfit.append(f"{name} is {packed}, want {[str(d) for d in weight.type.shape]}")
        missing = [name for name in wanted if name not in have]
        extra = [name for name in self.source.names() if whole and name not in wanted]
        misshapen = [f"{name} is {list(self.source.shape(name))}, want {list(shape)}" for name, shape in wanted.items()
                     if shape is not None and name in have and self.source.shape(name) != shape]
        misshapen += misfit
        misshapen += self._misfits(have) if not (missing or misshapen) else []
        whole_numbers = [f"{name} is {dtype}" for name in floats if name in have and (dtype := self._integer(name))]
        groups = (("missing", missing), ("of another shape", misshapen),
                  ("of whole numbers where the model wants floating-point ones", whole_numbers),
                  ("not of this model", extra))
        lines = [f"{len(names)} {what}: {_listed(names)}" for what, names in groups if names]
        if lines:
            raise BundleError(f"{self.source.description} does not fit @{self.module.name}: " + "; ".join(lines),
                              "the weights belong to another spec, or to another version of it")

    def _integer(self, name: str) -> str | None:
        """Return the dtype of a tensor of the source that holds no floating-point numbers, None for one that does."""
        assert self.source is not None
        dtype = self.source.read(name, ((0, 0),) * len(self.source.shape(name))).dtype
        return dtype.name if dtype.kind in "iub" else None

    def _misfits(self, have: set[str]) -> list[str]:
        """Return the weights whose recipe makes another shape than the weight has."""
        found: list[str] = []
        for name, weight in self.module.weights.items():
            made = self._evaluator(weight).shape(weight.recipe)
            if made != weight.type.shape:
                found.append(f"{name} is {list(made)}, want {[str(d) for d in weight.type.shape]}")
        return found

    def _weight(self, name: str) -> Weight:
        if name not in self.module.weights:
            near = nearest(name, list(self.module.weights))
            raise InputError(f"@{self.module.name} has no weight '{name}'", f"did you mean '{near}'?" if near else None)
        return self.module.weights[name]

    def _evaluator(self, weight: Weight) -> Evaluator:
        return Evaluator(weight.name, fixed_shape(weight.type), self.source, self.seed, self.results)

    # -- numbers ------------------------------------------------------------------------------------------
    def array(self, name: str, rows: tuple[int, int] | None = None) -> Array:
        """Return the numbers of a weight: f32 (rounded to its 16-bit type, or decoded), or its integer type.

        Args:
            name: of the weight.
            rows: (start, stop) along dim 0; everything when None (made slice by slice).

        Raises:
            BundleError: the source lacks the tensor or holds NaN, or neither source nor seed was given.
        """
        weight = self._weight(name)
        shape = fixed_shape(weight.type)
        if rows is not None or not shape:
            return self._numbers(weight, shape, rows or (0, 1))
        first: Array | None = None
        for start, stop, part in self.slices(name):
            if (start, stop) == (0, shape[0]):
                return part
            if first is None:
                first = np.empty(shape, part.dtype)
            first[start:stop] = part
        return np.zeros(shape, np.float32) if first is None else first

    def _numbers(self, weight: Weight, shape: tuple[int, ...], rows: tuple[int, int]) -> Array:
        if shape:
            _check_rows(weight, shape, rows)
        if not shape or not _sliceable(weight.type):
            return self._made(weight, shape, rows)
        width = int(np.prod(shape[1:], dtype=np.int64))
        return filled(rows, width, lambda start, stop: {"": self._made(weight, shape, (start, stop))})[""]

    def _made(self, weight: Weight, shape: tuple[int, ...], rows: tuple[int, int]) -> Array:
        """Return the numbers of rows."""
        element = weight.type.element
        if isinstance(element, Storage):
            return packing.decode(self.quantised(weight.name, rows), to=self.module.decoded)
        box = (rows, *whole(shape[1:])) if shape else ()
        numbers = self._evaluator(weight).numbers(weight.recipe, box)
        if not element.is_float:
            return numbers.astype(element.numpy, copy=False)
        # A 16-bit weight holds rounded numbers; f32 keeps them exactly.
        with np.errstate(over="ignore"):
            stored = numbers.astype(element.numpy, copy=False).astype(np.float32, copy=False)
        if not np.isfinite(stored).all():
            raise BundleError(f"weight '{weight.name}' has numbers beyond {element}", "store it as f32 or bf16")
        return stored

    def slices(self, name: str, limit: int = SLICE_BYTES) -> Iterator[tuple[int, int, Array]]:
        """Yield (start, stop, numbers) of consecutive rows (experts) of at most ``limit`` bytes of f32 each."""
        weight = self._weight(name)
        shape = fixed_shape(weight.type)
        for start, stop in self.row_ranges(name, limit):
            yield start, stop, self._numbers(weight, shape, (start, stop))

    def row_ranges(self, name: str, limit: int = SLICE_BYTES) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of consecutive rows that are at most ``limit`` bytes as f32 (at least one row)."""
        weight = self._weight(name)
        shape = fixed_shape(weight.type)
        if not shape or not _sliceable(weight.type):
            yield 0, shape[0] if shape else 1
            return
        width = max(int(np.prod(shape[1:], dtype=np.int64)) * 4, 1)
        step = max(limit // width, 1)
        for start in range(0, shape[0], step):
            yield start, min(start + step, shape[0])

    # -- bytes --------------------------------------------------------------------------------------------
    def quantised(self, name: str, rows: tuple[int, int] | None = None) -> QTensor:
        """Return a storage-typed weight, or rows of it, as codes and scales.

        Raises:
            InputError: the weight has a plain type, or rows cut through its groups.
        """
        weight = self._weight(name)
        type, shape = weight.type.element, fixed_shape(weight.type)
        if not isinstance(type, Storage):
            raise InputError(f"weight '{name}' is {weight.type}: it has no codes")
        packing.check_storage(type, shape)
        span = rows or (0, shape[0])
        _check_rows(weight, shape, span)
        if span != (0, shape[0]) and not _sliceable(weight.type):
            raise InputError(f"weight '{name}' is {weight.type}: its groups run along dim 0, so it has no row slices")
        if self._random_codes:
            return self._random(name, type, shape, span)
        evaluator = self._evaluator(weight)
        if rows is not None or not _sliceable(weight.type):
            return evaluator.quantised(weight.recipe, type, span)
        # Quantising holds a few copies of its numbers at once, so its slices are a quarter of the usual.
        ranges = self.row_ranges(name, SLICE_BYTES // 4)
        parts = [evaluator.quantised(weight.recipe, type, part).parts() for part in ranges]
        arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        return QTensor.of_parts(type, arrays)

    def _random(self, name: str, type: Storage, shape: tuple[int, ...], rows: tuple[int, int]) -> QTensor:
        """Return random codes with scales that give numbers of about the size of trained weights (0.02)."""
        assert self.seed is not None
        low, high = (0, 15)
        if type.kind not in ("nf4", "fp4"):
            high = 2 ** (type.bits - 1) - 1
            low = -1 if type.kind == "t2" else -high - 1
        part = packing.zeros(type, (rows[1] - rows[0], *shape[1:]))
        codes = code_rows(self.seed, name, shape, low, high, rows)
        spread = {"t2": 0.8, "nf4": 0.5, "fp4": 3.0}.get(type.kind) or float(2**type.bits - 1) / 12**0.5
        unit = 0.02 / spread / (1.0 if part.row is None else 8.0)
        if type.scale == "e8m0":
            part.scale.fill(127 + round(math.log2(unit)))
        elif part.row is None:
            part.scale.fill(unit)
        else:
            part.scale.fill(8)
            part.row.fill(unit)
        if part.zero is not None:
            part.zero.fill(2 ** (type.bits - 1))
        return QTensor(codes, part.scale, part.zero, type, part.row)

    def parts(self, name: str, rows: tuple[int, int] | None = None) -> dict[str, Array]:
        """Return the tensors of a weight as they are stored in files, keyed by suffix.

        A plain weight is ``""`` in its own type.  A storage-typed one is ``""`` (codes in the canonical packing),
        ``.scale``, and where it has them ``.zero`` and ``.row``; the scales of s4 are packed two to a byte.
        """
        weight = self._weight(name)
        type = weight.type.element
        if not isinstance(type, Storage):
            return {"": self.array(name, rows).astype(type.numpy, copy=False)}
        return packing.packed_parts(self.quantised(name, rows))

    def bytes(self, name: str) -> int:
        """Return the bytes of a weight in files."""
        return self._weight(name).type.bytes()


def part_layout(type: TensorType) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of each tensor that :meth:`WeightStore.parts` gives for a weight of ``type``."""
    shape, element = fixed_shape(type), type.element
    if not isinstance(element, Storage):
        return {"": (element.numpy, shape)}
    return packing.layout(element, shape)


def saved(module: Module) -> Module:
    """Return ``module`` reading a file that holds every weight by its own name, as :meth:`WeightStore.parts` made it.

    How the numbers came to be (merged, quantised, a stored result) no longer matters to who reads that file.
    """
    weights = {
        name: weight if _stands_for_itself(weight) else replace(weight, recipe=Recipe("load", {"name": name}))
        for name, weight in module.weights.items()
    }
    return replace(module, weights=weights)


def _stands_for_itself(weight: Weight) -> bool:
    """Whether a weight of plain numbers is read by its own name already."""
    plain = not isinstance(weight.type.element, Storage)
    return plain and weight.recipe.kind in INITIALISERS and "name" not in weight.recipe.args


def fixed_shape(type: TensorType) -> tuple[int, ...]:
    """Return the shape of a weight's type.

    Raises:
        InternalError: a dim is symbolic.
    """
    shape = tuple(d for d in type.shape if isinstance(d, int))
    if len(shape) != type.rank:
        raise InternalError(f"a weight has the symbolic type {type}")
    return shape


def _sliceable(type: TensorType) -> bool:
    """Whether rows (dim 0) can be made by themselves: groups must not run along dim 0."""
    return not isinstance(type.element, Storage) or type.element.group == -1 or type.rank + type.element.axis > 0


def _check_rows(weight: Weight, shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    if not 0 <= rows[0] <= rows[1] <= shape[0]:
        raise InputError(f"weight '{weight.name}' has rows 0..{shape[0]}, {rows[0]}..{rows[1]} was asked for")


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
