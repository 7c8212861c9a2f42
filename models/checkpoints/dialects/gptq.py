"""GPTQ checkpoints (arXiv:2210.17323) in the layout of AutoGPTQ and GPTQModel.

Of a module with weight [out, in], ``per = 32 / bits``:

* ``qweight`` i32 [in / per, out]: word k of a column holds the codes of inputs k per, k per + 1, ..., lowest bits
  first;
* ``qzeros`` i32 [groups, out / per]: zero points the same way along out; ``checkpoint_format: gptq`` (the default)
  stores them less one, word by word, and ``gptq_v2`` as they are;
* ``scales`` f16 [groups, out]; ``g_idx`` i32 [in]: the group of each input.

``w = scale (q - zero)``.  With ``desc_act`` the inputs of a group need not be neighbours: such a weight is shown with
its columns sorted by group, and the order as a tensor beside it (``.order``), by which a model gathers its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from omnic.errors import BundleError, InputError
from omnic.ir import packing
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, StorageKind
from omnic.ir.weights.sources import Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.base import (
    DialectSource,
    aligned,
    everything,
    scale_kind,
    scales,
    stems,
    words,
)

__all__ = ["gptq"]

_SAID = "desc_act sym static_groups dynamic lm_head act_group_aware modules_to_not_convert"
_SEARCH = """damp_percent damp_auto_increment true_sequential dataset model_name_or_path model_file_base_name quantizer
    meta tokenizer batch_size pad_token_id model_seqlen module_name_preceding_first_block cache_block_outputs mse
    block_name_to_quantize modules_in_block_to_quantize pack_dtype is_marlin_format"""
_KERNELS = """backend use_cuda_fp16 use_exllama exllama_config disable_exllama max_input_length use_exllama_v2"""
_BITS = (2, 4, 8)
#: one in each code of a word
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True, eq=False)
class _Module:
    """The tensors of one module.

    Attributes:
        stem: what their names begin with.
        type: of its weight.
        shape: [out, in].
        less: what the stored words of zero points lack.
        order: the input that each column is, where they are sorted by group.
    """

    stem: str
    type: Storage
    shape: tuple[int, ...]
    less: int
    order: Array | None

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of the weight: a slice of columns of ``qweight``."""
        bits, width = self.type.bits, self.shape[1]
        packed = words(source, f"{self.stem}.qweight", ((0, width * bits // 32), (start, stop)))
        # The words of a row, one after the other, are its codes in the canonical packing.
        lying = np.ascontiguousarray(packed.T).view(np.uint8)
        lying = lying ^ np.uint8(128) if bits == 8 else lying
        codes = packing.unpack_codes(lying, self.type, (stop - start, width))
        if self.order is not None:
            codes = np.ascontiguousarray(codes[:, self.order])
        groups = self.type.groups(width)
        found = source.read(f"{self.stem}.scales", ((0, groups), (start, stop)))
        zero = _zeros(source, self.stem, bits, self.less, groups, start, stop)
        if not self.type.asym:
            if (zero != 1 << (bits - 1)).any():
                raise BundleError(f"{source.description}: {self.stem}.qzeros changed while it was read")
            zero = None
        return QTensor(codes, scales(found.T, self.type.scale), zero, self.type)


def _zeros(source: Source, stem: str, bits: int, less: int, groups: int, start: int, stop: int) -> Array:
    """Return zero points [stop - start, groups], u8."""
    per = 32 // bits
    first, last = aligned(start, stop, per)
    stored = words(source, f"{stem}.qzeros", ((0, groups), (first, last))) + np.uint32(less)
    shifts = np.arange(per, dtype=np.uint32) * np.uint32(bits)
    every = ((stored[..., None] >> shifts) & np.uint32(2**bits - 1)).astype(np.uint8).reshape(groups, -1)
    return np.ascontiguousarray(every[:, start - first * per : stop - first * per].T)


def gptq(source: Source, config: Config) -> DialectSource:
    """Read a GPTQ checkpoint.

    Raises:
        InputError: codes of 3 bits, or another layout than GPTQ's.
        BundleError: tensors of a module are missing, or do not fit together.
    """
    bits = config.whole("bits", "types of the weights")
    group = config.whole("group_size", "types of the weights", 128, least=-1)
    form = config.raw("checkpoint_format", "types of the weights", None)
    form = config.raw("format", "types of the weights", "gptq") if form is None else form
    if form not in ("gptq", "gptq_v2"):
        raise InputError(
            f"{config.origin}: omnic cannot read GPTQ tensors in the layout '{form}'",
            "it reads gptq and gptq_v2: save the checkpoint in one of them",
        )
    config.ignore("the tensors say it: g_idx, qzeros, scales", *_SAID.split())
    config.ignore("how the codes were found", *_SEARCH.split())
    config.ignore("which kernel another runtime picks", *_KERNELS.split())
    if bits not in _BITS:
        raise InputError(
            f"{config.origin}: omnic cannot read GPTQ codes of {bits} bits",
            f"it reads {', '.join(map(str, _BITS))} bits; fetch the checkpoint in one of them, or unquantised",
        )
    modules = stems(source, ".qweight")
    less = _ONES[bits] if form == "gptq" else 0
    even = all(_even(source, stem, bits, less) for stem in modules)
    packed: dict[str, _Module] = {}
    orders: dict[str, Array] = {}
    used: list[str] = []
    for stem in modules:
        module = _module(source, stem, bits, group, less, not even)
        packed[f"{stem}.weight"] = module
        if module.order is not None:
            orders[f"{stem}.weight"] = module.order
        used += [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")]
    return DialectSource(source, packed, used, orders)


def _even(source: Source, stem: str, bits: int, less: int) -> bool:
    """Whether every zero point is the middle of the codes, so that none needs to be stored."""
    name = f"{stem}.qzeros"
    if name not in source.names():
        return False
    groups, across = source.shape(name)
    stored = words(source, name, ((0, groups), (0, across))) + np.uint32(less)
    return bool((stored == np.uint32(_ONES[bits] << (bits - 1))).all())


def _module(source: Source, stem: str, bits: int, group: int, less: int, asym: bool) -> _Module:
    have, per = set(source.names()), 32 // bits
    missing = [f"{stem}.{part}" for part in ("qzeros", "scales") if f"{stem}.{part}" not in have]
    if missing:
        raise BundleError(f"{source.description}: tensors of a quantised module are missing: {', '.join(missing)}")
    height, out = source.shape(f"{stem}.qweight")
    width, groups = height * per, source.shape(f"{stem}.scales")[0]
    size = width if group <= 0 else group
    wanted = {
        "scales": (-(-width // size), out),
        "qzeros": (-(-width // size), -(-out // per)),
        **({"g_idx": (width,)} if f"{stem}.g_idx" in have else {}),
    }
    wrong = [
        f"{stem}.{part} is {list(source.shape(f'{stem}.{part}'))}, not {list(shape)}"
        for part, shape in wanted.items()
        if source.shape(f"{stem}.{part}") != shape
    ]
    if wrong:
        raise BundleError(
            f"{source.description}: for {bits} bits in groups of {group} and {stem}.qweight {[height, out]}, "
            + "; ".join(wrong),
            "the configuration is of another quantisation than the tensors",
        )
    order = _order(everything(source, f"{stem}.g_idx"), size, groups, stem) if "g_idx" in wanted else None
    kind = cast(StorageKind, f"i{bits}")
    type = Storage(kind, 0 if groups == 1 else size, asym, scale_kind(source, f"{stem}.scales"))
    return _Module(stem, type, (out, width), less, order)


def _order(group_of: Array, size: int, groups: int, stem: str) -> Array | None:
    """Return the inputs sorted by group, None where they are.

    Raises:
        BundleError: a group is not of the size that the configuration says.
    """
    if groups == 1 or (group_of == np.arange(len(group_of)) // size).all():
        return None
    order = np.argsort(group_of, kind="stable").astype(np.int64)
    if (group_of[order] != np.arange(len(group_of)) // size).any():
        raise BundleError(f"{stem}.g_idx does not have {size} inputs in every group")
    return order
