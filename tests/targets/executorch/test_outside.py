"""Weights in a file beside the program, shared by two programs; the method that verifies drafts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.errors import MissingDeviceError
from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import parse_spec
from omnic.targets.executorch.session import ExecutorchSession
from omnic.targets.executorch.target import TARGET
from tests.targets.executorch.helpers import emitted, session_of

SPEC = """omnic: 1
model: small
vocab: {size: 256}
context: 64
chunk: 24
blocks:
  - repeat: 1
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}
    ffn: {kind: dense, hidden: 96, activation: swiglu}
"""
IDS = np.random.default_rng(5).integers(0, 256, (1, 24))


def small() -> tuple[Module, WeightStore]:
    module = build(parse_spec(SPEC, "small.yaml"))
    return module, WeightStore.random(module, 0)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.array(ReferenceSession(*small()).forward(IDS).logits)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


def called(session: ExecutorchSession) -> set[str]:
    """Return the methods that were called."""
    return set(session.program._methods)


def both(folder: Path, delegate: str, logits: np.ndarray) -> None:
    """Hold two programs over one file of weights against the reference."""
    module, weights = small()
    one, other = folder / "one", folder / "other"
    emitted(module, weights, one, delegate=delegate, weights="ptd", runner=False, verify=8)
    emitted(module, weights, other, delegate=delegate, weights="ptd", runner=False, verify="none", state="explicit")
    size = sum(weights.array(name).nbytes for name in module.weights)
    assert (one / "weights.ptd").stat().st_size >= size
    assert (one / "program.pte").stat().st_size < size
    # The second program runs with the first one's weights.
    (other / "weights.ptd").unlink()
    (other / "weights.ptd").symlink_to(one / "weights.ptd")
    for path in (one, other):
        session = session_of(module, path)
        close(session.forward(IDS[:, :12]).logits, logits[:, :12])
        close(session.forward(IDS[:, 12:20]).logits, logits[:, 12:20])
        close(session.forward(IDS[:, 20:21]).logits, logits[:, 20:21])
        session.rollback([12])
        found = session.forward(IDS[:, 12:20], rows=[[7, 2]]).logits
        close(found, logits[:, [19, 14]])
        assert ("verify_8" in called(session)) == (path == one)
    source = TARGET.weights(one)
    for name in module.weights:
        found = source.read(name, tuple((0, n) for n in source.shape(name)))
        assert np.array_equal(found, weights.array(name)), name


def test_two_programs_share_the_weights_beside_them(tmp_path: Path, logits: np.ndarray) -> None:
    both(tmp_path, "portable", logits)


@pytest.mark.slow
def test_weights_of_xnnpack_lie_beside_the_program_too(tmp_path: Path, logits: np.ndarray) -> None:
    both(tmp_path, "xnnpack", logits)


@pytest.mark.slow
@pytest.mark.parametrize("delegate", ["coreml", "vulkan"])
def test_a_program_for_another_device_is_built_and_says_so(tmp_path: Path, delegate: str) -> None:
    module, weights = small()
    made = emitted(module, weights, tmp_path / "b", delegate=delegate, runner=False, verify="none")
    assert (tmp_path / "b" / "program.pte").stat().st_size > 100_000
    assert made.needs
    with pytest.raises(MissingDeviceError, match="which does not run here"):
        session_of(module, tmp_path / "b")
