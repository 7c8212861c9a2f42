"""Weights of a package, read back from its own bytes into the IR's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError
from omnic.ir import packing
from omnic.ir.graph import Module
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.sources import Box
from omnic.ir.weights.store import fixed_shape
from omnic.targets.coreml.files import WEIGHTS
from omnic.targets.coreml.mil import BlobReader
from omnic.targets.coreml.stored import form_of, read_codes, unplaced

__all__ = ["PackageSource"]

_READERS = {
    "fp32": ("read_float_data", np.float32), "fp16": ("read_fp16_data", np.float16),
    "int32": ("read_int32_data", np.int32), "int8": ("read_int8_data", np.int8), "int4": ("read_int4_data", np.int8),
    **{f"uint{b}": (f"read_uint{b}_data", np.uint8) for b in (1, 2, 3, 4, 6, 8)},
}


class PackageSource:
    """The weights of a bundle's packages by the names of ``module.ir``: codes canonically packed, numbers as they lie.

    Args:
        folder: of the bundle.
        packages: its packages.
        module: of the bundle.
        table: weight -> part -> package, offset, word and shape, or numbers that lie in the program itself.
        tables: whether codes of 4 bits went through tables.
    """

    def __init__(
        self, folder: Path, packages: Sequence[str], module: Module, table: Mapping[str, Mapping[str, Any]],
        tables: bool,
    ) -> None:
        self._readers: dict[str, Any] = {}
        for package in packages:
            file = folder / package / WEIGHTS
            if not file.is_file():
                raise BundleError(f"{file}: the package has no weight file",
                                  "copy the bundle again, or compile it again")
            self._readers[package] = BlobReader(str(file))
        self.description = ", ".join(str(folder / package) for package in packages)
        self._module, self._table, self._tables = module, table, tables

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors: a weight, its scales, zero points and row factors."""
        found: list[str] = []
        for name in self._table:
            element = self._module.weights[name].type.element
            found.append(name)
            if isinstance(element, Storage):
                found += [name + suffix for suffix in packing.layout(element, self._shape(name)) if suffix]
        return tuple(found)

    def _shape(self, name: str) -> tuple[int, ...]:
        return fixed_shape(self._module.weights[name].type)

    def _split(self, name: str) -> tuple[str, str]:
        if name in self._table:
            return name, ""
        stem, _, suffix = name.rpartition(".")
        return stem, f".{suffix}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor as the canonical packing has it."""
        weight, suffix = self._split(name)
        element = self._module.weights[weight].type.element
        if not isinstance(element, Storage):
            return self._shape(weight)
        return tuple(int(d) for d in packing.layout(element, self._shape(weight))[suffix][1])

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Return a part of a tensor: (start, stop) of each dim."""
        weight, suffix = self._split(name)
        element = self._module.weights[weight].type.element
        if isinstance(element, Storage):
            found = packing.packed_parts(self.tensor(weight))[suffix]
        else:
            found = self._part(weight, "").reshape(self._shape(weight))
        return found[tuple(slice(a, b) for a, b in box)]

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a weight of codes; all of them where its groups run along the rows."""
        found = self.tensor(name)
        return found if rows == (0, found.shape[0]) else found.pick(slice(*rows))

    def tensor(self, name: str) -> QTensor:
        """Return a weight of codes."""
        element, shape = self._module.weights[name].type.element, self._shape(name)
        assert isinstance(element, Storage)
        form = form_of(element, shape, self._tables)
        codes = read_codes(self._part(name, "codes").reshape(shape), element, form)
        scale = unplaced(self._part(name, "scale").reshape(form.scale), element, shape, form)
        zero = None
        if form.zero:
            shifted = unplaced(self._part(name, "zero").reshape(form.scale), element, shape, form)
            zero = (shifted.astype(np.int16) + 2 ** (element.bits - 1)).astype(np.uint8)
        row = None
        if element.scale == "s4":
            row = self._part(name, "row").reshape(scale.shape[:-1])
            scale = scale.astype(np.uint8)
        elif element.scale == "e8m0":
            scale = (np.rint(np.log2(scale.astype(np.float64))) + 127).astype(np.uint8)
        else:
            scale = scale.astype({"f16": np.float16, "f32": np.float32, "one": np.float32}[element.scale])
        return QTensor(codes, scale, zero, element, row)

    def _part(self, weight: str, part: str) -> NDArray[Any]:
        found = self._table[weight][part]
        if "values" in found:
            return np.asarray(found["values"], _READERS[found["word"]][1])
        method, dtype = _READERS[found["word"]]
        count = int(np.prod(found["shape"], dtype=np.int64))
        raw = np.asarray(getattr(self._readers[found["package"]], method)(found["offset"]))
        values = raw.view(dtype) if found["word"] == "fp16" else raw.astype(dtype, copy=False)
        return values.reshape(-1)[:count]
