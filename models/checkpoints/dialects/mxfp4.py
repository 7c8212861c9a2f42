"""MXFP4 (OCP Microscaling Formats 1.0) as gpt-oss is published.

``X_blocks`` u8 [..., rows, blocks, 16]: 32 E2M1 numbers of a block, the lower one of two in the low bits; ``X_scales``
u8 [..., rows, blocks]: the power of two of each block as its exponent plus 127.  Shown as ``X`` [..., rows, 32 blocks],
the contraction dim last, ``fp4<g32, e8m0>``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnic.errors import BundleError
from omnic.ir import packing
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage
from omnic.ir.weights.sources import Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.base import DialectSource, stems

__all__ = ["mxfp4"]

_BLOCK = 32
_TYPE = Storage("fp4", _BLOCK, scale="e8m0")


@dataclass(frozen=True)
class _Stack:
    """One tensor: its name and shape."""

    name: str
    shape: tuple[int, ...]
    type: Storage = _TYPE

    def rows(self, source: Source, start: int, stop: int) -> QTensor:
        """Return matrices (or rows, of a matrix) ``start`` to ``stop``."""
        shape = (stop - start, *self.shape[1:])
        inner = tuple((0, d) for d in (*self.shape[1:-1], self.shape[-1] // _BLOCK))
        blocks = source.read(f"{self.name}_blocks", ((start, stop), *inner, (0, _BLOCK // 2)))
        lying = np.ascontiguousarray(blocks).reshape(*shape[:-1], -1)
        scale = np.ascontiguousarray(source.read(f"{self.name}_scales", ((start, stop), *inner)))
        return QTensor(packing.unpack_codes(lying, _TYPE, shape), scale, None, _TYPE)


def mxfp4(source: Source, config: Config) -> DialectSource:
    """Read an MXFP4 checkpoint.

    Raises:
        BundleError: the scales of a tensor are missing, or do not fit its blocks.
    """
    config.ignore("the tensors say it", "modules_to_not_convert", "dequantize")
    packed: dict[str, _Stack] = {}
    used: list[str] = []
    have = set(source.names())
    for name in stems(source, "_blocks"):
        blocks = source.shape(f"{name}_blocks")
        if f"{name}_scales" not in have:
            raise BundleError(f"{source.description}: {name}_scales is missing, {name}_blocks is there")
        scale = source.shape(f"{name}_scales")
        if len(blocks) < 3 or blocks[-1] != _BLOCK // 2 or scale != blocks[:-1]:
            raise BundleError(
                f"{source.description}: {name}_blocks is {list(blocks)} and {name}_scales {list(scale)}, not "
                f"[..., blocks, {_BLOCK // 2}] and [..., blocks]",
                "the files are damaged, or not MXFP4",
            )
        for part in ("blocks", "scales"):
            dtype = source.read(f"{name}_{part}", ((0, 0),) * len(source.shape(f"{name}_{part}"))).dtype
            if dtype != np.uint8:
                raise BundleError(f"{source.description}: {name}_{part} is {dtype}, not bytes")
        packed[name] = _Stack(name, (*blocks[:-2], blocks[-2] * _BLOCK))
        used += [f"{name}_blocks", f"{name}_scales"]
    return DialectSource(source, packed, used)
