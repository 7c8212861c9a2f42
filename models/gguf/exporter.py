"""A model's weights as the tensors of a GGUF file, and the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from omnic.errors import InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore
from omnic.ir.weights.store import fixed_shape
from omnic.models.gguf.architectures import ROPE_FACTORS, Place
from omnic.models.gguf.codecs import (
    CODECS,
    Codec,
    encode_q4_0,
    encode_q8_0,
    pack_q4_0,
    pack_q5_0,
    pack_q8_0,
)
from omnic.models.gguf.publish import GgufModel
from omnic.models.gguf.writer import Output, write_container

__all__ = ["KEEP", "TYPES", "Written", "write_gguf"]

KEEP = "keep"
TYPES = (KEEP, "f32", "f16", "bf16", "q8_0", "q4_0")
"""Types a file's matrices may be written in; ``keep`` is that of each weight."""

SLICE = 1 << 24
_PACK: Mapping[str, Callable[[QTensor], Array]] = {"Q8_0": pack_q8_0, "Q4_0": pack_q4_0, "Q5_0": pack_q5_0}
_ROUND: Mapping[str, Callable[[Array], QTensor]] = {"Q8_0": encode_q8_0, "Q4_0": encode_q4_0}
# general.file_type (enum llama_ftype) of a file whose matrices are mostly of a type.
_FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "BF16": 32}


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Attributes:
        tensors: their number.
        types: tensors of each type by its name.
        kept: weights whose codes went into the file as they are.
    """

    tensors: int
    types: Mapping[str, int]
    kept: int


def write_gguf(
    file: BinaryIO, model: GgufModel, store: WeightStore, extra: Mapping[str, Any], type: str = KEEP,
    progress: Callable[[float], None] = lambda _: None,
) -> Written:
    """Write a model.

    Args:
        file: opened for writing, empty.
        model: how its spec is written.
        store: its weights.
        extra: metadata of the tokenizer.
        type: of the matrices, one of :data:`TYPES`; vectors and routers are F32, as llama.cpp wants them.
        progress: told the share that is written.

    Raises:
        InputError: a weight is in a storage type that the file cannot hold.
        BundleError: damaged weights.
    """
    outputs = [_output(store, name, place, type) for name, place in model.places.items()]
    if model.factors is not None:
        numbers = np.asarray(model.factors, np.float32)
        outputs.append(Output(ROPE_FACTORS, numbers.shape, CODECS["F32"], lambda: iter([numbers])))
    outputs = [_vector(output) for output in outputs]
    matrices = Counter(o.codec.name for o in outputs if len(o.shape) > 1)
    kind = matrices.most_common(1)[0][0]
    metadata = {**model.metadata, "general.file_type": _FILE_TYPE[kind], "general.quantization_version": 2, **extra}
    write_container(file, metadata, outputs, progress)
    kept = sum(_codec_of(store, name) is not None and type in (KEEP, _name_of(store, name)) for name in model.places)
    return Written(len(outputs), dict(Counter(o.codec.name for o in outputs)), kept)


def _vector(output: Output) -> Output:
    """Return a matrix of one row that the architecture has as a vector."""
    return replace(output, shape=output.shape[1:]) if output.name.endswith("_shexp.weight") and (
        output.shape[0] == 1 and "gate_inp" in output.name) else output


def _codec_of(store: WeightStore, name: str) -> Codec | None:
    """Return the type whose codes are those of a weight."""
    element = store.module.weights[name].type.element
    return next((c for c in CODECS.values() if c.storage == element and c.name in _PACK), None)


def _name_of(store: WeightStore, name: str) -> str:
    codec = _codec_of(store, name)
    return "" if codec is None else codec.name.lower()


def _output(store: WeightStore, name: str, place: Place, type: str) -> Output:
    weight = store.module.weights[name]
    shape, element, coded = fixed_shape(weight.type), weight.type.element, _codec_of(store, name)
    plain = len(shape) == 1 or name.endswith((".router", ".shared_gate"))
    if plain:
        codec = CODECS["F32"]
    elif type == KEEP:
        if isinstance(element, Storage) and coded is None:
            raise InputError(
                f"weight '{name}' is {element}, which is no type of GGUF",
                "write other types, which rounds its numbers once more: --type q8_0, q4_0, f16 or f32",
            )
        codec = coded or CODECS[str(element).upper()]
    else:
        codec = CODECS[type.upper()]
    if shape[-1] % codec.values:
        if type == KEEP:
            raise InputError(f"weight '{name}' has rows of {shape[-1]} numbers, no whole blocks of {codec.name}",
                             "write another type: --type f16 or f32")
        codec = CODECS["F16"]  # as llama.cpp's quantiser does
    return Output(place.name, shape, codec, lambda: _parts(store, name, shape, codec, coded, place.heads))


def _parts(
    store: WeightStore, name: str, shape: tuple[int, ...], codec: Codec, coded: Codec | None, heads: int
) -> Iterator[Array]:
    """Yield the bytes of a tensor: rows of blocks."""
    count = shape[0]
    step = max(SLICE // max(int(np.prod(shape[1:], dtype=np.int64)), 1), 1)
    if heads:  # whole heads, so that a slice holds the rows it trades
        size = count // heads
        step = max(step // size, 1) * size
    for start in range(0, count, step):
        rows = (start, min(start + step, count))
        if codec is coded:
            blocks = _PACK[codec.name](_flat(store.quantised(name, rows)))
        else:
            blocks = _encoded(store.array(name, rows).reshape(-1, 1 if len(shape) == 1 else shape[-1]), codec)
        yield _paired(blocks, count // heads) if heads else blocks


def _flat(q: QTensor) -> QTensor:
    """Return a tensor as rows of its innermost dim."""
    return QTensor(q.codes.reshape(-1, q.codes.shape[-1]), q.scale.reshape(-1, q.scale.shape[-1]), None, q.type)


def _encoded(numbers: Array, codec: Codec) -> Array:
    """Return f32[rows, K] as u8[rows, bytes of a row].

    Raises:
        InputError: numbers beyond f16.
    """
    if codec.name in _ROUND:
        return _PACK[codec.name](_ROUND[codec.name](numbers))
    dtype = codec.decode(np.zeros((0, codec.bytes), np.uint8)).dtype
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(numbers).astype(dtype)
    if not np.isfinite(stored.astype(np.float32)).all():
        raise InputError(f"a weight has numbers beyond {codec.name}", "write --type bf16 or f32")
    return stored.view(np.uint8).reshape(len(numbers), -1)


def _paired(blocks: Array, size: int) -> Array:
    """Return rows of heads of ``size`` in llama.cpp's order: (0, half), (1, half + 1), ..."""
    order = np.arange(size).reshape(2, size // 2).T.reshape(-1)
    return np.ascontiguousarray(blocks.reshape(-1, size, blocks.shape[-1])[:, order].reshape(blocks.shape))
