"""Dense families against transformers: logits in every way a session runs, greedy tokens, keys."""

from __future__ import annotations

import pytest

from omnic.models import build
from omnic.spec import parse_spec, scale, to_dsl, to_yaml
from omnic.spec.sizes import count_parameters
from tests.models.checkpoints.checks import (
    assert_keys_read,
    assert_logits,
    assert_same_tokens,
    on_backends,
    on_reference,
)
from tests.models.checkpoints.conftest import ProofOf
from tests.models.checkpoints.dense import DENSE
from tests.models.checkpoints.making import Example
from tests.models.checkpoints.proof import BACKENDS


@pytest.mark.parametrize("example", on_reference(DENSE))
def test_the_reference_in_f64_is_what_transformers_computes(example: Example, proof_of: ProofOf) -> None:
    proof = proof_of(example)
    assert_keys_read(proof)
    assert_logits(proof, "reference f64")


@pytest.mark.parametrize(("example", "backend"), on_backends(DENSE, ("reference f32", *BACKENDS)))
def test_logits_are_within_the_f32_class(example: Example, backend: str, proof_of: ProofOf) -> None:
    assert_logits(proof_of(example), backend)


@pytest.mark.parametrize(("example", "backend"), on_backends(DENSE))
def test_64_greedy_tokens_are_the_same(example: Example, backend: str, proof_of: ProofOf) -> None:
    assert_same_tokens(proof_of(example), backend)


@pytest.mark.parametrize("example", on_reference(DENSE))
def test_the_spec_is_the_model_in_both_languages(example: Example, proof_of: ProofOf) -> None:
    found = proof_of(example).checkpoint
    assert parse_spec(to_yaml(found.spec), "found.yaml") == found.spec
    assert parse_spec(to_dsl(found.spec), "found.omnic") == found.spec
    assert count_parameters(found.spec).total == found.module.parameters()
    build(scale(found.spec))
