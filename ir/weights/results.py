"""The store of what calibrating passes found, addressed by a hash of all that went in."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from omnic.errors import BundleError, InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, parse_element
from omnic.ir.weights.sources import SafetensorsSource

__all__ = ["ResultStore"]


class ResultStore:
    """Tensors in a folder, one file a result, named by their key.

    A key is :meth:`key` of everything the result depends on (weights, data, options), so a result is computed
    once and a changed input is another result.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(**facts: str | int | float | bool | list[str] | None) -> str:
        """Return the key of a result that depends on ``facts`` (hashes of weights and data, options)."""
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise InputError(f"'{key}' is not the key of a stored result")
        return self.folder / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def put(self, key: str, result: Array | QTensor) -> None:
        """Keep ``result`` under ``key``; the file appears whole or not at all."""
        path = self._path(key)
        if isinstance(result, QTensor):
            tensors: Mapping[str, Array] = {name: np.ascontiguousarray(part) for name, part in result.parts().items()}
            about = {"type": str(result.type)}
        else:
            tensors, about = {"value": np.ascontiguousarray(result)}, dict[str, str]()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(save(dict(tensors), about))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def get(self, key: str) -> Array | QTensor:
        """Return the result of ``key``, memory-mapped.

        Raises:
            BundleError: there is none, or its file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            raise BundleError(f"stored result {key[:12]} is not in {self.folder}", "compile again to compute it")
        source = SafetensorsSource(path)
        parts = {name: source.read(name, tuple((0, d) for d in source.shape(name))) for name in source.names()}
        if "value" in parts:
            return parts["value"]
        type = parse_element(source.metadata.get("type", ""))
        if not isinstance(type, Storage) or "codes" not in parts or "scale" not in parts:
            raise BundleError(f"{path} is not a stored result")
        return QTensor.of_parts(type, parts)
