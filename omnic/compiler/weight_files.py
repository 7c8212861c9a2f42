"""Weight files: opening whatever ``weights:`` names, and writing a module's weights.

``weights:`` may name a safetensors file or a folder of shards under omnic's names, or a published checkpoint
(a folder with ``config.json``) or a GGUF file, whose tensors are then read through its family's table.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omnic.compiler.progress import Progress, silent
from omnic.ir.types import DType, Storage
from omnic.ir.weights import SafetensorsSource, WeightStore
from omnic.ir.weights.sources import TYPES_KEY, Source
from omnic.ir.weights.store import part_layout
from omnic.models.checkpoints.checkpoint import is_checkpoint, open_checkpoint
from omnic.models.gguf.importer import is_gguf, open_gguf
from omnic.runtime.files import disk_errors, sha256_file

__all__ = ["fingerprint", "weight_source", "write_weights"]

_BY_NUMPY = {d.numpy: d.value.upper() for d in DType}
"""A dtype as the header of a safetensors file has it."""


def weight_source(path: Path) -> Source:
    """Open a weight file, a folder of shards, or a published checkpoint.

    Raises:
        BundleError: missing, damaged or truncated files, or tensors that do not fit the checkpoint's configuration.
        InputError: a checkpoint of a family that omnic does not know.
    """
    if is_gguf(path):
        return open_gguf(path).source
    return open_checkpoint(path).source if is_checkpoint(path) else SafetensorsSource(path)


def fingerprint(path: Path) -> str:
    """Return what tells weights apart in the key of a bundle.

    For one file the sha256 of its bytes.  For a folder, which may hold many gigabytes, a hash of names, sizes, times of
    change and headers of its files.
    """
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*.json")]):
        found = file.stat()
        digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        if file.suffix == ".safetensors":
            with file.open("rb") as stream:
                digest.update(stream.read(8 + min(int.from_bytes(stream.read(8), "little"), found.st_size)))
    return digest.hexdigest()


def write_weights(store: WeightStore, path: Path, progress: Progress = silent) -> None:
    """Write every weight of a store to a safetensors file, slice by slice (huggingface.co/docs/safetensors).

    Weights lie under their own names, codes with their scales beside them; types that are not the spec's are named in
    the metadata.  The file appears whole or not at all.
    """
    weights = store.module.weights
    header: dict[str, Any] = {"__metadata__": {TYPES_KEY: json.dumps(_own_types(store))}}
    offset = 0
    for name, weight in weights.items():
        for suffix, (dtype, shape) in part_layout(weight.type).items():
            size = int(dtype.itemsize)
            for dim in shape:
                size *= dim
            header[name + suffix] = {
                "dtype": _BY_NUMPY[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_errors(path), part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
            for done, name in enumerate(weights):
                progress("weights", done / len(weights))
                for suffix, (begin, stream) in _streams(store, name, header, 8 + len(text)).items():
                    file.seek(begin)
                    for rows in stream:
                        file.write(store.parts(name, rows)[suffix].tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _streams(
    store: WeightStore, name: str, header: dict[str, Any], base: int
) -> dict[str, tuple[int, list[tuple[int, int] | None]]]:
    """Return of each part of a weight where it begins and the row ranges it is written in."""
    rank = store.module.weights[name].type.rank
    ranges: list[tuple[int, int] | None] = list(store.row_ranges(name)) if rank else [None]
    suffixes = part_layout(store.module.weights[name].type)
    return {s: (base + header[name + s]["data_offsets"][0], ranges) for s in suffixes}


def _own_types(store: WeightStore) -> dict[str, str]:
    """Return the types of weights that another compile could not know: codes, and floats wider than the rest."""
    plain = [w.type.element for w in store.module.weights.values() if isinstance(w.type.element, DType)]
    usual = max(set(plain), key=plain.count, default=DType.F32)
    return {
        name: str(w.type)
        for name, w in store.module.weights.items()
        if isinstance(w.type.element, Storage) or w.type.element != usual
    }
