"""Generation: the loop against a plain one, batches, stops, streaming, full states, cancelling, figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.runtime.engine import Engine
from omnic.runtime.generation import Request
from omnic.runtime.sampling import Sampling

GREEDY = Sampling.greedy()
PROMPT = [5, 17, 200, 3, 3, 90]


def answer(engine, prompts, **options):
    options.setdefault("sampling", GREEDY)
    return [list(g.ids) for g in engine.generate(prompts, Request(**options)).results()]


@pytest.mark.parametrize("size", [1, 6, 15, 16, 17, 40])
def test_greedy_equals_one_token_at_a_time(fake, plain_greedy, size):
    prompt = (np.arange(size) * 31 % 264).tolist()
    assert answer(Engine(fake()), [prompt], max_new=12) == [plain_greedy(fake(), prompt, 12)]


def test_prefill_is_chunked_and_asks_for_one_row(fake):
    session = fake()
    answer(Engine(session), [[1] * 40], max_new=3)
    assert session.calls == [(1, 16, 1), (1, 16, 1), (1, 8, 1), (1, 1, 1), (1, 1, 1)]


def test_the_last_token_is_not_computed_for_nothing(fake):
    session = fake()
    answer(Engine(session), [[1]], max_new=1)
    assert session.calls == [(1, 1, 1)]


def test_ragged_batch_equals_single_rows(fake):
    prompts = [PROMPT, [9], (np.arange(37) % 200).tolist()]
    for sampling in (GREEDY, Sampling(temperature=1.2, top_p=0.9, seed=4), Sampling(repetition_penalty=1.3, seed=1)):
        together = answer(Engine(fake()), prompts, max_new=9, sampling=sampling)
        alone = [
            answer(Engine(fake()), [p], max_new=9, sampling=sampling, rows=(row,))[0] for row, p in enumerate(prompts)
        ]
        assert together == alone


def test_rows_that_end_early_leave_the_others_alone(fake):
    prompts = [PROMPT, [9], [100, 101]]
    free = answer(Engine(fake()), prompts, max_new=12)
    ends = frozenset({free[1][3]})
    session = fake()
    got = Engine(session).generate(prompts, Request(max_new=12, sampling=GREEDY, end_ids=ends)).results()
    for row, whole in zip(got, free, strict=True):
        stop = next((i for i, token in enumerate(whole) if token in ends), None)
        assert list(row.ids) == (whole if stop is None else whole[:stop])
        assert row.finish == ("length" if stop is None else "end")
    # the row that ended holds its prompt and what was fed, not what the others went on to feed
    assert session.start[1] == 1 + free[1].index(free[1][3])


def test_the_same_seed_gives_the_same_and_another_another(fake):
    def draw(seed: int) -> list[list[int]]:
        return answer(Engine(fake()), [PROMPT], max_new=20, sampling=Sampling(temperature=2.0, seed=seed))

    assert draw(1) == draw(1) != draw(2)


def test_pieces_arrive_one_by_one(fake):
    run = Engine(fake()).generate([PROMPT, [1]], Request(max_new=3, sampling=GREEDY))
    pieces = list(run)
    assert [p.row for p in pieces] == [0, 1] * 3
    assert [p.id for p in pieces if p.row == 0] == list(run.results()[0].ids)


def test_full_states_end_the_row(fake):
    engine = Engine(fake(capacity=20))
    result = engine.generate([[1] * 17], Request(max_new=50, sampling=GREEDY)).results()[0]
    # 17 + 3 tokens are in the states, and the 20th place's logits still give one more
    assert (result.finish, len(result.ids)) == ("context", 4)
    assert engine.session.start.tolist() == [20]
    full = engine.generate([[1] * 20], Request(max_new=50, sampling=GREEDY)).results()[0]
    assert (full.finish, len(full.ids)) == ("context", 1)
    with pytest.raises(InputError, match="the prompt has 21 tokens; this program holds at most 20"):
        engine.generate([[1] * 21], Request())


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "no prompt was given"),
        ([[]], "the prompt has no tokens"),
        ([[1], []], "prompt 1 has no tokens"),
        ([[264]], r"the prompt: token id 264 is outside the vocabulary 0\.\.263"),
        ([[1]] * 9, "9 prompts; this program takes at most 8 rows at once"),
    ],
)
def test_wrong_prompts(fake, prompts, message):
    with pytest.raises(InputError, match=message):
        Engine(fake()).generate(prompts, Request())


def test_wrong_requests(fake):
    with pytest.raises(InputError, match="max_new must be at least 1, not 0"):
        Request(max_new=0)
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        Engine(fake()).generate([[1]], Request(stop=("x",)))
    with pytest.raises(InputError, match="2 row numbers for 1 prompts"):
        Engine(fake()).generate([[1]], Request(rows=(0, 1)))
    with pytest.raises(InputError, match="bias names id 500"):
        Engine(fake()).generate([[1]], Request(sampling=Sampling(bias={500: 1.0})))


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_cancelling_keeps_what_there_is(fake, plain_greedy, after):
    session = fake()
    engine = Engine(session)
    asked = itertools.count()
    run = engine.generate([PROMPT], Request(max_new=9, sampling=GREEDY), lambda: next(asked) >= after)
    result = run.results()[0]
    assert result.finish == "cancelled"
    assert list(result.ids) == plain_greedy(fake(), PROMPT, 9)[:after]
    # and the engine goes on as if nothing had been
    assert answer(engine, [PROMPT], max_new=9, keep=True) == [plain_greedy(fake(), PROMPT, 9)]


def test_closing_ends_the_run(fake):
    run = Engine(fake()).generate([PROMPT], Request(max_new=9, sampling=GREEDY))
    next(iter(run))
    run.close()
    result = run.results()[0]
    assert (len(result.ids), result.finish) == (1, "cancelled")


def test_two_runs_at_once_are_refused(fake):
    engine = Engine(fake())
    first = engine.generate([PROMPT], Request(max_new=9, sampling=GREEDY))
    next(iter(first))
    answer(engine, [[7]], max_new=2)
    with pytest.raises(InputError, match="another generation has started"):
        first.results()


def test_kept_states_are_reused_and_change_nothing(fake, plain_greedy):
    for changes in ({}, {"ring": 39}, {"rollback": False}):
        session = fake(**changes)
        engine = Engine(session)
        first = answer(engine, [PROMPT], max_new=5)[0]
        for follow in (PROMPT + first + [8, 9], [*PROMPT, 44], PROMPT, PROMPT[:3], [1, 2]):
            run = engine.generate([follow], Request(max_new=5, sampling=GREEDY, keep=True))
            got = run.results()[0]
            assert list(got.ids) == plain_greedy(fake(), follow, 5)
    engine = Engine(fake())
    first = answer(engine, [PROMPT], max_new=5)[0]
    run = engine.generate([PROMPT + first + [8]], Request(max_new=2, sampling=GREEDY, keep=True)).results()[0]
    assert run.stats.reused_tokens == len(PROMPT) + 4  # the fifth token was never fed


def test_states_are_kept_only_when_asked(fake):
    engine = Engine(fake())
    answer(engine, [PROMPT], max_new=2)
    result = engine.generate([PROMPT], Request(max_new=2, sampling=GREEDY)).results()[0]
    assert result.stats.reused_tokens == 0


def test_logits_of_every_position(fake):
    session = fake()
    engine = Engine(session)
    ids = (np.arange(40) * 7 % 264).tolist()
    got = engine.logits(ids)
    assert (got.shape, got.dtype) == ((40, 264), np.float32)
    np.testing.assert_array_equal(got, fake(chunk=40).forward(ids).logits[0])
    np.testing.assert_array_equal(engine.logits(ids), got)


def test_figures(fake):
    ticks = itertools.count(0, 0.5)
    engine = Engine(fake(), clock=lambda: next(ticks))
    # clock: begin 0, prefilled 0.5, tokens at 1.0, 1.5, 2.0, 2.5
    stats = engine.generate([[1] * 40], Request(max_new=4, sampling=GREEDY)).results()[0].stats
    assert (stats.prompt_tokens, stats.new_tokens, stats.batch) == (40, 4, 1)
    assert (stats.prefill_s, stats.ttft_s, stats.decode_s) == (0.5, 1.0, 1.5)
    assert (stats.prefill_tokens_per_s, stats.tokens_per_s) == (80.0, 2.0)
    assert (stats.p50_ms, stats.p95_ms) == (500.0, 500.0)
    assert stats.state_bytes == engine.session.state_bytes()
    assert stats.line() == (
        "prompt 40 tokens in 0.50 s, first token after 1.00 s, 4 new tokens, 2.0 tokens/s (p50 500.0 ms, p95 500.0 ms)"
    )


def test_figures_of_one_token(fake):
    stats = Engine(fake()).generate([[1]], Request(max_new=1, sampling=GREEDY)).results()[0].stats
    assert (stats.tokens_per_s, stats.p50_ms, stats.p95_ms) == (None, None, None)
    assert stats.line().endswith("1 new tokens")


class Scripted:
    """Text of ids as in a table; a token may end inside a character."""

    def __init__(self) -> None:
        self.held = b""

    def push(self, identity: int) -> str:
        self.held += bytes([identity])
        try:
            text = self.held.decode()
        except UnicodeDecodeError:
            return ""
        self.held = b""
        return text

    def finish(self) -> str:
        text, self.held = self.held.decode(errors="replace"), b""
        return text


class Script:
    """A session that answers with a fixed text, a byte a token."""

    def __init__(self, fake, text: bytes) -> None:
        self.inner, self.text = fake(vocab=256), text

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def forward(self, tokens, length=None, rows=None):
        out = self.inner.forward(tokens, length, rows)
        out.logits[:] = 0
        out.logits[0, -1, self.text[int(self.inner.start[0]) - 1]] = 9
        return out


@pytest.mark.parametrize(
    "stop, text, finish, found, tokens",
    [
        ((), "héllo wörld end", "length", None, 17),
        (("wör",), "héllo ", "stop", "wör", 11),
        (("worse", "world", "zz"), "héllo wörld end", "length", None, 17),
        (("nd",), "héllo wörld e", "stop", "nd", 17),
        (("llo", "o w"), "hé", "stop", "llo", 6),
        (("lo wörld enough", "end"), "héllo wörld ", "stop", "end", 17),
    ],
)
def test_stop_strings_across_tokens(fake, stop, text, finish, found, tokens):
    engine = Engine(Script(fake, "héllo wörld end".encode() + b"\0" * 80), Scripted)
    run = engine.generate([[1]], Request(max_new=17, sampling=GREEDY, stop=stop))
    shown = [piece.text for piece in run]
    result = run.results()[0]
    assert (result.text, result.finish, result.stop, len(result.ids)) == (text, finish, found, tokens)
    assert "".join(shown) == text


def test_text_that_may_become_a_stop_string_is_held_back_and_then_let_go(fake):
    engine = Engine(Script(fake, b"abXYc" + b"\0" * 90), Scripted)
    pieces = list(engine.generate([[1]], Request(max_new=5, sampling=GREEDY, stop=("XYZ", "bcd"))))
    assert [p.text for p in pieces] == ["a", "", "b", "", "XYc"]


def test_half_a_character_at_the_end_is_shown_as_a_replacement(fake):
    engine = Engine(Script(fake, "é".encode()[:1] + b"\0" * 90), Scripted)
    result = engine.generate([[1]], Request(max_new=1, sampling=GREEDY)).results()[0]
    assert result.text == "\N{REPLACEMENT CHARACTER}"
