"""Tokenizers of model folders: the same ids and text as transformers, from every file that says something."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import BundleError, InputError
from omnic.runtime.tokenizer import Tokenizer
from omnic.runtime.tokenizer_files import copy_tokenizer, size_of
from tests.runtime.zoo import LINES, ZOO, library, reread, write


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Return a maker of (folder, transformers' tokenizer, ours), each made once."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind.replace(" ", "_"))
            made[kind] = (folder, write(kind, folder), Tokenizer.load(folder))
        return made[kind]

    return make


def check_same(theirs, ours, texts):
    first, last = ours.frame
    expected = theirs(texts, add_special_tokens=True).input_ids
    for text, ids, plain in zip(texts, expected, ours.encode_batch(texts), strict=True):
        assert [*first, *plain, *last] == ids, text[:60]
        assert ours.decode(ids, special=True) == theirs.decode(ids), text[:60]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text[:60]


@pytest.mark.parametrize("kind", ZOO)
def test_ids_and_text_are_those_of_transformers(zoo, kind):
    _, theirs, ours = zoo(kind)
    check_same(theirs, ours, list(LINES))
    check_same(theirs, ours, [line for text in library(60_000) for line in text.splitlines(keepends=True)])
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.size == len(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ZOO)
def test_ids_and_text_over_the_whole_standard_library(zoo, kind):
    _, theirs, ours = zoo(kind)
    # In pieces: without a pre-tokenizer the time of a text grows faster than its length.
    check_same(theirs, ours, [text[i : i + 4000] for text in library(10**9) for i in range(0, len(text), 4000)])


@pytest.mark.parametrize("kind", ZOO)
@given(text=st.text(max_size=40))
def test_any_text_has_the_ids_of_transformers(zoo, kind, text):
    _, theirs, ours = zoo(kind)
    check_same(theirs, ours, [text])


@pytest.mark.parametrize("kind", ZOO)
def test_a_stream_gives_the_text_of_decode(zoo, kind):
    _, _, ours = zoo(kind)
    for text in (*LINES, library(1)[0][:3000]):
        ids = ours.encode(text)
        stream = ours.stream()
        parts = [stream.push(i) for i in ids]
        assert "".join(parts) + stream.finish() == ours.decode(ids), text[:60]
        if "\ufffd" not in text:
            assert "\ufffd" not in "".join(parts)


NOT_THERE = "tokenizer_config.json: add_bos_token is true, tokenizer.json does not put it there and is followed"
THERE = "tokenizer_config.json: add_bos_token is false, tokenizer.json puts it there and is followed"


@pytest.mark.parametrize(
    "kind, flags, notes",
    [
        ("gpt2", {"add_bos_token": True}, (NOT_THERE,)),
        ("gpt2", {"add_bos_token": False, "clean_up_tokenization_spaces": True}, ()),
        ("llama2", {"add_bos_token": True, "add_eos_token": False}, ()),
        ("llama2", {"add_bos_token": False}, (THERE,)),
        ("unigram", {"add_bos_token": True, "bos_token": None}, ()),
        ("llama2", {"split_special_tokens": True}, ()),
    ],
)
def test_flags_beside_a_tokenizer(zoo, kind, flags, notes, tmp_path):
    folder, _, _ = zoo(kind)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    theirs, ours = reread(tmp_path, **flags), Tokenizer.load(tmp_path)
    check_same(theirs, ours, list(LINES))
    assert ours.files.notes == notes
    out = tmp_path / "out"
    out.mkdir()
    assert copy_tokenizer(tmp_path, out).notes == notes
    check_same(theirs, Tokenizer.load(out), list(LINES))


def test_tokens_that_only_the_configuration_has(tmp_path):
    write("gpt2", tmp_path)
    size = Tokenizer.load(tmp_path).size
    theirs = reread(
        tmp_path,
        pad_token="<|pad|>",
        eos_token={"__type": "AddedToken", "content": "<|end of it|>", "lstrip": True, "rstrip": False,
                   "normalized": False, "single_word": False, "special": True},
        additional_special_tokens=["<|tool|>", "<|x|>"],
        added_tokens_decoder={
            str(size): {"content": "<|mine|>", "lstrip": False, "rstrip": True, "normalized": False,
                        "single_word": False, "special": False},
            "3": {"content": "<|x|>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False,
                  "special": True},
        },
    )  # fmt: skip
    ours = Tokenizer.load(tmp_path)
    texts = ["a <|pad|> b  <|end of it|> c", "<|tool|><|mine|>  d", " <|x|> e", *LINES]
    check_same(theirs, ours, texts)
    assert (ours.size, ours.eos) == (len(theirs), theirs.eos_token_id)
    out = tmp_path / "out"
    out.mkdir()
    facts = copy_tokenizer(tmp_path, out)
    check_same(theirs, Tokenizer.load(out), texts)
    assert facts.size == len(theirs)
    assert facts.files == ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    # What was written reads the same with transformers too.
    check_same(type(theirs).from_pretrained(out), ours, texts)


def test_an_older_map_of_special_tokens(tmp_path):
    write("gpt2", tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|y|>", "lstrip": False, "normalized": False, "rstrip": False,
                                  "single_word": False}, "bos_token": "<|x|>"})
    )  # fmt: skip
    theirs = reread(tmp_path, added_tokens_decoder=None)
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id) == (3, 4)


@pytest.mark.parametrize(
    "generation, model, stops",
    [
        ({"eos_token_id": [4, 2, 3]}, {"eos_token_id": 9}, (2, 3, 4)),
        ({"eos_token_id": 3}, {}, (2, 3)),
        ({}, {"eos_token_id": [3, 4]}, (2, 3, 4)),
        ({}, {"text_config": {"eos_token_id": 4}}, (2, 4)),
        ({"eos_token_id": None}, {"eos_token_id": None}, (2,)),
    ],
)
def test_ids_that_end_a_generation(zoo, tmp_path, generation, model, stops):
    folder, _, _ = zoo("llama2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert Tokenizer.load(tmp_path).stops == stops
    out = tmp_path / "out"
    out.mkdir()
    assert copy_tokenizer(tmp_path, out).stops == stops
    assert Tokenizer.load(out).stops == stops


def test_without_a_tokenizer_configuration_ids_name_the_tokens(zoo, tmp_path):
    folder, _, _ = zoo("llama2")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 3, "eos_token_id": [4, 2]}))
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos, ours.eos, ours.stops) == (3, 4, (2, 4))
    assert ours.files.named == {"bos_token": "<|x|>", "eos_token": "<|y|>"}
    (tmp_path / "config.json").write_text("{}")
    assert (Tokenizer.load(tmp_path).bos, Tokenizer.load(tmp_path).eos) == (1, 2)  # by their names


def test_a_lone_file_of_another_name_has_no_companions(zoo, tmp_path):
    folder, _, _ = zoo("gpt2")
    (tmp_path / "my.tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|x|>", "add_bos_token": True}))
    ours = Tokenizer.load(tmp_path / "my.tokenizer.json")
    assert (ours.bos, ours.frame) == (1, ((1,), ()))
    assert list(ours.files.contents()) == ["tokenizer.json"]


def test_a_file_that_cuts_and_fills_encodes_everything(zoo, tmp_path):
    folder, theirs, _ = zoo("gpt2")
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    ours = Tokenizer.load(tmp_path)
    for text in ("x", "a long text that has more than three tokens"):
        assert ours.encode(text) == ours.encode_batch([text])[0] == theirs.encode(text, add_special_tokens=False)


def test_ids_with_gaps_count_to_the_last(zoo, tmp_path):
    folder, theirs, _ = zoo("gpt2")
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["added_tokens"][-1]["id"] += 10
    text = json.dumps(fields)
    assert size_of(text) == len(theirs) + 10
    ours = Tokenizer(text)
    gap = ours.size - 5
    assert ours.decode([gap]) == ""
    with pytest.raises(InputError, match=rf"token id {gap} is not in this tokenizer"):
        ours.token(gap)


def test_added_tokens_beyond_the_embedding_are_left_out(tmp_path):
    write("gpt2", tmp_path, pad_token="<|pad|>")
    size = Tokenizer.load(tmp_path).size
    out = tmp_path / "out"
    out.mkdir()
    facts = copy_tokenizer(tmp_path, out, vocab=size - 2)
    assert facts.size == size - 2
    assert facts.notes == (f"left out, beyond the {size - 2} rows of the embedding: <think>",)
    assert Tokenizer.load(out).size == size - 2


def test_a_folder_with_another_kind_of_tokenizer(tmp_path):
    assert copy_tokenizer(tmp_path, tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(InputError, match=r"has its tokenizer as tokenizer.model; omnic reads tokenizer.json") as caught:
        copy_tokenizer(tmp_path, tmp_path)
    assert "from transformers import AutoTokenizer" in caught.value.hint


@pytest.mark.parametrize(
    "name, what",
    [
        ("tokenizer_config.json", "not a tokenizer configuration"),
        ("generation_config.json", "not a generation configuration"),
        ("config.json", "not a model configuration"),
        ("special_tokens_map.json", "not a map of special tokens"),
    ],
)
def test_damaged_companions(zoo, tmp_path, name, what):
    folder, _, _ = zoo("gpt2")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for text in ("{", "[]"):
        (tmp_path / name).write_text(text)
        with pytest.raises(BundleError, match=what) as caught:
            Tokenizer.load(tmp_path)
        assert str(tmp_path / name) in caught.value.message
