"""A checkpoint is whole or absent, and says which file is damaged."""

import errno
import json
import os

import pytest
import torch

from omnic.errors import BundleError, InputError
from omnic.training import checkpoint as checkpoints
from omnic.training.checkpoint import Checkpoint, latest, load_checkpoint, save_checkpoint


def sample(step=3):
    return Checkpoint(
        step,
        {"w": torch.arange(6.0).reshape(2, 3), "norm": torch.ones(3)},
        {"momentum.w": torch.full((2, 3), 0.25), "step.norm": torch.tensor(7.0)},
        {"phase": "train", "seconds": 1.5},
    )


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = save_checkpoint(tmp_path, sample())
    found = load_checkpoint(path)
    assert (found.step, found.facts) == (3, {"phase": "train", "seconds": 1.5})
    for name in ("weights", "optimizer"):
        saved, loaded = getattr(sample(), name), getattr(found, name)
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[k], loaded[k]) for k in saved)


def test_the_random_state_goes_on(tmp_path):
    torch.manual_seed(5)
    path = save_checkpoint(tmp_path, sample())
    expected = torch.rand(4)
    torch.manual_seed(99)
    load_checkpoint(path)
    assert torch.equal(torch.rand(4), expected)


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        save_checkpoint(tmp_path, sample(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert latest(tmp_path) == tmp_path / "step-00000010"
    assert latest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("change", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_offered(tmp_path, name, change):
    save_checkpoint(tmp_path, sample(1))
    path = save_checkpoint(tmp_path, sample(2))
    data = bytearray((path / name).read_bytes())
    if change == "gone":
        (path / name).unlink()
    elif change == "cut":
        (path / name).write_bytes(bytes(data[:-4]))
    else:
        data[-1] ^= 1
        (path / name).write_bytes(bytes(data))
    with pytest.raises(BundleError) as caught:
        load_checkpoint(path)
    assert str(path / name) in caught.value.message
    assert caught.value.hint == f"remove {path} and run again: it goes on from step-00000001"
    assert load_checkpoint(tmp_path / "step-00000001").step == 1


def test_a_torn_or_newer_state_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, sample())
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"has no readable state.json"):
        load_checkpoint(path)
    (path / "state.json").write_text(json.dumps({**json.loads(text), "schema_version": 99}))
    with pytest.raises(BundleError, match=r"has schema version 99, this omnic reads 1"):
        load_checkpoint(path)
    (path / "state.json").write_text("[]")
    with pytest.raises(BundleError, match="another form"):
        load_checkpoint(path)


@pytest.mark.parametrize("failing", range(8))
def test_a_full_disk_at_any_write_leaves_the_last_good_one(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, sample(1))
    calls = 0
    flush = os.fsync

    def full(handle):
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    if failing < 5:
        with pytest.raises(InputError, match="step 2 cannot be written: No space left on device"):
            save_checkpoint(tmp_path, sample(2))
    else:
        save_checkpoint(tmp_path, sample(2))
    monkeypatch.undo()
    newest = latest(tmp_path)
    assert newest is not None
    load_checkpoint(newest)
    assert load_checkpoint(tmp_path / "step-00000001").step == 1
    assert not list(tmp_path.glob(".partial-*"))


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleared(tmp_path):
    left = tmp_path / ".partial-123-00000009"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert latest(tmp_path) is None
    save_checkpoint(tmp_path, sample())
    assert not left.exists()
