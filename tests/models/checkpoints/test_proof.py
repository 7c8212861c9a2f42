"""The proof itself: it sees what it should, down to an eps, and counts greedy tokens that differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.checkpoints.dense import plain
from tests.models.checkpoints.making import Example
from tests.models.checkpoints.proof import Proof

EXAMPLE = Example("llama", "plain", plain(num_hidden_layers=1))


def changed(folder: Path, **keys: object) -> Proof:
    """A proof whose configuration changes after transformers has read it."""
    proof = Proof(EXAMPLE, folder)
    path = folder / "checkpoint" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return proof


def test_the_same_configuration_passes(tmp_path: Path) -> None:
    cases = [f.case for f in changed(tmp_path).findings("reference f64")]
    assert [c.name for c in cases] == ["prefill of 40", "chunks of 1, 7, 16, 3", "one by one", "ragged batch of 3"]
    assert all(c.ok and 0 < c.ratio < 1e-12 for c in cases)


@pytest.mark.parametrize("keys", [{"rms_norm_eps": 2e-6}, {"hidden_act": "gelu"}, {"rope_theta": 10010.0}], ids=str)
def test_another_one_fails_in_every_way(tmp_path: Path, keys: dict[str, object]) -> None:
    if "rope_theta" in keys:
        keys = {"rope_parameters": {"rope_type": "default"} | keys}
    cases = [f.case for f in changed(tmp_path, **keys).findings("reference f64")]
    assert not any(c.ok for c in cases)


def test_other_tokens_are_counted(tmp_path: Path) -> None:
    proof = changed(tmp_path, hidden_act="gelu")
    greedy = proof.greedy("reference f32", steps=24)
    assert not greedy.ok and greedy.agreed < 24 and greedy.ties == 0


def test_weights_are_not_as_without_training(tmp_path: Path) -> None:
    weights = Proof(EXAMPLE, tmp_path).weights
    for name in weights.module.weights:
        numbers = weights.array(name)
        assert np.abs(numbers - np.round(numbers)).mean() > 0.05, name
