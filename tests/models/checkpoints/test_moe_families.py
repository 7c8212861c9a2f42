"""Families with mixtures of experts against transformers: logits in every way a session runs, greedy tokens, keys."""

from __future__ import annotations

import pytest

from tests.models.checkpoints.checks import (
    assert_keys_read,
    assert_logits,
    assert_same_tokens,
    on_backends,
    on_reference,
)
from tests.models.checkpoints.conftest import ProofOf
from tests.models.checkpoints.making import Example
from tests.models.checkpoints.sparse import SPARSE


@pytest.mark.parametrize("example", on_reference(SPARSE))
def test_the_reference_in_f64_is_what_transformers_computes(example: Example, proof_of: ProofOf) -> None:
    proof = proof_of(example)
    assert_keys_read(proof)
    assert_logits(proof, "reference f64")


@pytest.mark.parametrize(("example", "backend"), on_backends(SPARSE))
def test_logits_are_within_the_f32_class(example: Example, backend: str, proof_of: ProofOf) -> None:
    assert_logits(proof_of(example), backend)


@pytest.mark.slow
@pytest.mark.parametrize("example", on_reference(SPARSE))
def test_the_reference_in_f32_is_within_its_class(example: Example, proof_of: ProofOf) -> None:
    assert_logits(proof_of(example), "reference f32")


@pytest.mark.parametrize(("example", "backend"), on_backends(SPARSE))
def test_64_greedy_tokens_are_the_same(example: Example, backend: str, proof_of: ProofOf) -> None:
    assert_same_tokens(proof_of(example), backend)
