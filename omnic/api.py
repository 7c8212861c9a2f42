"""The Python interface: what ``import omnic`` offers beside the error types and the spec."""

from __future__ import annotations

from pathlib import Path

from omnic.runtime.bundle import Bundle
from omnic.runtime.model import Model, load_model

__all__ = ["load"]


def load(
    bundle: str | Path | Bundle, threads: int | None = None, memory: int | None = None, verify: bool = False
) -> Model:
    """Load a compiled model.

    Args:
        bundle: the folder that ``omnic compile`` wrote, or an opened bundle.
        threads: threads of one operator; None = the cores this process really has.
        memory: bytes the model may hold; None = no limit.
        verify: check the hash of every file first, however large.

    Returns:
        A model: ``generate``, ``chat``, ``logits``, ``session``, ``tokenizer``, ``spec``.

    Raises:
        BundleError: damaged, of a newer version, or of a kind this omnic does not run.
        MissingExtraError: its backend is not installed.
    """
    return load_model(bundle, threads, memory, verify)
