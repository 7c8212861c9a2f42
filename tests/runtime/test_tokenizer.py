"""Tokenizers: the same file every time, whole characters while streaming, typed errors for bad files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import BundleError, InputError
from omnic.runtime.tokenizer import Tokenizer
from omnic.training.corpus import Corpus, Document
from omnic.training.tokenizer_build import SPECIAL_TOKENS, build_tokenizer


def corpus_of(text):
    return Corpus("test", (Document("a.py", text),), "0" * 64, len(text.encode()), 0, 0)


CODE = "\n".join(f"def name_{i}(self, value):\n    return {{'key': value + {i}}}  # größe 漢字 🙂" for i in range(80))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(corpus_of(CODE), 320, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def test_the_same_corpus_gives_the_same_file(tokenizer, tmp_path):
    again = build_tokenizer(corpus_of(CODE), 320, tmp_path / "tokenizer.json")
    assert again.sha256 == tokenizer.sha256
    other = build_tokenizer(corpus_of(CODE.replace("name", "word")), 320, tmp_path / "tokenizer.json")
    assert other.sha256 != tokenizer.sha256


def test_special_tokens_have_the_first_ids(tokenizer):
    assert tokenizer.size == 320
    assert tokenizer.special_ids == {name: i for i, name in enumerate(SPECIAL_TOKENS)}
    assert (tokenizer.bos, tokenizer.eos) == (0, 1)


def test_a_line_break_takes_its_indentation_along(tokenizer):
    assert "\n    " in [tokenizer.decode([i]) for i in tokenizer.encode("x\n    return")]


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), special=True) == text


def test_byte_lengths_add_up_to_the_text(tokenizer):
    ids = tokenizer.encode(CODE)
    assert sum(tokenizer.byte_lengths[i] for i in ids) == len(CODE.encode())
    assert tokenizer.byte_lengths[0] == 0


def test_bos_goes_first_and_special_text_is_special(tokenizer):
    assert tokenizer.encode("x", bos=True)[0] == 0
    assert tokenizer.encode("<|eos|>") == [1]
    assert tokenizer.decode([1]) == ""
    assert tokenizer.decode([1], special=True) == "<|eos|>"


def test_a_batch_is_encoded_as_its_texts_are(tokenizer):
    texts = ["a = 1", "", "漢字"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


@given(st.text(max_size=30))
def test_a_stream_gives_the_text_of_decode_and_never_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_a_character_of_four_tokens_appears_with_its_last_one(tokenizer):
    ids = tokenizer.encode("\N{OLD PERSIAN SIGN A}")
    assert len(ids) == 4
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "\N{OLD PERSIAN SIGN A}"]
    assert stream.finish() == ""


@given(st.lists(st.integers(8, 319), max_size=20))
def test_a_stream_of_any_ids_ends_with_decodes_text(tokenizer, ids):
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) + stream.finish() == tokenizer.decode(ids)


# The decoders of common tokenizers that look beyond one token: (decoder, pieces of the vocabulary).
_SPACE = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS = {
    "metaspace": (
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        ["\u2581", "\u2581\u2581", "\u2581he", "llo", "\u2581wor", "ld", ".", "\n"],
    ),
    "byte fallback": (
        {"type": "Sequence", "decoders": [_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}, _STRIP]},
        ["\u2581", "\u2581he", "llo", "\u2581a", "b", *(f"<0x{byte:02X}>" for byte in "€😀é".encode())],
    ),
    "word pieces": ({"type": "WordPiece", "prefix": "##", "cleanup": True}, ["he", "##llo", "world", ".", "##s", "'s"]),
    "word ends": ({"type": "BPEDecoder", "suffix": "</w>"}, ["he", "llo</w>", "world</w>", "a", "b</w>"]),
}


def tokenizer_with(name):
    decoder, pieces = DECODERS[name]
    special = {"id": 0, "content": "<s>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    fields = {
        "version": "1.0",
        "added_tokens": [special],
        "decoder": decoder,
        "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": {p: i for i, p in enumerate(["<s>", *pieces])}},
    } | dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    return Tokenizer(json.dumps(fields))


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_a_stream_of_other_decoders_gives_the_text_of_decode(name, data):
    tokenizer = tokenizer_with(name)
    if name == "byte fallback":  # whole characters: what decode makes of broken ones is not known before the run ends
        units = st.sampled_from([[0], [1], [2], [3], [4], [5], [6, 7, 8], [9, 10, 11, 12], [13, 14]])
        ids = [i for unit in data.draw(st.lists(units, max_size=12)) for i in unit]
    else:
        ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=20))
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("name", "unit"),
    [("metaspace", [3, 4, 0, 7]), ("metaspace", [0]), ("byte fallback", [9, 10, 11, 12]), ("byte fallback", [9])],
)
def test_the_work_of_a_stream_does_not_grow_with_the_text(name, unit, monkeypatch):
    tokenizer = tokenizer_with(name)
    longest = 0

    def decode(ids, special=False):
        nonlocal longest
        longest = max(longest, len(ids))
        return Tokenizer.decode(tokenizer, ids, special)

    monkeypatch.setattr(tokenizer, "decode", decode)
    stream = tokenizer.stream()
    text = "".join(stream.push(i) for _ in range(200) for i in unit) + stream.finish()
    assert text == Tokenizer.decode(tokenizer, unit * 200)
    assert longest <= 40


def test_bytes_that_are_no_text_do_not_pile_up_in_a_stream(tokenizer):
    head = tokenizer.encode("\N{OLD PERSIAN SIGN A}")[0]
    stream = tokenizer.stream()
    text = "".join(stream.push(head) for _ in range(300))
    assert len(stream._ids) <= 40
    assert text + stream.finish() == tokenizer.decode([head] * 300)


def test_half_a_character_is_shown_as_such_at_the_end(tokenizer):
    stream = tokenizer.stream()
    assert stream.push(tokenizer.encode("\N{OLD PERSIAN SIGN A}")[0]) == ""
    assert stream.finish() == "\ufffd"


def test_ids_that_do_not_exist_are_refused(tokenizer):
    for identity in (-1, 320):
        with pytest.raises(InputError, match=rf"token id {identity} is not in this tokenizer \(0 to 319\)"):
            tokenizer.decode([identity])
        with pytest.raises(InputError, match=rf"token id {identity} "):
            tokenizer.token(identity)


def test_a_saved_tokenizer_is_the_same_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a tokenizer file"),
        (b"{", "is not a tokenizer file"),
        (b"[1]", "it has no 'model'"),
        (b'{"model": {}}', "is not a tokenizer file"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_files_that_are_no_tokenizers(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in caught.value.message


def test_a_cut_or_changed_tokenizer_is_no_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        Tokenizer.load(path)
    fields = json.loads(text)
    fields["model"]["merges"][0] = ["no", "such"]
    path.write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        Tokenizer.load(path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"there is no tokenizer at .*none.json"):
        Tokenizer.load(tmp_path / "none.json")


def test_sizes_without_room_and_text_without_merges(tmp_path):
    with pytest.raises(InputError, match=r"100 entries have no room for the 256 bytes and 8 special tokens"):
        build_tokenizer(corpus_of(CODE), 100, tmp_path / "t.json")
    with pytest.raises(InputError, match=r"gives only \d+ of 5000 tokens"):
        build_tokenizer(corpus_of("short"), 5000, tmp_path / "t.json")
    assert list(tmp_path.iterdir()) == []
