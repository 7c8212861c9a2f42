"""Sessions: states in place, rows that touch nothing of others, forks, rollback, MTP, and what they refuse."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.ir.dims import DimRange
from omnic.ir.graph import Module
from omnic.ir.numeric import CLASSES, compare
from omnic.ir.reference import Interpreter, ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.runtime.session import Session, SessionOptions
from omnic.targets.onnx.session import OnnxSession, Programs
from tests.targets.onnx.helpers import MLA, emitted, model, session_of, spec_text

Made = tuple[Module, WeightStore, Path]
HEADS = "heads: {mtp: {kind: block, depth: 1}}\n"
IDS = np.random.default_rng(0).integers(0, 96, (3, 64))


@pytest.fixture(scope="module")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> Made:
    module, weights = model(spec_text(extra=HEADS))
    out = tmp_path_factory.mktemp("gqa")
    emitted(module, weights, out, "fused")
    return module, weights, out


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Made:
    module, weights = model(spec_text(MLA))
    out = tmp_path_factory.mktemp("ring")
    emitted(module, weights, out, "fused")
    return module, weights, out


def opened(made: Made) -> OnnxSession:
    return session_of(made[0], made[2])


def test_it_is_a_session(gqa: Made) -> None:
    session = opened(gqa)
    assert isinstance(session, Session)
    info = session.info
    assert (info.kind, info.vocab, info.capacity, info.chunk, info.numeric_class) == ("onnx", 96, 64, 16, "f32")
    assert info.hidden and not info.verifier and not info.parents and not info.batch_invariant


def test_states_are_one_buffer_for_life(gqa: Made) -> None:
    """The same memory is past and present: nothing is allocated or copied by a call."""
    session = opened(gqa)
    before = {name: array.__array_interface__["data"][0] for name, array in session.states.items()}
    session.forward(IDS[:1, :16])
    session.forward(IDS[:1, 16:17])
    assert before == {name: array.__array_interface__["data"][0] for name, array in session.states.items()}
    for name, array in session.states.items():
        if not name.startswith("kv.2"):  # the MTP block has not run
            assert np.abs(array[0, :, :17]).max(axis=(0, 2)).min() > 0
            assert np.abs(array[0, :, 17:]).max() == 0
    assert session.state_bytes() == 6 * 2 * 64 * 16 * 4


@pytest.mark.parametrize("which", ["gqa", "ring"])
def test_invalid_tokens_touch_no_state(which: str, request: pytest.FixtureRequest) -> None:
    """Also where a row is full, or its ring has wrapped, and where single tokens go to idle rows."""
    session = opened(request.getfixturevalue(which))
    session.reset(3)
    for at in range(0, 64, 16):
        session.forward(IDS[:, at : at + 16], length=np.array([16, 16, 15 if at == 48 else 16]))
    held = {name: array.copy() for name, array in session.states.items()}
    session.forward(IDS[:, :7], length=np.array([0, 0, 1]))
    session.rollback([64, 64, 63])
    session.forward(IDS[:, 6:7], length=np.array([0, 0, 1]))
    session.rollback([64, 64, 63])
    session.forward(IDS[:, :1], length=np.array([0, 0, 0]))
    for name, array in session.states.items():
        assert np.array_equal(array[:2], held[name][:2]), name
        capacity = array.shape[-2]
        others = [s for s in range(capacity) if s != 63 % capacity]
        assert np.array_equal(array[2].take(others, -2), held[name][2].take(others, -2)), name


def test_a_padded_single_row_is_the_row(gqa: Made) -> None:
    session = opened(gqa)
    wanted = np.array(session.forward(IDS[:1, :5]).logits)
    session.reset()
    found = session.forward(IDS[:1, :16], length=np.array([5]))
    assert np.array_equal(np.asarray(found.logits)[:, :5], wanted)
    assert np.asarray(found.logits).shape == (1, 16, 96)
    assert np.asarray(found.hidden).shape == (1, 16, 32)
    assert session.start.tolist() == [5]


def test_only_the_wanted_rows_have_logits(gqa: Made) -> None:
    session = opened(gqa)
    every = np.array(session.forward(IDS[:1, :9]).logits)
    session.reset()
    some = np.asarray(session.forward(IDS[:1, :9], rows=np.array([[8, 2]])).logits)
    assert some.shape == (1, 2, 96)
    assert np.abs(some - every[:, [8, 2]]).max() <= 1e-5 * np.abs(every).max()


@pytest.mark.parametrize("which", ["gqa", "ring"])
def test_rolling_back_and_forking(which: str, request: pytest.FixtureRequest) -> None:
    session = opened(request.getfixturevalue(which))
    session.forward(IDS[:1, :16])
    session.forward(IDS[:1, 16:30])
    other = session.fork()
    ahead = np.array(session.forward(IDS[:1, 30:33]).logits)
    session.rollback([30])
    again = np.array(session.forward(IDS[:1, 30:33]).logits)
    forked = np.array(other.forward(IDS[:1, 30:33]).logits)
    assert np.array_equal(ahead, again)
    assert np.array_equal(ahead, forked)
    other.forward(IDS[:1, 33:40])
    assert session.start.tolist() == [33] and other.start.tolist() == [40]
    assert np.array_equal(
        np.array(session.forward(IDS[:1, 33:34]).logits)[0, 0], np.array(opened_at(session, 33))[0, 0]
    )


def opened_at(session: OnnxSession, at: int) -> np.ndarray:
    """The logits of token ``at`` once more, from a fork rolled back to it."""
    other = session.fork()
    other.rollback([at])
    return np.asarray(other.forward(IDS[:1, at : at + 1]).logits)


def test_moving_accepted_tokens(gqa: Made) -> None:
    session = opened(gqa)
    session.reset(2)
    session.forward(IDS[:2, :10])
    before = session.states["kv.0.k"].copy()
    session.move([[8, -1], [9, 8]], [[6, 7], [8, 9]])
    after = session.states["kv.0.k"]
    assert np.array_equal(after[0, :, 6], before[0, :, 8]) and np.array_equal(after[0, :, 7], before[0, :, 7])
    assert np.array_equal(after[1, :, 8], before[1, :, 9]) and np.array_equal(after[1, :, 9], before[1, :, 8])
    with pytest.raises(InputError, match="indices of tokens that the row holds"):
        session.move([[10], [0]], [[0], [0]])


def test_the_mtp_block_is_the_reference(gqa: Made) -> None:
    module, weights, _ = gqa
    session, reference = opened(gqa), ReferenceSession(module, weights)
    hidden = np.random.default_rng(1).standard_normal((1, 9, 32)).astype(np.float32)
    for part in (slice(0, 6), slice(6, 7), slice(7, 9)):
        wanted = reference.mtp_forward(hidden[:, part], IDS[:1, part])
        logits, after = session.mtp_forward(hidden[:, part], IDS[:1, part])
        assert np.abs(logits - wanted.logits).max() <= 2e-5 * np.sqrt(np.mean(wanted.logits**2))
        assert np.abs(after - wanted.hidden).max() <= 1e-4
    assert session.mtp_start.tolist() == [9]
    with pytest.raises(
        InputError, match=r"hidden must be \[1, T, D\] and next_tokens \[1, T\], not \[1, 2, 32\] and \[1, 3\]"
    ):
        session.mtp_forward(hidden[:, :2], IDS[:1, :3])


def test_positions_beyond_the_tables_are_refused(gqa: Made) -> None:
    session = opened(gqa)
    with pytest.raises(InputError, match=r"position 64 is outside this program's rotary tables, 0..63"):
        session.forward(IDS[:1, :2], positions=np.array([[0, 64]]))
    assert session.start.tolist() == [0]


def test_a_limit_below_the_weights_is_refused(gqa: Made) -> None:
    module, _, out = gqa
    with pytest.raises(InputError, match=r"the weights take [\d,]+ bytes; the limit is 1,000"):
        OnnxSession(Programs(out, module, SessionOptions(memory=1000)))


def test_a_truncated_program_is_a_bundle_error(gqa: Made, tmp_path: Path) -> None:
    module, _, out = gqa
    for name in ("forward.onnx", "forward.row.onnx", "weights.bin"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"forward.row.onnx: ONNX Runtime .* refuses it"):
        session_of(module, tmp_path).forward(IDS[:1, :2])
    (tmp_path / "weights.bin").write_bytes(data)
    text = (tmp_path / "forward.row.onnx").read_bytes()
    (tmp_path / "forward.row.onnx").write_bytes(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"forward.row.onnx: ONNX Runtime .* refuses it"):
        session_of(module, tmp_path).forward(IDS[:1, :2])


def test_a_session_opens_one_program_of_two(gqa: Made) -> None:
    module, _, out = gqa
    alone = session_of(module, out)
    alone.forward(IDS[:1, :5])
    alone.forward(IDS[:1, 5:6])
    assert list(alone.programs._open) == ["forward.row.onnx"]
    several = session_of(module, out)
    several.reset(2)
    several.forward(IDS[:2, :5], length=[5, 2])
    several.forward(IDS[:2, 5:6])
    assert list(several.programs._open) == ["forward.onnx"]


def test_a_call_without_tokens_changes_nothing(gqa: Made) -> None:
    module, _, out = gqa
    session = session_of(module, out)
    session.forward(IDS[:1, :5])
    before = {name: array.copy() for name, array in session.states.items()}
    session.forward(IDS[:1, :1], length=[0])
    assert all(np.array_equal(before[name], array) for name, array in session.states.items())


def test_a_long_call_of_one_row_runs_in_pieces(gqa: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rows are wanted, and where the last piece is short or the call padded."""
    module, _, out = gqa
    whole, rows = session_of(module, out), np.array([[15, 2, 9, 9]])
    for length, wanted in ((16, rows), (16, None), (13, None), (16, np.array([[15]]))):
        given = {} if wanted is None else {"rows": wanted}
        whole.reset(1)
        want = whole.forward(IDS[:1, :16], length=[length], **given)
        with monkeypatch.context() as patched:
            patched.setattr("omnic.targets.onnx.session.PIECE", 5)
            pieces = session_of(module, out)
            found = pieces.forward(IDS[:1, :16], length=[length], **given)
            after = pieces.forward(IDS[:1, 16:17])
        assert {key[2] for key in pieces._steps} <= {1, 3, 5}
        keep = slice(None) if wanted is not None else slice(length)
        assert compare("logits", found.logits[0][keep], want.logits[0][keep], CLASSES["f32"]).ok
        assert compare("hidden", found.hidden[0][:length], want.hidden[0][:length], CLASSES["f32"]).ok
        assert compare("next", after.logits, whole.forward(IDS[:1, 16:17]).logits, CLASSES["f32"]).ok


def test_a_call_that_fills_every_slot(gqa: Made) -> None:
    """Its positions may count on from elsewhere, or not count at all."""
    module, weights, out = gqa
    capacity = session_of(module, out).info.capacity
    chunk = module.dims["T"].high
    every = DimRange(1, capacity)
    wide = replace(module, dims={**module.dims, "T": every, "R": every})
    assert chunk < capacity
    ids = np.random.default_rng(3).integers(0, 96, (1, capacity))
    with tempfile.TemporaryDirectory() as folder:
        emitted(wide, weights, Path(folder), "fused")
        for positions in (np.arange(capacity), np.r_[np.arange(5), np.arange(3, capacity - 2)]):
            inputs = {
                "tokens": ids,
                "positions": positions[None],
                "start": np.zeros(1, int),
                "length": np.full(1, capacity),
                "rows": np.arange(capacity)[None],
            }
            wanted = Interpreter(wide, weights).run(inputs)["logits"][0]
            found = session_of(wide, Path(folder)).forward(ids, positions=positions[None]).logits[0]
            assert compare("logits", np.array(found), wanted, CLASSES["f32"]).ok



def test_calls_of_many_shapes_keep_few_buffers(gqa: Made) -> None:
    session = opened(gqa)
    for count in range(1, 15):
        session.reset()
        session.forward(IDS[:1, :count])
        session.forward(IDS[:1, :1])
    assert len(session._steps) <= 8
