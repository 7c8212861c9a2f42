"""One suite over every backend and every preset's scaled copy: parity, chunks, ragged rows, causality, rollback."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.numeric import logit_rms
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import Session
from omnic.spec import preset_names
from tests.parity.conftest import Backend

SessionOf = Callable[[str, Backend], Session]
#: the presets whose scaled copies have every distinct kind of layer between them
KINDS = ("tiny", "tiny_moe", "mobile_4gb", "nano_125m")

#: of a program that is the reference's numbers: the last bits of f32 logits
EXACT = 1e-6


def _presets() -> list[object]:
    return [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in preset_names()]


@pytest.fixture(params=_presets())
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


def ids(session: Session, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, session.info.vocab, count)


def whole(session: Session, tokens: np.ndarray) -> np.ndarray:
    session.reset(1)
    return np.array(session.forward(tokens[None]).logits[0])


def chunked(session: Session, tokens: np.ndarray, sizes: list[int]) -> np.ndarray:
    session.reset(1)
    parts, at = [], 0
    for size in sizes:
        parts.append(np.array(session.forward(tokens[None, at : at + size]).logits[0]))
        at += size
    assert at == len(tokens)
    return np.concatenate(parts)


def same(backend: Backend, found: np.ndarray, wanted: np.ndarray, bitwise: bool) -> None:
    if bitwise and backend.bitwise:
        assert np.array_equal(found, wanted)
        return
    assert backend.kind.bound is not None
    assert np.abs(found - wanted).max() <= 2 * backend.kind.bound * logit_rms(wanted)


def test_the_bundle_proves_itself(preset: str, backend: Backend, compiled: Callable[[str, Backend], Bundle]) -> None:
    bundle = compiled(preset, backend)
    parity = bundle.parity
    assert parity is not None
    assert parity["ok"], [c for c in parity["cases"] if not c["ok"]]
    assert parity["bound"] == backend.kind.bound
    assert parity["ratio"] <= EXACT if backend.exact else parity["ratio"] > 0
    assert bundle.fidelity is not None and bundle.fidelity["kl"] == 0.0 and bundle.fidelity["delta_percent"] == 0.0


def test_any_chunking_of_300_tokens_is_one_answer(preset: str, backend: Backend, session_of: SessionOf) -> None:
    session = session_of(preset, backend)
    count = min(300, session.info.capacity)
    tokens = ids(session, count)
    chunk = session.info.chunk
    large = chunked(session, tokens, [min(chunk, count - at) for at in range(0, count, chunk)])
    singles = chunked(session, tokens, [1] * count)
    sixteens = chunked(session, tokens, [min(16, count - at) for at in range(0, count, 16)])
    same(backend, sixteens, singles, bitwise=True)
    same(backend, large, singles, bitwise=False)


def test_a_row_of_a_ragged_batch_of_3_is_the_row_alone(preset: str, backend: Backend, session_of: SessionOf) -> None:
    session = session_of(preset, backend)
    lengths = np.array([16, 9, 1])
    tokens = np.stack([ids(session, 16, seed) for seed in range(3)])
    session.reset(3)
    session.forward(tokens, length=lengths)
    step = np.array([[5], [6], [7]])
    together = np.array(session.forward(step).logits)
    for row in range(3):
        session.reset(1)
        session.forward(tokens[row : row + 1, : lengths[row]])
        alone = np.array(session.forward(step[row : row + 1]).logits)
        same(backend, together[row], alone[0], bitwise=True)


def test_a_later_token_changes_no_earlier_logit(preset: str, backend: Backend, session_of: SessionOf) -> None:
    session = session_of(preset, backend)
    tokens = ids(session, 40)
    changed = tokens.copy()
    changed[25] = (changed[25] + 1) % session.info.vocab
    one, two = whole(session, tokens), whole(session, changed)
    assert np.abs(one[:25] - two[:25]).max() <= backend.causality * logit_rms(one)
    assert np.abs(one[25] - two[25]).max() > 1e-3 * logit_rms(one)


def test_rollback_and_fork_lose_nothing(preset: str, backend: Backend, session_of: SessionOf) -> None:
    session = session_of(preset, backend)
    tokens = ids(session, 24)
    straight = chunked(session, tokens, [16, 8])
    session.reset(1)
    session.forward(tokens[None, :16])
    other = session.fork()
    session.forward(ids(session, 8, seed=9)[None])
    session.rollback([16])
    assert session.start.tolist() == [16]
    same(backend, np.array(session.forward(tokens[None, 16:]).logits[0]), straight[16:], bitwise=True)
    same(backend, np.array(other.forward(tokens[None, 16:]).logits[0]), straight[16:], bitwise=True)
    assert session.state_bytes() > 0


def test_too_many_tokens_are_a_typed_error(backend: Backend, session_of: SessionOf) -> None:
    session = session_of("tiny", backend)
    with pytest.raises(InputError, match=f"takes at most {session.info.chunk}"):
        session.forward(ids(session, session.info.chunk + 1)[None])
    for _ in range(session.info.capacity // session.info.chunk):
        session.forward(ids(session, session.info.chunk)[None])
    with pytest.raises(InputError, match=f"holds at most {session.info.capacity}"):
        session.forward(np.array([[1]]))
