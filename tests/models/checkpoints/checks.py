"""What every family's tests ask of a proof."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from _pytest.mark import ParameterSet

from tests.models.checkpoints.making import Example
from tests.models.checkpoints.proof import BACKENDS, Proof

__all__ = ["assert_keys_read", "assert_logits", "assert_same_tokens", "on_backends", "on_reference"]


def on_reference(examples: Sequence[Example]) -> list[ParameterSet]:
    """Every example, on the reference in f64."""
    return [pytest.param(e, id=str(e)) for e in examples]


def on_backends(examples: Sequence[Example], backends: Sequence[str] = BACKENDS) -> list[ParameterSet]:
    """Every example on every backend; the fast suite has those that are ``whole``."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [
        pytest.param(e, b, id=f"{e}-{b.replace(' ', '_')}", marks=marks[e.whole]) for e in examples for b in backends
    ]


def assert_logits(proof: Proof, backend: str) -> None:
    """Every way to run the backend is within its class of transformers."""
    for finding in proof.findings(backend):
        assert finding.case.ok, f"{backend}, {finding.case.name}: {finding.case.problem}"


def assert_same_tokens(proof: Proof, backend: str) -> None:
    """64 greedy tokens are transformers', but for near-ties."""
    greedy = proof.greedy(backend)
    assert greedy.ok, f"{backend}: {greedy.agreed} of {greedy.steps} tokens are transformers', {greedy.ties} near-ties"


def assert_keys_read(proof: Proof) -> None:
    """No key of what transformers wrote is unknown."""
    assert proof.checkpoint.unread == ()
