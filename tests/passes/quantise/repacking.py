"""Proving a target's repacking by unpacking: what it holds must be the very codes and scales that were packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from omnic.ir.packing import QTensor, decode, quantise
from omnic.ir.types import Storage

__all__ = ["assert_unpacks", "random_tensor"]

Arrays = Mapping[str, Any]


def random_tensor(type: Storage, shape: tuple[int, ...], seed: int = 0) -> QTensor:
    """Return a quantised tensor in which every code of the type occurs, with unequal scales and zero points."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape) * np.exp(random.standard_normal((*shape[:-1], 1))) + random.standard_normal(
        (*shape[:-1], 1)) * 0.3
    return quantise(x.astype(np.float32), type)


def assert_unpacks(packed: Iterable[tuple[QTensor, Arrays]],
                   unpack: Callable[[Storage, tuple[int, ...], Arrays], QTensor], exact_scales: bool = True) -> None:
    """Check that ``unpack(type, shape, arrays)`` gives back each tensor code by code.

    Args:
        packed: tensors and what a target made of each.
        unpack: reads the target's arrays as its kernel does.
        exact_scales: the target keeps scales as they are; else only the decoded numbers must be the same.
    """
    for q, arrays in packed:
        found = unpack(q.type, q.shape, arrays)
        assert np.array_equal(found.codes, q.codes), str(q.type)
        if exact_scales:
            for name, part in q.parts().items():
                assert np.array_equal(found.parts()[name], part), (str(q.type), name)
        assert np.array_equal(decode(found), decode(q)), str(q.type)

