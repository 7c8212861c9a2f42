"""The tokens that a compile measures parity and fidelity on."""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module
from omnic.runtime.tokenizer import Tokenizer

__all__ = ["WHOLE_MODEL", "sample_tokens", "whole_model"]

#: parameters up to which a compile evaluates the whole model; larger ones are checked part by part
WHOLE_MODEL = 300_000_000


def whole_model(module: Module) -> bool:
    """Whether a compile evaluates all of ``module`` without being asked to."""
    return module.parameters() < WHOLE_MODEL


def sample_tokens(vocab: int, count: int, tokenizer: Tokenizer | None) -> tuple[NDArray[np.int64], str]:
    """Return ``count`` token ids [count] and what they are: held-out Python text, or drawn from seed 0."""
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocab, count), "random ids, seed 0"
    text = resources.files("omnic.specs.data").joinpath("heldout/python.txt").read_text("utf-8")
    ids = tokenizer.encode(text[: 16 * count])[:count]
    return np.asarray(ids, np.int64), f"the first {len(ids)} tokens of the held-out text"
