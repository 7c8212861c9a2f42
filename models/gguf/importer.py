"""A GGUF file opened as a model: its metadata read as a spec, its tensors as a weight source."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import BundleError
from omnic.ir.types import DType
from omnic.models.checkpoints.checkpoint import CAPACITY, Checkpoint
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.source import CheckpointSource, check_tensors
from omnic.models.decoder import build
from omnic.models.gguf.architectures import IGNORED, ROPE_FACTORS, Architecture, architecture_of, describe, table
from omnic.models.gguf.container import MAGIC, GgufFile, read_gguf
from omnic.models.gguf.source import PlainSource, gguf_source
from omnic.models.gguf.vocabulary import used_tokens
from omnic.spec import parse_spec

__all__ = ["is_gguf", "open_gguf"]

_LONG = 16
# First word of the keys general.* that say nothing of what a model computes.
_NAMES = frozenset((
    "name", "author", "organization", "description", "version", "url", "license", "finetune", "basename", "size_label",
    "quantized_by", "tags", "languages", "datasets", "type", "file_type", "quantization_version", "alignment", "doi",
    "parameter_count", "repo_url", "uuid", "source", "base_model", "dataset", "sampling",
))  # fmt: skip


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a file with the name, or the first bytes, of a GGUF file."""
    if path.suffix == ".gguf" and not path.is_dir():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def open_gguf(path: Path, *, context: int | None = None, name: str | None = None) -> Checkpoint:
    """Read a file's metadata and the entries of its tensors; no weight is read.

    Args:
        path: the file.
        context: tokens the states shall hold.
        name: of the model; the file's when None.

    Raises:
        BundleError: no such file, damaged, of an unknown tensor type, or tensors that do not fit the metadata.
        InputError: an architecture or a value of the metadata that omnic cannot express.
    """
    file = read_gguf(path)
    parts = file.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise BundleError(f"{path} is one of {parts} parts of a model",
                          "join them with llama.cpp: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf")
    config = Config({key: _short(value) for key, value in file.metadata.items()}, str(path))
    config.capacity = CAPACITY if context is None else context
    arch = architecture_of(config)
    _tell_idle(config, file)
    plain, source = PlainSource(file), gguf_source(file)
    tensors = Tensors({n: plain.shape(n) for n in plain.names()})
    described = describe(config, arch, tensors, _factors(plain))
    capacity = min(config.capacity, described["context"])
    dtype = _dtype(file)
    data: dict[str, Any] = {"model": name or _name(path), **{key: described.pop(key) for key in ("vocab", "context")}}
    if 0 < (tokens := used_tokens(file.metadata)) < data["vocab"]["size"]:
        data["vocab"]["used"] = tokens
    data |= {"budget": {"context": capacity}, "dtype": dtype.value, **described}
    spec = parse_spec(json.dumps(data), str(path.with_suffix(".yaml")), syntax="yaml")
    module = build(spec)
    recipes = table(spec, arch, tensors)
    check_tensors(module, source, recipes, IGNORED)
    weights = CheckpointSource(source, recipes, dtype, str(path))
    return Checkpoint(path, _family(arch), spec, module, weights, config.effects())


def _family(arch: Architecture) -> Family:
    return Family(
        (arch.name,), f"{arch.title} (GGUF)", lambda config: describe(config, arch, Tensors({}), None),
        lambda spec, tensors: table(spec, arch, tensors), IGNORED, source="llama.cpp",
    )  # fmt: skip


def _short(value: Any) -> Any:
    """Return a long list as words, for reports; the vocabulary is read from the metadata itself."""
    return f"{len(value)} entries" if isinstance(value, list) and len(value) > _LONG and not _numbers(value) else value


def _numbers(value: list[Any]) -> bool:
    return len(value) < 1024 and all(isinstance(item, int | float) for item in value)


def _tell_idle(config: Config, file: GgufFile) -> None:
    """Say of the keys that are not the architecture's what they are for."""
    for key in file.metadata:
        room, _, rest = key.partition(".")
        if room == "general" and rest.split(".")[0] in _NAMES:
            config.ignore("a name, or what the tensors say themselves", key)
        elif room == "tokenizer":
            config.raw(key, "the tokenizer's files", None)
        elif room in ("quantize", "imatrix", "split") or key.startswith("GGUF."):
            config.ignore("how the file was made", key)


def _factors(source: PlainSource) -> list[float] | None:
    if ROPE_FACTORS not in source.names():
        return None
    numbers = source.read(ROPE_FACTORS, ((0, source.shape(ROPE_FACTORS)[-1]),))
    return [float(n) for n in numbers.astype(np.float32)]


def _dtype(file: GgufFile) -> DType:
    """Return the type that most numbers of the plain matrices have (f32 for the numbers of block types)."""
    sizes: Counter[str] = Counter()
    for entry in file.tensors.values():
        if entry.codec.storage is None and len(entry.shape) > 1:
            sizes[entry.codec.name] += entry.rows * entry.shape[-1]
    plain = {"F16": DType.F16, "BF16": DType.BF16}
    return plain.get(sizes.most_common(1)[0][0], DType.F32) if sizes else DType.F32


def _name(path: Path) -> str:
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-_.")
    return text[:64] or "model"
