"""The loaded model: prompts as text, ids and batches; streams; options; chats."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.runtime.conversation import Conversation
from omnic.runtime.model import Model, load_model
from omnic.runtime.sampling import Sampling


@pytest.fixture
def model(fake_bundle) -> Model:
    return load_model(fake_bundle(), verify=True)


def test_text_and_its_ids_are_the_same_prompt(model, byte_tokenizer):
    text = model.generate("ab", 8, greedy=True)
    ids = model.generate([0, *byte_tokenizer.encode("ab")], 8, greedy=True)
    assert text.ids == ids.ids == model.generate(np.array([0, *byte_tokenizer.encode("ab")]), 8, greedy=True).ids
    assert text.text == byte_tokenizer.decode(text.ids)
    assert model.generate("ab", 8, greedy=True, bos=False).ids == model.generate(
        byte_tokenizer.encode("ab"), 8, greedy=True
    ).ids


def test_batches(model):
    alone = [model.generate(p, 6, greedy=True).ids for p in ("a", "hello", "b c")]
    assert [g.ids for g in model.generate(["a", "hello", "b c"], 6, greedy=True)] == alone
    mixed = model.generate(["a", model.encode("hello")], 6, greedy=True)
    assert [g.ids for g in mixed] == alone[:2]


def test_streams(model):
    want = model.generate("xy", 10, greedy=True)
    stream = model.generate("xy", 10, greedy=True, stream=True)
    assert "".join(piece.text for piece in stream) == want.text
    assert stream.result().ids == want.ids
    batch = model.generate(["xy", "z"], 3, greedy=True, stream=True)
    with pytest.raises(InputError, match="answers a batch of prompts"):
        batch.result()
    assert batch.results()[0].ids == want.ids[:3]


def test_options(model):
    assert model.generate("a", 5, temperature=0.0).ids == model.generate("a", 5, greedy=True).ids
    assert model.generate("a", 9, seed=3).ids == model.generate("a", 9, sampling=Sampling(seed=3)).ids
    for options, message in (
        ({"temprature": 1.0}, "generate has no option 'temprature'"),
        ({"greedy": True, "temperature": 0.5}, "greedy and a temperature exclude each other"),
        ({"sampling": Sampling(), "top_k": 3}, "give either sampling or single options"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate("a", **options)
    with pytest.raises(InputError, match="no prompt was given"):
        model.generate([])
    with pytest.raises(InputError, match="a prompt is text or a sequence of token ids"):
        model.generate([1.5, 2])


def test_an_empty_text_is_the_token_that_starts_one(model):
    assert model.encode("") == [0]
    assert len(model.generate("", 3, greedy=True).ids) == 3


def test_the_end_token_ends(model, byte_tokenizer):
    want = model.generate("q", 9, greedy=True)
    got = model.generate("q", 9, greedy=True, end_ids=[want.ids[4]])
    assert (got.ids, got.finish) == (want.ids[: want.ids.index(want.ids[4])], "end")


def test_ids_beyond_the_tokenizer_are_never_chosen(fake_bundle):
    model = load_model(fake_bundle("padded", vocab=2000))
    result = model.generate("a", 40, temperature=1.0, top_p=1.0)
    assert len(result.ids) == 40 and max(result.ids) < 264
    assert max(model.generate("a", 10, allow=(8, 900), bias={700: 99.0, 20: 50.0}).ids) == 20
    with pytest.raises(InputError, match="allow must be a slice"):
        model.generate("a", 1, allow=(264, 2000))


def test_logits(model):
    ids = model.encode("some text")
    got = model.logits(ids)
    assert got.shape == (len(ids), 264) and got.dtype == np.float32
    assert int(got[-1].argmax()) == model.generate(ids, 1, greedy=True).ids[0]


def test_a_model_without_a_tokenizer(fake_bundle):
    model = load_model(fake_bundle(tokenizer=False))
    result = model.generate([5, 6], 4, greedy=True)
    assert (len(result.ids), result.text) == (4, "")
    for call in (lambda: model.generate("text"), lambda: model.chat([{"role": "user", "content": "x"}])):
        with pytest.raises(InputError, match="this model has no tokenizer"):
            call()


def test_an_unknown_kind(fake_bundle, monkeypatch):
    path = fake_bundle()
    from omnic.runtime.session import EXECUTABLES

    monkeypatch.delitem(EXECUTABLES, "fake")
    with pytest.raises(BundleError, match="executable kind 'fake' is unknown"):
        load_model(path)


def test_chat_answers_end_with_the_turn(model, byte_tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    prompt = model.template.encode(messages, byte_tokenizer)
    assert prompt == [0, 3, *byte_tokenizer.encode("hi"), 6, 4]
    assert model.chat(messages, 5, greedy=True).ids == model.generate(prompt, 5, greedy=True).ids
    assert model.template.end_ids(byte_tokenizer) == {1, 3, 4, 5, 6}


def test_a_conversation_reuses_states_and_remembers(model):
    talk = Conversation(model, system="Be brief.", max_new=6, sampling=Sampling.greedy())
    first = ask(talk, "one")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    second = ask(talk, "two")
    assert first.stats.reused_tokens == 0
    assert second.stats.reused_tokens > len("Be brief.one")
    # the answers are those of the whole conversation computed afresh
    history = [{"role": "system", "content": "Be brief."}, *talk.messages[:3]]
    assert model.chat(history, 6, greedy=True).ids == second.ids
    assert talk.undo() == "two"
    assert talk.undo() == "one"
    assert talk.undo() is None


def test_a_long_conversation_leaves_the_oldest_out(model):
    talk = Conversation(model, system="S", max_new=10, sampling=Sampling.greedy())
    for number in range(8):
        answer = ask(talk, f"question {number}")
        assert answer.finish in ("length", "end")
        assert answer.stats.prompt_tokens <= 96 - 10
    assert talk.left_out >= 8 and talk.left_out % 2 == 0
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens; this program holds at most 96"):
        talk.ask("x" * 200)
    assert talk.messages[-1]["role"] == "assistant"


def ask(talk, text):
    talk.ask(text)
    return talk.done()
