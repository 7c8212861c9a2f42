"""The engine over the reference, on scaled copies of real models: dense, and MLA with experts in rings."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.model import Model
from omnic.runtime.reference import ReferenceRuntime
from omnic.runtime.session import Session, SessionInfo
from omnic.spec import load_spec, scale


@pytest.fixture(scope="module", params=["tiny", "tiny_moe"])
def module(request):
    return build(scale(load_spec(request.param)))


@pytest.fixture
def session(module) -> ReferenceRuntime:
    return ReferenceRuntime(module, WeightStore.random(module, 1))


def test_info(module, session):
    info = session.info
    assert isinstance(session, Session)
    assert (info.vocab, info.capacity, info.chunk, info.numeric_class) == (512, 320, 64, "f64")
    ring = any(state.ring for state in module.states.values())
    assert info.ring == (83 if ring else None)
    assert info.hidden and not info.parents and not info.verifier


def test_heads_are_described():
    info = SessionInfo.of(build(scale(load_spec("mobile_4gb"))), "onnx")
    assert (info.mtp_depth, info.verifier) == (2, True)


def test_batches_chunks_and_reuse_agree(session):
    model = Model(session)
    prompts = [list(range(3, 90)), [7], [500, 1, 2, 3]]
    together = model.generate(prompts, 6, greedy=True)
    alone = [model.generate(prompt, 6, greedy=True) for prompt in prompts]
    assert [g.ids for g in together] == [g.ids for g in alone]
    longer = [*prompts[0], *alone[0].ids[:3], 44]
    fresh = model.generate(longer, 4, greedy=True)
    model.generate(prompts[0], 6, greedy=True)
    kept = model.generate(longer, 4, greedy=True, keep=True)
    assert kept.ids == fresh.ids and kept.stats.reused_tokens == len(longer) - 1
    np.testing.assert_allclose(model.logits(longer)[-1], session_logits(session, longer), atol=1e-6)


def session_logits(session: ReferenceRuntime, ids: list[int]) -> np.ndarray:
    session.reset(1)
    for token in ids:
        out = session.forward([token])
    return out.logits[0, -1]


def test_rings_reach_back_one_chunk(session):
    for _ in range(4):
        session.forward(np.arange(40))
    if session.info.ring is None:
        session.rollback([10])
        return
    session.rollback([160 - 64])
    with pytest.raises(InputError, match="reaches back 64"):
        session.rollback([160 - 65])


def test_forks_are_independent(session):
    session.forward([1, 2, 3])
    other = session.fork()
    ours = session.forward([4]).logits
    other.forward([9])
    np.testing.assert_allclose(ours[0, 0], session_logits(session, [1, 2, 3, 4]), atol=1e-12)
    assert other.start.tolist() == [4]
    assert session.state_bytes() > 0
