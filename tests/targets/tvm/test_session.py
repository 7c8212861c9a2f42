"""Sessions over compiled programs: the reference's numbers, the same bits however tokens come, states that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore, saved
from omnic.runtime.session import SessionInfo
from omnic.targets.cut import module_of
from omnic.targets.tvm.session import NativeSession
from omnic.targets.tvm.states import state_forms
from omnic.targets.tvm.target import TARGET
from tests.targets.tvm.helpers import emitted, session_of, small_module

IDS = np.random.default_rng(5).integers(0, 96, 40)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm") / "small"
    emitted(small_module(), folder)
    return folder


@pytest.fixture
def session(out: Path) -> NativeSession:
    return session_of(out)


def logits(session: NativeSession, ids: np.ndarray, *sizes: int) -> np.ndarray:
    session.reset(1)
    at, parts = 0, []
    for size in sizes:
        parts.append(np.array(session.forward(ids[None, at : at + size]).logits[0]))
        at += size
    return np.concatenate(parts)


def test_a_prompt_is_the_reference(session: NativeSession) -> None:
    module = small_module()
    ids = IDS[:32]
    steps = np.arange(32)[None]
    inputs = {"tokens": ids[None], "positions": steps, "start": np.zeros(1, np.int64), "length": np.full(1, 32),
              "rows": steps}
    wanted = np.asarray(Interpreter(module, WeightStore.random(module, 3)).run(inputs)["logits"][0])
    found = logits(session, ids, 32)
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt((wanted**2).mean())


@pytest.mark.parametrize("sizes", [(16, 16), (1,) * 32, (3, 1, 7, 2, 16, 3), (15, 13, 4)])
def test_a_row_is_the_same_to_the_bit_however_its_tokens_come(session: NativeSession, sizes: tuple[int, ...]) -> None:
    whole = logits(session, IDS[:32], 32)
    assert np.array_equal(logits(session, IDS[:32], *sizes), whole)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_row_is_the_same_to_the_bit_in_any_batch(session: NativeSession, batch: int) -> None:
    rows = np.stack([np.roll(IDS, i)[:12] for i in range(batch)])
    lengths = np.array([12, 7, 1, 12][:batch])
    session.reset(batch)
    together = np.array(session.forward(rows, length=lengths).logits)
    after = np.array(session.forward(np.full((batch, 1), 5)).logits)
    for row in range(batch):
        count = int(lengths[row])
        assert np.array_equal(together[row, :count], logits(session, rows[row], count))
        assert np.array_equal(after[row], session.forward(np.array([[5]])).logits[0])


def test_threads_change_no_bit(out: Path, session: NativeSession) -> None:
    two = session_of(out, threads=2)
    assert np.array_equal(logits(two, IDS[:32], 32), logits(session, IDS[:32], 32))


def test_a_decoded_token_takes_the_short_way_to_the_same_numbers(session: NativeSession) -> None:
    logits(session, IDS[:9], 9)
    general = np.array(session.fork().forward(np.array([[7]]), length=[1]).logits)
    session.forward(np.array([[7]]))
    session.rollback([9])
    assert np.array_equal(session.forward(np.array([[7]])).logits, general)
    assert session.start.tolist() == [10]


def test_forks_and_rollbacks_lose_nothing(session: NativeSession) -> None:
    whole = logits(session, IDS[:24], 16, 8)
    session.rollback([16])
    other = session.fork()
    session.forward(IDS[None, 24:32])
    assert np.array_equal(other.forward(IDS[None, 16:24]).logits[0], whole[16:])
    session.rollback([16])
    assert np.array_equal(session.forward(IDS[None, 16:24]).logits[0], whole[16:])
    assert session.state_bytes() == 4 * 2 * 2 * 2 * 64 * 16


def test_opening_reads_no_ir_and_untouched_slots_take_no_memory(out: Path, tmp_path: Path) -> None:
    module = module_of(out)
    (tmp_path / "bare").mkdir()
    for path in out.iterdir():
        if path.name != "module.ir":
            (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    session = session_of(tmp_path / "bare")
    assert session.info == SessionInfo.of(module, "native", "f32", batch_invariant=True)
    logits(session, IDS[:9], 9)
    forms = session._forms
    assert forms == state_forms(module)[0]
    fork = session.fork()
    for form in forms:
        assert np.array_equal(form.plain(fork._states, 1), form.plain(session._states, 1))
        assert form.plain(fork._states, 1)[:, :, :9].any() and not form.plain(fork._states, 1)[:, :, 9:].any()


def test_moved_tokens_are_read_at_their_new_places(session: NativeSession) -> None:
    """Token 5 in the place of token 3: as if the row had been cut and its keys written there."""
    logits(session, IDS[:8], 8)
    keys = session._forms[0].plain(session._states, 1).copy()
    session.move([[5, -1]], [[3, -1]])
    moved = session._forms[0].plain(session._states, 1)
    assert np.array_equal(moved[:, :, 3], keys[:, :, 5]) and np.array_equal(moved[:, :, 4], keys[:, :, 4])


def test_rows_pick_the_wanted_logits(session: NativeSession) -> None:
    whole = logits(session, IDS[:10], 10)
    session.reset(1)
    found = session.forward(IDS[None, :10], rows=[[9, 0, 4]])
    assert np.array_equal(found.logits[0], whole[[9, 0, 4]])


def test_values_inside_are_shown_and_parts_run_alone(out: Path, session: NativeSession) -> None:
    count = 6
    steps = np.arange(count)[None]
    inputs = {"tokens": IDS[None, :count], "positions": steps, "start": np.zeros(1, np.int64),
              "length": np.full(1, count), "rows": steps}
    names = TARGET.preserved(out)
    shown = TARGET.capture(out, inputs, [n for n in names if n.startswith(("normed", "x", "inner", "mixed", "logits"))])
    wanted: dict[str, np.ndarray] = {}

    def watch(node, operands, results) -> None:
        wanted.update({v.name: np.asarray(r) for v, r in zip(node.results, results, strict=True)})

    module = module_of(out)
    Interpreter(module, WeightStore.random(module, 3)).run(inputs, observe=watch)
    for name, array in shown.items():
        rms = np.sqrt((wanted[name] ** 2).mean())
        assert np.abs(array - wanted[name]).max() <= 2e-5 * rms, name
    part = TARGET.capture_part(out, {"x.1": shown["x.1"]}, ["x.2"])
    assert np.array_equal(part["x.2"], shown["x.2"])


def test_weights_are_read_back_from_the_programs_own_bytes(out: Path, session: NativeSession) -> None:
    module = module_of(out)
    store = WeightStore.loaded(saved(module), TARGET.weights(out))
    original = WeightStore.random(module, 3)
    for name in module.weights:
        assert np.array_equal(store.array(name), original.array(name)), name
    assert np.array_equal(store.array("embed", (5, 37)), original.array("embed", (5, 37)))


def test_the_profile_names_every_scope(out: Path, session: NativeSession) -> None:
    program = session.program
    assert list(program.about["marks"])[:4] == ["embed", "blocks.0", "blocks.0.attn", "blocks.0.ffn"]
    times = np.zeros(len(program.about["marks"]))
    bound = program.bind("forward", 1, 4, 4)
    program.run(bound, session._address, times)
    assert (times > 0).all()
