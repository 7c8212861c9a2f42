"""torchao checkpoints as transformers saves them in safetensors.

The metadata of a file has an entry for each weight ``X.weight``: JSON with the tensor class ``_type``, its ``_data``
(``block_size``: numbers that share a scale, by dim) and the names of the tensors it is made of, which lie as
``X._weight_qdata``, ``X._weight_scale`` and so on.

* ``Int8Tensor`` (``Int8WeightOnlyConfig``): qdata i8 [out, in]; scale [out, groups]; zero_point i8, of the same shape;
* ``IntxUnpackedToInt8Tensor`` (``IntxWeightOnlyConfig``): the same, of 2 to 8 bits each in a byte of its own;
* ``Int4Tensor`` (``Int4WeightOnlyConfig``): qdata [out, in / 2] bytes of two signed codes, the earlier one in the low
  bits; scale and zero_point [groups, out], ``w = scale q + zero_point``: the zero points are offsets beside it.

``w = scale (q - zero_point)`` of the others.  The remaining classes hold codes in the order of one device's kernel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from omnic.errors import BundleError, InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, StorageKind
from omnic.ir.weights.sources import Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.base import DialectSource, everything, scale_kind, scales

__all__ = ["torchao"]

_KINDS: dict[int, StorageKind] = {8: "i8", 6: "i6", 5: "i5", 4: "i4", 3: "i3", 2: "i2"}
_SAID = "quant_type quant_type_kwargs modules_to_not_convert include_input_output_embeddings untie_embedding_weights"
_WAY_OUT = "quantise with IntxWeightOnlyConfig or Int8WeightOnlyConfig, or fetch the checkpoint that is not quantised"


@dataclass(frozen=True)
class _Weight:
    """One weight.

    Attributes:
        stem: what the names of its tensors begin with.
        type: of the weight.
        shape: [out, in].
        halves: two codes lie in a byte, and scales [groups, out].
    """

    stem: str
    type: Storage
    shape: tuple[int, ...]
    halves: bool

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of the weight."""
        width = self.shape[1] // (2 if self.halves else 1)
        stored = np.ascontiguousarray(source.read(f"{self.stem}qdata", ((start, stop), (0, width))))
        codes = _signed(stored.view(np.uint8)) if self.halves else np.array(stored, np.int8)
        scale = scales(self._of_group(source, "scale", start, stop), self.type.scale)
        zero = None
        if self.type.asym:
            middle = np.int16(1 << (self.type.bits - 1))
            zero = (self._of_group(source, "zero_point", start, stop).astype(np.int16) + middle).astype(np.uint8)
        return QTensor(codes, scale, zero, self.type)

    def _of_group(self, source: Source, part: str, start: int, stop: int) -> Array:
        groups = self.type.groups(self.shape[1])
        if self.halves:
            return np.ascontiguousarray(source.read(f"{self.stem}{part}", ((0, groups), (start, stop))).T)
        return np.ascontiguousarray(source.read(f"{self.stem}{part}", ((start, stop), (0, groups))))


def _signed(lying: Array) -> Array:
    """Return the two signed codes of each byte of rows."""
    codes = np.stack([lying & np.uint8(15), lying >> np.uint8(4)], axis=-1).astype(np.int8)
    return ((codes ^ np.int8(8)) - np.int8(8)).reshape(lying.shape[0], -1)


def torchao(source: Source, config: Config) -> DialectSource:
    """Read a torchao checkpoint.

    Raises:
        InputError: a tensor class whose numbers omnic has no type for, or quantised activations.
        BundleError: tensors of a weight are missing, or do not fit together.
    """
    config.ignore("the tensors say it", *_SAID.split())
    packed: dict[str, _Weight] = {}
    used: list[str] = []
    offsets: dict[str, str] = {}
    for name, facts in _entries(source).items():
        if facts["_type"] in ("Tensor", "torch.Tensor"):
            continue
        module, _, parameter = name.rpartition(".")
        stem = f"{module}._{parameter}_"
        packed[name] = _weight(source, name, stem, facts, config.origin)
        if facts["_type"] == "Int4Tensor" and _zero(source, stem, facts) is not None:
            offsets[name] = f"{stem}zero_point"
        used += [f"{stem}{part}" for part in facts["_tensor_data_names"]]
    return DialectSource(source, packed, used, offsets=offsets)


def _entries(source: Source) -> dict[str, dict[str, Any]]:
    """Return the entries of the metadata by the weights' names.

    Raises:
        BundleError: there are none, or they are damaged.
    """
    metadata = cast("dict[str, str]", getattr(source, "metadata", {}))
    found: dict[str, dict[str, Any]] = {}
    for name, text in metadata.items():
        if "." not in name or not text.startswith("{"):
            continue
        try:
            entry = json.loads(text)
            found[name] = {"_data": {}, "_tensor_data_names": [], **entry, "_type": str(entry["_type"])}
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{source.description}: the metadata of '{name}' is damaged") from error
    if not found:
        raise BundleError(
            f"{source.description}: the files say nothing of torchao's tensors in their metadata",
            "save the checkpoint again with save_pretrained of transformers 5",
        )
    return found


def _weight(source: Source, name: str, stem: str, facts: dict[str, Any], origin: str) -> _Weight:
    kind, data, parts = facts["_type"], facts["_data"], set(facts["_tensor_data_names"])
    missing = [stem + part for part in sorted(parts) if stem + part not in source.names()]
    if missing:
        raise BundleError(f"{source.description}: tensors of {name} are missing: {', '.join(missing)}")
    if kind not in ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor"):
        raise InputError(f"{origin}: {name} is torchao's {kind}, whose numbers omnic has no type for", _WAY_OUT)
    if data.get("act_quant_kwargs") is not None or data.get("activation_quantization") is not None:
        raise InputError(
            f"{origin}: {name} rounds its activations too, which omnic decides by a pass",
            "quantise weights only (Int8WeightOnlyConfig), or compile with int4-packing{activations=i8}",
        )
    if "act_pre_scale" in parts:
        raise InputError(f"{origin}: {name} scales its activations, which omnic has no weight for", _WAY_OUT)
    halves = kind == "Int4Tensor"
    bits = 8 if kind == "Int8Tensor" else 4 if halves else int(str(data["target_dtype"]["_data"]).removeprefix("int"))
    if bits not in _KINDS:
        raise InputError(f"{origin}: {name} has codes of {bits} bits", _WAY_OUT)
    stored, block = source.shape(f"{stem}qdata"), [int(d) for d in data["block_size"]]
    if len(stored) != 2:
        raise InputError(f"{origin}: {name} is a stack of quantised matrices", _WAY_OUT)
    shape = (stored[0], stored[1] * (2 if halves else 1))
    if len(block) != 2 or block[0] != 1 or shape[1] % block[1]:
        raise InputError(f"{origin}: {name} {list(shape)} has a scale for each block of {block}", _WAY_OUT)
    zero = None if halves else _zero(source, stem, facts)
    if zero is not None and (zero != np.rint(zero)).any():
        raise InputError(f"{origin}: {name} has zero points that are not whole numbers", _WAY_OUT)
    group = 0 if block[1] == shape[1] else block[1]
    type = Storage(_KINDS[bits], group, zero is not None, scale_kind(source, f"{stem}scale"))
    groups = shape[1] // block[1]
    wanted = (groups, shape[0]) if halves else (shape[0], groups)
    wrong = [p for p in ("scale", "zero_point") if p in parts and source.shape(stem + p) != wanted]
    if wrong:
        raise BundleError(
            f"{source.description}: {stem}{wrong[0]} is {list(source.shape(stem + wrong[0]))}, not {list(wanted)}"
        )
    return _Weight(stem, type, shape, halves)


def _zero(source: Source, stem: str, facts: dict[str, Any]) -> Array | None:
    """Return the zero points as f32, None where all are 0."""
    if "zero_point" not in facts["_tensor_data_names"]:
        return None
    found = everything(source, f"{stem}zero_point").astype(np.float32)
    return found if found.any() else None
