"""Proofs of the examples, made once a test session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.models.checkpoints.making import Example
from tests.models.checkpoints.proof import Proof

ProofOf = Callable[[Example], Proof]


@pytest.fixture(scope="session")
def proof_of(tmp_path_factory: pytest.TempPathFactory) -> ProofOf:
    """Return a function that makes the checkpoint of an example, once."""
    known: dict[str, Proof] = {}

    def get(example: Example) -> Proof:
        name = str(example)
        if name not in known:
            known[name] = Proof(example, tmp_path_factory.mktemp(name))
        return known[name]

    return get
