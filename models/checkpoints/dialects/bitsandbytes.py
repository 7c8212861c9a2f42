"""bitsandbytes checkpoints: nf4 (QLoRA, arXiv:2305.14314) and LLM.int8() (arXiv:2208.07339), as it saves them.

4 bits, of a weight [out, in]: ``weight`` holds two codes a byte in the order of the flattened tensor, the earlier one
in the high bits; ``weight.absmax`` one f32 for each ``blocksize`` numbers; ``weight.quant_map`` the 16 levels;
``weight.quant_state.bitsandbytes__nf4`` the rest as JSON.  ``w = level absmax``.  With double quantisation ``absmax``
is u8 codes of ``nested_quant_map``, times one f32 ``nested_absmax`` a nested block, plus ``nested_offset``; it is
resolved to f32 as bitsandbytes does.

8 bits: ``weight`` i8 [out, in] and ``SCB`` f32 [out], the largest magnitude of each row.  ``w = code SCB / 127``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from omnic.errors import BundleError, InputError
from omnic.ir.op import Array
from omnic.ir.packing import NF4_LEVELS, QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.sources import Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.base import DialectSource, everything, stems

__all__ = ["bitsandbytes"]

_SAID = """load_in_4bit load_in_8bit _load_in_4bit _load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant
    bnb_4bit_quant_storage llm_int8_skip_modules"""
_ARITHMETIC = """bnb_4bit_compute_dtype llm_int8_threshold llm_int8_enable_fp32_cpu_offload
    llm_int8_has_fp16_weight"""
_STATE = ".quant_state.bitsandbytes__"
#: numbers that share a scale, at least: below, scales take more room than codes
_SMALLEST = 16


@dataclass(frozen=True)
class _FourBit:
    """A weight of 4 bits.

    Attributes:
        name: of the weight.
        type: groups that each lie within one block.
        shape: [out, in].
        block: numbers that share an absmax, of the flattened tensor.
        nested: (numbers of a nested block, offset) with double quantisation.
    """

    name: str
    type: Storage
    shape: tuple[int, ...]
    block: int
    nested: tuple[int, float] | None

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of the weight: a run of its bytes."""
        width = self.shape[1]
        size = source.read(self.name, ((0, 0),) * len(source.shape(self.name))).dtype.itemsize
        # Rows need not start on an item of the type that the bytes are stored as.
        first, last = start * width // 2, stop * width // 2
        items = (first // size, -(-last // size))
        stored = source.read(self.name, (items, (0, 1)) if len(source.shape(self.name)) == 2 else (items,))
        lying = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)[first - items[0] * size :][: last - first]
        codes = np.empty((lying.size, 2), np.int8)
        codes[:, 0], codes[:, 1] = lying >> np.uint8(4), lying & np.uint8(15)
        group = self.type.group or width
        of_group = np.arange(start * width // group, stop * width // group) * group // self.block
        scale = self._absmax(source, int(of_group[0]), int(of_group[-1]) + 1)[of_group - of_group[0]]
        return QTensor(codes.reshape(-1, width), scale.reshape(stop - start, -1), None, self.type)

    def _absmax(self, source: Source, first: int, last: int) -> Array:
        """Return the scales of blocks, f32."""
        found = np.asarray(source.read(f"{self.name}.absmax", ((first, last),)))
        if self.nested is None:
            return found.astype(np.float32, copy=False)
        block, offset = self.nested
        levels = everything(source, f"{self.name}.nested_quant_map").astype(np.float32)
        outer = everything(source, f"{self.name}.nested_absmax").astype(np.float32)
        return levels[found] * outer[np.arange(first, last) // block] + np.float32(offset)


@dataclass(frozen=True)
class _EightBit:
    """A weight of 8 bits: the stem of its tensors, its type and shape [out, in]."""

    stem: str
    type: Storage
    shape: tuple[int, ...]

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of the weight."""
        codes = np.array(source.read(f"{self.stem}.weight", ((start, stop), (0, self.shape[1]))))
        largest = np.asarray(source.read(f"{self.stem}.SCB", ((start, stop),)), np.float32)
        return QTensor(codes, (largest / np.float32(127))[:, None], None, self.type)


def bitsandbytes(source: Source, config: Config) -> DialectSource:
    """Read a bitsandbytes checkpoint.

    Raises:
        InputError: levels other than nf4's, or blocks that rows cut too short.
        BundleError: tensors of a module are missing, or do not fit together.
    """
    config.ignore(
        "the tensors say it",
        *_SAID.split(),
    )
    config.ignore(
        "activations stay f32 here, outliers or not",
        *_ARITHMETIC.split(),
    )
    packed: dict[str, _FourBit | _EightBit] = {}
    used: list[str] = []
    have = set(source.names())
    for name in source.names():
        if _STATE in name:
            weight, kind = name.split(_STATE)
            if kind != "nf4":
                raise InputError(
                    f"{config.origin}: {weight} is bitsandbytes' {kind}, whose levels no type of omnic has",
                    "omnic reads nf4 and int8: quantise again with bnb_4bit_quant_type='nf4', or fetch the checkpoint "
                    "that is not quantised",
                )
            parts = ("", ".absmax", ".quant_map", f"{_STATE}{kind}")
            found = _four_bit(source, weight, name, [p for p in parts if weight + p not in have])
            packed[weight] = found
            nested = (".nested_absmax", ".nested_quant_map") if found.nested is not None else ()
            used += [weight + part for part in (*parts, *nested)]
    for stem in stems(source, ".SCB"):
        packed[f"{stem}.weight"] = _eight_bit(source, stem)
        used += [f"{stem}.{part}" for part in ("weight", "SCB", "weight_format")]
    return DialectSource(source, {n: packed[n] for n in source.names() if n in packed}, used)


def _four_bit(source: Source, name: str, state: str, missing: list[str]) -> _FourBit:
    if missing:
        raise BundleError(
            f"{source.description}: tensors of a quantised weight are missing: "
            + ", ".join(name + part for part in missing)
        )
    try:
        facts = cast("dict[str, Any]", json.loads(everything(source, state).tobytes()))
        shape, block = tuple(int(d) for d in facts["shape"]), int(facts["blocksize"])
        nested = None
        if "nested_blocksize" in facts:
            nested = (int(facts["nested_blocksize"]), float(facts["nested_offset"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{source.description}: {state} is damaged: {error}") from error
    if len(shape) != 2 or block < 1:
        raise BundleError(f"{source.description}: {state} describes {list(shape)} in blocks of {block}, not a matrix")
    size = source.read(name, ((0, 0),) * len(source.shape(name))).dtype.itemsize
    blocks, numbers = -(-math.prod(shape) // block), math.prod(source.shape(name)) * size * 2
    if source.shape(f"{name}.absmax") != (blocks,) or numbers != math.prod(shape):
        raise BundleError(
            f"{source.description}: {name} holds {numbers} codes and {source.shape(f'{name}.absmax')} scales, "
            f"{list(shape)} in blocks of {block} wants {math.prod(shape)} and {blocks}"
        )
    if (everything(source, f"{name}.quant_map").astype(np.float32) != NF4_LEVELS).any():
        raise InputError(f"{source.description}: {name}.quant_map are not the levels of nf4")
    if nested is not None:
        outer = (f"{name}.nested_absmax", f"{name}.nested_quant_map")
        wanted = ((-(-blocks // nested[0]),), (256,))
        for part, want in zip(outer, wanted, strict=True):
            if part not in source.names() or source.shape(part) != want:
                raise BundleError(f"{source.description}: {part} is missing or not {list(want)}")
    width = shape[1]
    group = math.gcd(width, block)
    if width % 2 or (group < _SMALLEST and group != width):
        raise InputError(
            f"{source.description}: {name} has {width} inputs: rows cut its blocks of {block} in pieces of {group}, "
            "whose scales would take more room than their codes",
            "fetch the checkpoint that is not quantised, and compile it with int4-packing: {kind: nf4}",
        )
    return _FourBit(name, Storage("nf4", 0 if group == width else group, scale="f32"), shape, block, nested)


def _eight_bit(source: Source, stem: str) -> _EightBit:
    if f"{stem}.weight" not in source.names():
        raise BundleError(f"{source.description}: {stem}.weight is missing, {stem}.SCB is there")
    shape = source.shape(f"{stem}.weight")
    dtype = source.read(f"{stem}.weight", ((0, 0),) * len(shape)).dtype
    if len(shape) != 2 or dtype != np.int8 or source.shape(f"{stem}.SCB") != (shape[0],):
        raise BundleError(
            f"{source.description}: {stem}.weight is {dtype} {list(shape)} and {stem}.SCB "
            f"{list(source.shape(f'{stem}.SCB'))}, not i8 [out, in] and [out]"
        )
    form = f"{stem}.weight_format"
    if form in source.names() and everything(source, form).any():
        raise InputError(
            f"{source.description}: {stem}.weight lies in the layout of a kernel, not row by row",
            "save the model again with bitsandbytes 0.45 or newer",
        )
    return _EightBit(stem, Storage("i8", 0, scale="f32"), shape)
