"""The reference as a session and as an executor: chunks, rollback, forks, MTP, observation."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import CLASSES, compare
from omnic.ir.reference import Interpreter, ReferenceExecutor, ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec, scale

F64 = CLASSES["f64"]


@cache
def model(name: str) -> tuple[Module, WeightStore]:
    module = build(scale(load_spec(name)))
    return module, WeightStore.random(module, 1)


def session(name: str, batch: int = 1) -> ReferenceSession:
    return ReferenceSession(*model(name), batch=batch)


def tokens(count: int, batch: int = 1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 500, (batch, count))


def chunked(s: ReferenceSession, ids: Any, step: int) -> Any:
    return np.concatenate([s.forward(ids[:, i : i + step]).logits for i in range(0, ids.shape[1], step)], axis=1)


@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_any_chunking_gives_the_same_logits(name: str) -> None:
    ids = tokens(130, 2)
    whole = chunked(session(name, 2), ids, 64)
    assert compare(name, chunked(session(name, 2), ids, 7), whole, F64).ok


def test_ragged_rows_are_as_if_alone() -> None:
    s, ids = session("tiny", 3), tokens(9, 3)
    first = s.forward(ids, length=[9, 4, 0]).logits
    assert s.start.tolist() == [9, 4, 0]
    second = s.forward(ids, length=[1, 9, 9]).logits
    for row, (one, two) in enumerate(((9, 1), (4, 9), (0, 9))):
        alone = session("tiny")
        want = [alone.forward(ids[row : row + 1, :n]).logits[0] for n in (one, two) if n]
        got = np.concatenate([first[row, :one], second[row, :two]])
        assert compare("ragged", got, np.concatenate(want), F64).ok


def test_rows_pick_positions_of_the_call() -> None:
    s, ids = session("tiny"), tokens(8)
    every = s.fork().forward(ids).logits
    assert compare("rows", s.forward(ids, rows=[[7, 0]]).logits, every[:, [7, 0]], F64).ok


@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_rollback_forgets_and_forks_are_independent(name: str) -> None:
    s, ids = session(name), tokens(110)
    whole = chunked(s, ids, 55)
    s.rollback([100])
    twin = s.fork()
    other = twin.forward(tokens(10, seed=5)).logits
    assert compare("again", s.forward(ids[:, 100:]).logits, whole[:, 100:], F64).ok
    assert not compare("other", other, whole[:, 100:], F64).ok
    assert s.start.tolist() == twin.start.tolist() == [110]


def test_a_ring_does_not_go_back_further_than_it_holds() -> None:
    module, _ = model("tiny_moe")
    reach = module.dims["T"].high
    s = session("tiny_moe")
    chunked(s, tokens(3 * reach), reach)
    back = s.fork()
    back.rollback([2 * reach])
    with pytest.raises(
        InputError,
        match=rf"rollback of row 0 from {3 * reach} to {2 * reach - 1} tokens; the ring kv\.\d+\.\w+"
        rf" reaches back {reach}",
    ):
        s.rollback([2 * reach - 1])
    s.rollback([0])
    assert s.start.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.forward([[1, 2]], length=[3]), r"length must be in 0\.\.2 for each of the 1 rows, not \[3\]"),
        (lambda s: s.forward([[1], [2]]), "tokens has 2 rows, the session holds 1"),
        (lambda s: s.forward([[100_000]]), r"embed/embedding\.0: .*100000"),
        (lambda s: s.forward([[1, 2]], rows=[[2]]), r"2 is not in 0\.\.1"),
        (lambda s: s.forward([[1]], parents=[[-1]]), "@forward has no input 'parents'"),
        (lambda s: s.rollback([1]), r"rollback to \[1\] tokens; the rows hold \[0\]"),
    ],
)
def test_wrong_calls_are_named_and_change_nothing(call: Any, message: str) -> None:
    s = session("tiny")
    with pytest.raises(InputError, match=message):
        call(s)
    assert s.start.tolist() == [0]


def test_mtp_blocks_follow_the_main_states() -> None:
    s, ids = session("tiny"), tokens(12)
    hidden = s.forward(ids[:, :11]).hidden
    assert hidden is not None
    whole = s.mtp_forward(hidden, ids[:, 1:])
    assert whole.logits.shape == (1, 11, 512) and whole.hidden is not None and whole.hidden.shape == hidden.shape
    s.rollback([5])
    again = s.mtp_forward(hidden[:, 5:], ids[:, 6:]).logits
    assert compare("mtp", again, whole.logits[:, 5:], F64).ok
    s.mtp_rollback([7])
    assert compare("draft", s.mtp_forward(hidden[:, 7:8], ids[:, 8:9]).logits, whole.logits[:, 7:8], F64).ok


def test_state_bytes_are_those_of_the_storage() -> None:
    for name in ("tiny", "tiny_moe"):
        s = session(name, 2)
        assert s.state_bytes() == sum(4 * state.size for state in s.states.values())  # type: ignore[union-attr]


def test_the_executor_runs_whole_sequences_and_shows_nodes() -> None:
    module, weights = model("tiny")
    executor, ids = ReferenceExecutor(module, weights, np.float64), tokens(100, 2)
    found = executor.forward(ids)
    assert compare("executor", found.logits, chunked(session("tiny", 2), ids, 50), F64).ok
    name = next(n.name for n in module.function().nodes if n.op == "linear")
    shown: list[Any] = []

    def visit(node: str, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        shown.append((node, operands[0].shape, results[0].shape))

    executor.observe(ids, [name], visit)
    chunk = module.dims["T"].high
    assert [s[0] for s in shown] == [name] * -(-100 // chunk) and shown[0][1][:2] == (2, chunk)
    with pytest.raises(InputError, match="@forward has no node 'nowhere'"):
        executor.observe(ids, ["nowhere"], visit)


def test_f32_is_in_its_class() -> None:
    module, weights = model("tiny_moe")
    ids = tokens(60)
    reference = ReferenceSession(module, weights).forward(ids).logits
    assert compare(
        "f32", ReferenceSession(module, weights, np.float32).forward(ids).logits, reference, CLASSES["f32"]
    ).ok


@pytest.mark.slow
def test_tiny_runs_512_tokens_within_the_time_of_the_design() -> None:
    import time

    module = build(load_spec("tiny"))
    interpreter = Interpreter(module, WeightStore.random(module, 0))
    ids = tokens(512)
    inputs = {"tokens": ids, "positions": np.arange(512)[None], "start": [0], "length": [512], "rows": [[511]]}
    times = []
    for _ in range(4):
        before = time.perf_counter()
        interpreter.run(inputs)
        times.append(time.perf_counter() - before)
    assert min(times) <= 1.5
