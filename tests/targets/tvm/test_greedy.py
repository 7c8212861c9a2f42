"""Greedy decoding by a shortlist: the tokens of the full head, in sessions and in the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.weights import ResultStore, WeightStore
from omnic.passes.base import parse_pass, run_pass
from omnic.runtime.engine import Engine
from omnic.runtime.generation import Request
from omnic.runtime.sampling import Sampling
from omnic.targets.tvm.program import SOURCE_FILE
from tests.passes.heads import TOKENS, context, low, small
from tests.targets.tvm.helpers import emitted, session_of


def searched(folder: Path, *passes: str) -> tuple[Module, WeightStore]:
    """A decoder whose head has a shortlist, and its weights."""
    module = small()
    around = context(module, folder)
    for text in (*passes, "fast-head{dims=32}"):
        module = run_pass(module, parse_pass(text), around).module
    assert around.weights is not None
    return module, around.weights.with_module(module)


@pytest.mark.parametrize("passes", [(), ("int4-packing{group=32, embedding=i8<g32>, head=i8<g32>}",)])
def test_sessions_choose_as_the_logits_say(passes: tuple[str, ...], tmp_path: Path) -> None:
    module, weights = searched(tmp_path / "results", *passes)
    emitted(module, tmp_path / "out", weights=weights)
    text = (tmp_path / "out" / SOURCE_FILE).read_text()
    assert "static void greedy_step(" in text
    assert "static void greedy_chunk(" not in text
    assert "K->head_shortlist(&c, &(const omnic_shortlist){" in text
    for threads in (1, 2):
        session = session_of(tmp_path / "out", threads)
        assert session.info.greedy
        other = session_of(tmp_path / "out", threads)
        first = session.greedy(TOKENS[:1, :20])
        assert first[0] == other.forward(TOKENS[:1, :20]).logits[0, -1].argmax()
        token = int(first[0])
        for _ in range(16):
            found = session.greedy(np.array([[token]]))
            token = int(found[0])
            assert token == other.forward(np.array([[int(first[0])]])).logits[0, 0].argmax()
            first = found
        assert session.start[0] == other.start[0] == 36


def test_rows_of_a_batch_and_idle_rows(tmp_path: Path) -> None:
    module, weights = searched(tmp_path / "results")
    emitted(module, tmp_path / "out", weights=weights)
    session, other = (session_of(tmp_path / "out") for _ in range(2))
    for each in (session, other):
        each.reset(3)
        each.forward(TOKENS[:3, :5])
    for length in (None, np.array([1, 0, 1])):
        found = session.greedy(TOKENS[:3, 5:6], length)
        wanted = other.forward(TOKENS[:3, 5:6], length=length).logits[:, 0].argmax(-1)
        live = np.ones(3, bool) if length is None else length > 0
        assert np.array_equal(found[live], wanted[live])
        assert np.array_equal(session.start, other.start)


def test_the_engine_uses_it_for_greedy_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, weights = searched(tmp_path / "results")
    emitted(module, tmp_path / "out", weights=weights)
    prompt = [int(t) for t in TOKENS[0, :6]]
    answers: dict[str, tuple[int, ...]] = {}
    calls: list[str] = []
    session = session_of(tmp_path / "out")
    own = session.greedy
    monkeypatch.setattr(session, "greedy", lambda *given: (calls.append("greedy"), own(*given))[1])
    for name, sampling in (("greedy", Sampling.greedy()), ("banned", Sampling.greedy(ban_last=True)),
                           ("sampled", Sampling())):
        calls.clear()
        answers[name] = Engine(session).generate([prompt], Request(max_new=8, sampling=sampling)).results()[0].ids
        assert len(calls) == (7 if name == "greedy" else 0)
    plain = small()
    emitted(plain, tmp_path / "plain", weights=WeightStore.of(plain, low(plain)))
    without = session_of(tmp_path / "plain")
    assert not without.info.greedy
    assert Engine(without).generate([prompt], Request(max_new=8, sampling=Sampling.greedy())).results()[0].ids == \
        answers["greedy"]


def test_bounds_of_another_head_are_refused(tmp_path: Path) -> None:
    module, weights = searched(tmp_path / "results")
    assert isinstance(weights.results, ResultStore)
    reach = module.weights["head.reach"]
    key = ResultStore.key(other="head")
    weights.results.put(key, weights.array("head.reach") * np.float32(0.9))
    less = replace(reach, recipe=Recipe("stored", {"hash": key}))
    changed = replace(module, weights={**module.weights, "head.reach": less})
    with pytest.raises(InputError) as caught:
        emitted(changed, tmp_path / "out", weights=weights.with_module(changed))
    assert caught.value.message == "@greedy: the bounds @head.reach are not those of the head @embed"
    assert caught.value.hint == "run fast-head after the passes that change the head's numbers"
