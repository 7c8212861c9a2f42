"""The checks and the bookkeeping that every session shares, and the registry."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.errors import BundleError, InputError, InternalError, MissingExtraError
from omnic.runtime import session as sessions
from omnic.runtime.session import SessionOptions, last_rows


def test_chunks_rows_and_positions_do_not_matter(fake):
    ids = np.arange(40) * 7 % 264
    whole = fake(chunk=40).forward(ids).logits[0]
    parts = fake()
    got = np.concatenate([parts.forward(ids[at : at + 9]).logits[0] for at in range(0, 40, 9)])
    np.testing.assert_array_equal(got, whole)
    one = fake(chunk=40).forward(ids, rows=[[3, 39]]).logits[0]
    np.testing.assert_array_equal(one, whole[[3, 39]])


def test_ragged_rows_advance_by_their_own_length(fake):
    session = fake()
    session.reset(3)
    session.forward(np.ones((3, 4), int), length=[4, 0, 2])
    assert session.start.tolist() == [4, 0, 2]
    alone = fake()
    alone.forward([1, 1])
    np.testing.assert_array_equal(
        session.forward([[5], [6], [7]]).logits[2, 0], alone.forward([7]).logits[0, 0]
    )


def test_start_is_a_copy(fake):
    session = fake()
    session.start[0] = 9
    assert session.start.tolist() == [0]


def test_rollback_and_fork(fake):
    session = fake()
    session.forward([1, 2, 3, 4])
    other = session.fork()
    session.rollback([2])
    again = session.forward([3, 4]).logits
    np.testing.assert_array_equal(again[0, -1], fake().forward([1, 2, 3, 4]).logits[0, -1])
    session.forward([9])
    assert (session.start.tolist(), other.start.tolist()) == ([5], [4])
    np.testing.assert_array_equal(other.forward([5]).logits, fake(chunk=16).forward([1, 2, 3, 4, 5]).logits[:, -1:])


@pytest.mark.parametrize(
    "call, message",
    [
        ({"tokens": [[1], [2]]}, "tokens has 2 rows, the session holds 1"),
        ({"tokens": [1] * 17}, "17 tokens in one call; this program takes at most 16"),
        ({"tokens": [264]}, r"token id 264 is outside the vocabulary 0\.\.263"),
        ({"tokens": [-1]}, "token id -1 is outside"),
        ({"tokens": [1.0]}, "tokens must be integers"),
        ({"tokens": []}, r"tokens must be integers of shape \[B, T\]"),
        ({"tokens": [1, 2], "length": [3]}, r"length must be in 0\.\.2"),
        ({"tokens": [1, 2], "length": [1, 1]}, r"length must be integers of shape \[1\]"),
        ({"tokens": [1, 2], "rows": [[2]]}, r"rows must be indices 0\.\.1"),
        ({"tokens": [1, 2], "rows": [[-1]]}, r"rows must be indices 0\.\.1"),
        ({"tokens": [1, 2], "rows": [0]}, r"rows must be integers of shape \[1, R\]"),
        ({"tokens": [1, 2], "parents": [[-1, 0]]}, "takes no token trees"),
        ({"tokens": [1], "embeds": np.zeros((1, 1, 4))}, "takes token ids only"),
    ],
)
def test_wrong_calls_are_refused_and_change_nothing(fake, call, message):
    session = fake()
    session.forward([1, 2, 3])
    with pytest.raises(InputError, match=message):
        session.forward(**call)
    assert session.start.tolist() == [3]
    assert len(session.calls) == 1


def test_trees_are_checked(fake):
    session = fake(parents=True)
    with pytest.raises(InputError, match="index of an earlier token"):
        session.forward([1, 2], parents=[[0, 0]])
    session.forward([1, 2], parents=[[-1, -1]])


def test_more_than_the_capacity_is_refused(fake):
    session = fake(capacity=20)
    session.forward([1] * 16)
    with pytest.raises(InputError, match="row 0 would hold 21 tokens; this program holds at most 20"):
        session.forward([1] * 5)
    session.forward([1] * 4)
    assert session.start.tolist() == [20]


@pytest.mark.parametrize("lengths", [[4], [-1], [1, 2]])
def test_wrong_rollbacks(fake, lengths):
    session = fake()
    session.forward([1, 2, 3])
    with pytest.raises(InputError):
        session.rollback(lengths)


def ring_case(fake, fed: int, back: int, again: int = 0):
    """Feed, roll back, optionally go on and roll back to the same place again; compare with a fresh session."""
    ids = (np.arange(90) * 11 % 264).tolist()
    session = fake(ring=24 + 16 - 1)
    for at in range(0, fed, 8):
        session.forward(ids[at : min(fed, at + 8)])
    session.rollback([back])
    if again:
        session.forward(ids[back : back + again])
        session.rollback([back])
    got = session.forward([200]).logits[0, -1]
    fresh = fake()
    for token in ids[:back]:
        fresh.forward([token])
    np.testing.assert_array_equal(got, fresh.forward([200]).logits[0, -1])


@pytest.mark.parametrize("fed, back", [(60, 44), (60, 59), (39, 1), (90, 74), (90, 0), (38, 5)])
def test_rings_roll_back_as_far_as_they_reach(fake, fed, back):
    ring_case(fake, fed, back)
    if back:
        ring_case(fake, fed, back, again=3)


@pytest.mark.parametrize("fed, back", [(60, 43), (90, 10), (40, 1)])
def test_rings_refuse_to_roll_back_further(fake, fed, back):
    with pytest.raises(InputError, match="sliding-window cache reaches back 16"):
        ring_case(fake, fed, back)


def test_two_rollbacks_reach_no_further_than_one(fake):
    session = fake(ring=39)
    for _ in range(6):
        session.forward([1] * 10)
    session.rollback([50])
    with pytest.raises(InputError, match="from 60 to 40"):
        session.rollback([40])


def test_states_that_cannot_roll_back_still_reset(fake):
    session = fake(rollback=False)
    session.forward([1, 2, 3])
    session.rollback([3])
    with pytest.raises(InputError, match="cannot be rolled back"):
        session.rollback([2])
    session.rollback([0])
    assert session.start.tolist() == [0]


def test_batches_have_a_limit(fake):
    for batch in (0, 9):
        with pytest.raises(InputError, match=f"a batch of {batch} rows; this program takes 1 to 8"):
            fake().reset(batch)


def test_last_rows():
    assert last_rows([3, 0, 1]).tolist() == [[2], [0], [0]]


class _Bundle:
    def __init__(self, kind: str) -> None:
        self.manifest = type("M", (), {"executable": type("E", (), {"kind": kind})})


def test_registry(monkeypatch, fake):
    made, asked = fake(), []
    monkeypatch.setitem(sessions.EXECUTABLES, "fake", "json:load_fake")
    monkeypatch.setattr("json.load_fake", lambda bundle, options: asked.append(options) or made, raising=False)
    monkeypatch.setattr("omnic.runtime.resources.threads", lambda: 3)
    assert sessions.open_session(_Bundle("fake")) is made
    sessions.open_session(_Bundle("fake"), SessionOptions(threads=1, memory=5))
    assert asked == [SessionOptions(threads=3), SessionOptions(threads=1, memory=5)]
    with pytest.raises(BundleError, match="executable kind 'onx' is unknown") as caught:
        sessions.open_session(_Bundle("onx"))
    assert caught.value.hint == "did you mean 'onnx'?"
    monkeypatch.setitem(sessions.EXECUTABLES, "gone", "package_that_is_not_there.session:load")
    with pytest.raises(MissingExtraError, match="'package_that_is_not_there'"):
        sessions.open_session(_Bundle("gone"))
    monkeypatch.setitem(sessions.EXECUTABLES, "ours", "omnic.targets.nowhere:load")
    with pytest.raises(InternalError):
        sessions.open_session(_Bundle("ours"))
