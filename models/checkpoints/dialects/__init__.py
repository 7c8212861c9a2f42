"""Checkpoints that are quantised already: their codes and scales as the IR's storage types.

``quantization_config`` of the configuration names the method; each has a reader (one file here) that shows the tensors
of a module (``qweight``, ``scales``, ...) as one quantised tensor under the plain name (``weight``), its numbers
unchanged: codes stay codes, nothing is rounded anew.
"""

from __future__ import annotations

from collections.abc import Callable

from omnic.errors import InputError
from omnic.ir.weights.sources import Source
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.dialects.awq import awq
from omnic.models.checkpoints.dialects.bitsandbytes import bitsandbytes
from omnic.models.checkpoints.dialects.gptq import gptq
from omnic.models.checkpoints.dialects.mxfp4 import mxfp4
from omnic.models.checkpoints.dialects.torchao import torchao

__all__ = ["DIALECTS", "Dialect", "quantised_source"]

Dialect = Callable[[Source, Config], Source]

#: quant_method -> the reader
DIALECTS: dict[str, Dialect] = {
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "mxfp4": mxfp4,
    "torchao": torchao,
}


def quantised_source(source: Source, config: Config | None, origin: str) -> Source:
    """Return ``source`` with its quantised tensors shown as such; as it is when nothing is quantised.

    Raises:
        InputError: a method that omnic does not know, or a form of one whose numbers it cannot keep.
        BundleError: tensors of a module are missing, or do not belong together.
    """
    if config is None:
        return source
    method = config.raw("quant_method", "types of the weights", None)
    if method not in DIALECTS:
        raise InputError(
            f"{origin}: omnic does not know the quantisation '{method}'",
            f"known: {', '.join(sorted(DIALECTS))}; or fetch the checkpoint that is not quantised",
        )
    return DIALECTS[method](source, config)
