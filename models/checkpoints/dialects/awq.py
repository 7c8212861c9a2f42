"""AWQ checkpoints (arXiv:2306.00978) in the layout of AutoAWQ's ``version: gemm``.

Of a module with weight [out, in]: ``qweight`` i32 [in, out / 8] and ``qzeros`` i32 [groups, out / 8], the eight outputs
of a word in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up; ``scales`` f16 [groups, out].
``w = scale (q - zero)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.errors import BundleError, InputError
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.sources import Box, Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.base import DialectSource, aligned, scale_kind, scales, stems, words

__all__ = ["awq"]

_IDLE = """modules_to_not_convert do_fuse fuse_max_seq_len modules_to_fuse exllama_config backend sym desc_act meta
    dynamic checkpoint_format"""
#: the place in a word of each of its eight outputs
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)


@dataclass(frozen=True)
class _Module:
    """The tensors of one module: their stem, the type and shape [out, in] of its weight."""

    stem: str
    type: Storage
    shape: tuple[int, ...]

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return rows of the weight: a slice of columns of ``qweight``."""
        width = self.shape[1]
        groups = self.type.groups(width)
        first, last = aligned(start, stop, 8)
        inside = slice(start - first * 8, stop - first * 8)
        codes = _outputs(source, f"{self.stem}.qweight", ((0, width), (first, last)))[:, inside]
        zero = _outputs(source, f"{self.stem}.qzeros", ((0, groups), (first, last)))[:, inside]
        signed = np.ascontiguousarray(codes.T).astype(np.int8) - np.int8(8)
        found = source.read(f"{self.stem}.scales", ((0, groups), (start, stop)))
        return QTensor(signed, scales(found.T, self.type.scale), np.ascontiguousarray(zero.T), self.type)


def _outputs(source: Source, name: str, box: Box) -> Array:
    """Return words [n, k] as the codes of their outputs [n, 8 k], u8."""
    stored = words(source, name, box)
    codes = ((stored[..., None] >> (_PLACES * np.uint32(4))) & np.uint32(15)).astype(np.uint8)
    return codes.reshape(stored.shape[0], -1)


def awq(source: Source, config: Config) -> DialectSource:
    """Read an AWQ checkpoint.

    Raises:
        InputError: other than 4 bits with zero points in the layout of ``gemm``.
        BundleError: tensors of a module are missing, or do not fit together.
    """
    config.only("bits", 4, "types of the weights; AWQ codes of other widths have no published layout", 4)
    group = config.whole("group_size", "types of the weights", 128, least=-1)
    version = config.raw("version", "types of the weights", None)
    version = config.raw("format", "types of the weights", "gemm") if version is None else version
    if str(version).lower() != "gemm":
        raise InputError(
            f"{config.origin}: omnic cannot read AWQ tensors in the layout '{version}'",
            "it reads 'gemm', which AutoAWQ writes by default: save the checkpoint so",
        )
    config.only("zero_point", True, "types of the weights; every published AWQ tensor has zero points", True)
    config.ignore(
        "how the codes were found, or which kernel another runtime picks",
        *_IDLE.split(),
    )
    packed: dict[str, _Module] = {}
    used: list[str] = []
    for stem in stems(source, ".qweight"):
        packed[f"{stem}.weight"] = _module(source, stem, group)
        used += [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")]
    return DialectSource(source, packed, used)


def _module(source: Source, stem: str, group: int) -> _Module:
    have = set(source.names())
    missing = [f"{stem}.{part}" for part in ("qzeros", "scales") if f"{stem}.{part}" not in have]
    if missing:
        raise BundleError(f"{source.description}: tensors of a quantised module are missing: {', '.join(missing)}")
    width, packed = source.shape(f"{stem}.qweight")
    size = width if group <= 0 else group
    groups = -(-width // size)
    found = {part: source.shape(f"{stem}.{part}") for part in ("qzeros", "scales")}
    wanted = {"qzeros": (groups, packed), "scales": (groups, packed * 8)}
    wrong = [f"{stem}.{p} is {list(found[p])}, not {list(wanted[p])}" for p in wanted if found[p] != wanted[p]]
    if wrong:
        raise BundleError(
            f"{source.description}: for groups of {group} and {stem}.qweight {[width, packed]}, " + "; ".join(wrong),
            "the configuration is of another quantisation than the tensors",
        )
    type = Storage("i4", 0 if groups == 1 else size, True, scale_kind(source, f"{stem}.scales"))
    return _Module(stem, type, (packed * 8, width))
