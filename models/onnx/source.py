"""The tensors of an ONNX file as a source of weights: mapped, read in parts, nothing copied at import."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.errors import BundleError
from omnic.ir.op import Array
from omnic.ir.weights.sources import Box

__all__ = ["OnnxSource"]


class OnnxSource:
    """Named tensors of a model, and small tensors that were computed while importing.

    Args:
        path: what to call the file.
    """

    def __init__(self, path: str) -> None:
        self.description = path
        self._tensors: dict[str, Any] = {}
        self._computed: dict[str, Array] = {}

    def add(self, name: str, tensor: Any) -> None:
        """File an ``onnx_ir`` tensor under ``name``."""
        self._tensors[name] = tensor

    def compute(self, name: str, array: Array) -> str:
        """File numbers made at import under ``name`` (or one like it that is free) and return that name."""
        free, count = name, 0
        while free in self._computed or free in self._tensors:
            count += 1
            free = f"{name}.{count}"
        self._computed[free] = array
        return free

    def keep(self, names: set[str]) -> None:
        """Forget every tensor that no weight reads."""
        self._tensors = {n: t for n, t in self._tensors.items() if n in names}
        self._computed = {n: a for n, a in self._computed.items() if n in names}

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors."""
        return (*self._tensors, *self._computed)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        if name in self._computed:
            return self._computed[name].shape
        return tuple(int(d) for d in self._tensors[name].shape)

    def read(self, name: str, box: Box) -> Array:
        """Return the part of a tensor inside ``box``: a view of the mapped file where it can be."""
        whole = self._computed[name] if name in self._computed else self.numpy(name)
        return whole[tuple(slice(a, b) for a, b in box)]

    def numpy(self, name: str) -> Array:
        """Return a whole tensor of the file.

        Raises:
            BundleError: its bytes cannot be read as what the file says they are.
        """
        try:
            array = np.asarray(self._tensors[name].numpy())
        except (ValueError, OSError, TypeError, FileNotFoundError) as error:
            raise BundleError(f"{self.description}: tensor '{name}' cannot be read: {error}",
                              "fetch or export the file again") from None
        return array.astype(np.float32) if array.dtype == np.float64 else array
