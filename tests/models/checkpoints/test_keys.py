"""What became of every key of a configuration, as ``--explain`` tells it."""

from __future__ import annotations

from pathlib import Path

from omnic.models.checkpoints.checkpoint import effects_table, open_checkpoint
from tests.models.checkpoints.test_bad_checkpoints import SHAPES, config, tensors


def told(folder: Path) -> dict[str, tuple[str, str]]:
    return {key: (value, effect) for key, value, effect in effects_table(open_checkpoint(folder).effects)}


def test_given_default_null_idle_and_unknown_keys(tmp_path: Path) -> None:
    keys = {"rope_theta": 5000, "head_dim": None, "attention_dropout": 0.1, "flux": [1] * 30}
    found = told(tensors(config(tmp_path, **keys), SHAPES))
    assert found["rope_theta"] == ("5000", "blocks.attention.rope.base")
    assert found["tie_word_embeddings"] == ("(false)", "tie")
    assert found["head_dim"] == ("null", "blocks.attention.head_dim")
    assert found["attention_dropout"] == ("0.1", "no effect: of training or of other heads only")
    assert found["flux"] == ("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...", "UNKNOWN: omnic does not know this key")
    assert "rope_interleaved" not in found


def test_both_forms_of_a_scaling_end_in_one_place(tmp_path: Path) -> None:
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}
    old = {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    specs = []
    for name, keys in (("new", new), ("old", old)):
        (tmp_path / name).mkdir()
        specs.append(open_checkpoint(tensors(config(tmp_path / name, **keys), SHAPES), name="m").spec)
    assert specs[0] == specs[1]
    assert told(tmp_path / "old")["rope_scaling.factor"] == ("2.0", "blocks.attention.rope.scaling.factor")


def test_the_longer_or_the_shorter_factors(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1, 2, 3], "long_factor": [4, 5, 6]}
    keys = {"original_max_position_embeddings": 32, "rope_scaling": scaling}
    folder = tensors(config(tmp_path, **keys), SHAPES)
    for context, factors in ((32, (1, 2, 3)), (33, (4, 5, 6)), (None, (4, 5, 6))):
        rope = open_checkpoint(folder, context=context).spec.layers()[0].attention.rope
        assert rope is not None and rope.scaling is not None
        assert rope.scaling.factors == factors
        assert rope.scaling.factor == 2.0
