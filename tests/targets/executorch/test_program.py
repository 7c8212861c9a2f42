"""A saved program runs as the reference: whole, in pieces, in ragged batches, forked and rolled back.

One program is lowered for all of them, with ExecuTorch's own kernels alone (their lowering is quick), and kept in the
user's cache, as every lowered program is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec, scale
from omnic.targets.executorch.session import ExecutorchSession
from omnic.targets.executorch.target import TARGET
from tests.targets.executorch.helpers import emitted, session_of

IDS = np.random.default_rng(3).integers(0, 512, (3, 24))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, WeightStore, Path]:
    module = build(scale(load_spec("tiny")))
    weights = WeightStore.random(module, 0)
    out = tmp_path_factory.mktemp("executorch") / "tiny"
    return emitted(module, weights, out, delegate="portable").module, weights, out


@pytest.fixture
def session(made: tuple[Module, WeightStore, Path]) -> ExecutorchSession:
    return session_of(made[0], made[2])


@pytest.fixture(scope="module")
def logits(made: tuple[Module, WeightStore, Path]) -> np.ndarray:
    module, weights, _ = made
    steps = np.arange(24)[None].repeat(3, 0)
    given = {"tokens": IDS, "positions": steps, "start": np.zeros(3, int), "length": np.full(3, 24), "rows": steps}
    return np.asarray(Interpreter(module, weights.with_module(module)).run(given)["logits"])


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


def test_a_call_of_many_tokens_and_single_tokens(session: ExecutorchSession, logits: np.ndarray) -> None:
    close(session.forward(IDS[:1, :20]).logits, logits[:1, :20])
    for at in range(20, 24):
        close(session.forward(IDS[:1, at : at + 1]).logits, logits[:1, at : at + 1])
    assert session.start.tolist() == [24]


def test_rows_of_different_lengths_run_one_after_the_other(session: ExecutorchSession, logits: np.ndarray) -> None:
    session.reset(3)
    length = np.array([9, 0, 4])
    found = session.forward(IDS[:, :9], length=length).logits
    close(found[0], logits[0, :9])
    close(found[2, :4], logits[2, :4])
    assert not found[1].any()
    found = session.forward(IDS[[0, 1, 2], [9, 0, 4]][:, None]).logits
    close(found[:, 0], logits[[0, 1, 2], [9, 0, 4]])


def test_a_fork_and_its_origin_do_not_touch_each_other(session: ExecutorchSession, logits: np.ndarray) -> None:
    session.forward(IDS[:1, :12])
    other = session.fork()
    other.forward(IDS[1:2, :8])
    close(session.forward(IDS[:1, 12:20]).logits, logits[:1, 12:20])
    other.rollback([12])
    close(other.forward(IDS[:1, 12:13]).logits, logits[:1, 12:13])


def test_a_row_that_is_rolled_back_goes_on_from_there(session: ExecutorchSession, logits: np.ndarray) -> None:
    session.forward(IDS[:1, :12])
    session.forward(IDS[1:2, :5])
    session.rollback([12])
    close(session.forward(IDS[:1, 12:15]).logits, logits[:1, 12:15])


def test_only_the_wanted_rows_are_given(session: ExecutorchSession, logits: np.ndarray) -> None:
    found = session.forward(IDS[:1, :10], rows=[[9, 2]]).logits
    close(found, logits[:1, [9, 2]])


def test_state_bytes_are_those_of_the_rows(session: ExecutorchSession) -> None:
    one = session.state_bytes()
    session.reset(2)
    assert session.state_bytes() == 2 * one
    assert one == 4 * 2 * 320 * 16 * 4


def test_the_weights_are_read_back_from_the_program(made: tuple[Module, WeightStore, Path]) -> None:
    module, weights, out = made
    source = TARGET.weights(out)
    assert set(source.names()) == set(module.weights)
    for name in module.weights:
        shape = source.shape(name)
        found = source.read(name, tuple((0, n) for n in shape))
        assert np.array_equal(found, weights.array(name)), name


def test_a_captured_result_is_the_program_s_own(made: tuple[Module, WeightStore, Path], logits: np.ndarray) -> None:
    steps = np.arange(24)[None]
    given = {"tokens": IDS[:1], "positions": steps, "start": np.zeros(1, int), "length": np.array([24]), "rows": steps}
    close(TARGET.capture(made[2], given, ["logits"])["logits"], logits[:1])


def test_the_text_runner_of_executorch_accepts_the_program(
    made: tuple[Module, WeightStore, Path], session: ExecutorchSession, tmp_path: Path
) -> None:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Every token is a piece of ASCII: the runner cannot hand over a part of a letter.
    tokens = [*map(chr, range(33, 127)), "th"]
    tokens += [f"Zq{i}" for i in range(len(tokens), 512)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = np.array([tokenizer.encode("thefox").ids])
    want = tokens[int(session.forward(ids).logits[0, -1].argmax())]
    pieces: list[str] = []
    runner = TextLLMRunner(str(made[2] / "program.pte"), str(tmp_path / "tokenizer.json"))
    config = GenerationConfig(max_new_tokens=1, temperature=0.0, echo=False)
    runner.generate("thefox", config, pieces.append, None)
    assert pieces[:1] == [want]


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, WeightStore, Path]:
    module = build(scale(load_spec("tiny")))
    weights = WeightStore.random(module, 0)
    out = tmp_path_factory.mktemp("executorch") / "explicit"
    return emitted(module, weights, out, delegate="portable", state="explicit").module, weights, out


def test_explicit_states_are_the_same_model(explicit: tuple[Module, WeightStore, Path], logits: np.ndarray) -> None:
    session = session_of(explicit[0], explicit[2])
    close(session.forward(IDS[:1, :20]).logits, logits[:1, :20])
    other = session.fork()
    close(session.forward(IDS[:1, 20:21]).logits, logits[:1, 20:21])
    close(other.forward(IDS[:1, 20:21]).logits, logits[:1, 20:21])
    session.reset(3)
    found = session.forward(IDS[:, :9], length=[9, 0, 4]).logits
    close(found[2, :4], logits[2, :4])


def test_values_inside_are_shown_with_the_program_s_weights(explicit: tuple[Module, WeightStore, Path]) -> None:
    module, weights, out = explicit
    steps = np.arange(24)[None].repeat(3, 0)
    given = {"tokens": IDS, "positions": steps, "start": np.zeros(3, int), "length": np.full(3, 24), "rows": steps}
    kept: dict[str, np.ndarray] = {}

    def keep(node: Any, results: tuple[Any, ...]) -> None:
        kept.update({v.name: np.asarray(r) for v, r in zip(node.results, results, strict=True)})

    Interpreter(module, weights.with_module(module)).run(given, trace=keep)
    part = TARGET.capture_part(out, {"normed.1": kept["normed.1"].astype(np.float32)}, ["down"])
    close(part["down"], kept["down"])
    one = {name: array[:1] for name, array in given.items()}
    found = TARGET.capture(out, one, ["mixed", "k_rot"])
    for name in found:
        close(found[name], kept[name][:1])
    assert {"mixed", "k_rot", "down"} <= set(TARGET.preserved(out))
