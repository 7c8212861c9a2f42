"""Vocabularies: the same ids after the way through a file, and those of llama.cpp where it is installed."""

from __future__ import annotations

import json

import pytest

from omnic.errors import BundleError, InputError
from omnic.models.gguf.container import read_gguf
from omnic.models.gguf.splits import SPLITS, name_of, pre_tokenizer
from omnic.models.gguf.vocabulary import merges_of, tokenizer_files, used_tokens
from omnic.models.gguf.vocabulary_out import vocabulary_keys
from omnic.models.gguf.writer import Typed
from omnic.runtime.tokenizer import Tokenizer
from omnic.runtime.tokenizer_files import write_tokenizer
from tests.models.gguf.specs import model_of, spec_of, write
from tests.runtime.zoo import LINES, ZOO, library

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXTS = [*LINES, *(line for text in library(6_000) for line in text.splitlines())]
NFC = "e\u0301 composed \u00e9"  # Qwen's own normalizer composes it, llama.cpp has none


def fields_of(kind, rule=None):
    """Return a tokenizer of the zoo as GGUF can hold it: plain added tokens, SentencePiece's merges."""
    fields = json.loads(ZOO[kind]().to_str())
    fields["added_tokens"] = [
        {**token, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        for token in fields["added_tokens"]
    ]
    model = fields["model"]
    if model.get("byte_fallback"):
        first = {}
        for rank, merge in enumerate(model["merges"]):
            first.setdefault("".join(merge), rank)
        ids = model["vocab"] | {token["content"]: token["id"] for token in fields["added_tokens"]}
        model["merges"] = [list(m) for m in merges_of({piece: -float(rank) for piece, rank in first.items()}, ids)]
    if rule is not None:
        fields["pre_tokenizer"], model["ignore_merges"] = pre_tokenizer(SPLITS[rule]), SPLITS[rule].whole
        fields["normalizer"] = None
    return fields


@pytest.fixture(scope="module")
def cases():
    kinds = {"gpt2": ("gpt2", None), "llama3": ("llama3", None), "qwen": ("qwen", None), "llama2": ("llama2", None),
             "gemma": ("gemma", None)}  # fmt: skip
    rules = ("llama-bpe", "qwen2", "starcoder", "tekken", "gpt-4o", "default")
    return {name: fields_of(*case) for name, case in {**kinds, **{r: ("gpt2", r) for r in rules}}.items()}


def through(fields, folder, stops=(2, 4)):
    """Write a tokenizer into a file and return the file and what is read of it."""
    text = json.dumps(fields)
    templates = {"default": "{{ bos_token }}x", "rag": "r"}
    size = Tokenizer(text).size + 5
    spec = spec_of(vocab={"size": size})
    path = folder / "m.gguf"
    write(path, spec, model_of(spec)[1], **vocabulary_keys(text, NAMED, stops, templates, size))
    write_tokenizer(tokenizer_files(read_gguf(path).metadata, path), folder)
    return path, Tokenizer.load(folder)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama3", "qwen", "llama2", "gemma", "llama-bpe", "qwen2", "starcoder", "tekken", "gpt-4o", "default"],
)
def test_ids_survive_the_file_and_are_those_of_llama_cpp(cases, name, tmp_path):
    path, back = through(cases[name], tmp_path)
    ours = Tokenizer(json.dumps(cases[name]))
    assert (back.bos, back.eos, back.stops, back.size) == (1, 2, (2, 4), ours.size)
    assert back.frame == (((1,), ()) if name in ("llama3", "llama2", "gemma") else ((), ()))
    assert {k: v[0] for k, v in back.files.templates.items()} == {"default": "{{ bos_token }}x", "rag": "r"}
    assert back.special_ids == ours.special_ids
    for text in TEXTS:
        ids = back.encode(text)
        assert ids == ours.encode(text) or (name == "qwen" and text == NFC), text
        assert back.decode(ids) == ours.decode(ids), text
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra bench")
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert (theirs.token_bos(), theirs.token_eos()) == (1, 2)
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == back.encode(text), text
    assert theirs.tokenize(b"abc", add_bos=True) == [*back.frame[0], *back.encode("abc")]


def test_names_of_splits():
    for name, rule in SPLITS.items():
        assert SPLITS[name_of(pre_tokenizer(rule), rule.whole)] == rule, name
    assert name_of({"type": "Whitespace"}, False) is None
    assert name_of({"type": "ByteLevel", "add_prefix_space": True}, False) is None


def test_fillers_at_the_end_are_no_tokens():
    keys = {"tokenizer.ggml.tokens": ["a", "[PAD1]", "b", "[PAD3]", "[PAD4]"]}
    assert used_tokens({**keys, "tokenizer.ggml.token_type": [1, 5, 1, 5, 5]}) == 3
    assert used_tokens({**keys, "tokenizer.ggml.token_type": [1, 5, 1, 5, 1]}) == 5
    assert used_tokens(keys) == 5
    assert used_tokens({}) == 0


def changed(name, cases, **changes):
    fields = json.loads(json.dumps(cases[name]))
    for key, value in changes.items():
        if key in fields["model"]:
            fields["model"][key] = value
        else:
            fields[key] = value
    return fields


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("gpt2", {"pre_tokenizer": {"type": "Whitespace"}}, "cuts text in a way that llama.cpp has no name for"),
        ("gpt2", {"normalizer": {"type": "Lowercase"}}, "changes text before it cuts it, or is not byte-level"),
        ("gpt2", {"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}},
         "puts other tokens around a text than its first and its last"),
        ("llama2", {"pre_tokenizer": {"type": "Metaspace"}}, "treats spaces in a way that llama.cpp does not"),
        ("llama2", {"merges": []}, "merges are not those of a SentencePiece vocabulary"),
    ],
)  # fmt: skip
def test_tokenizers_that_llama_cpp_has_not(cases, name, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        vocabulary_keys(json.dumps(changed(name, cases, **changes)), NAMED, [2], {}, 2000)
    assert caught.value.hint.endswith("--without-tokenizer")


def test_more_tokenizers_that_llama_cpp_has_not(cases):
    text = ZOO["gpt2"]().to_str()
    with pytest.raises(InputError, match=r"the added token '<\|strip\|>' takes the spaces beside it"):
        vocabulary_keys(text, NAMED, [2], {}, 2000)
    with pytest.raises(InputError, match="no vocabulary of the kind Unigram"):
        vocabulary_keys(ZOO["unigram"]().to_str(), NAMED, [2], {}, 2000)
    plain = json.dumps(cases["gpt2"])
    with pytest.raises(InputError, match=r"the tokenizer has ids up to 70\d, the embedding 50 rows"):
        vocabulary_keys(plain, NAMED, [2], {}, 50)
    with pytest.raises(InputError, match="4 tokens end a generation; GGUF names three"):
        vocabulary_keys(plain, NAMED, [2, 3, 4, 5], {}, 2000)


GOOD = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": [1, 1, 1], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"model": "t5"}, InputError, "does not read a vocabulary of the kind 't5'"),
        ({"pre": "new-bpe"}, InputError, "does not know how tokenizer.ggml.pre 'new-bpe' cuts text; it knows gpt-2, "),
        ({"tokens": ["a", "b", 3]}, BundleError, "tokenizer.ggml.tokens is no list of str"),
        ({"tokens": ["a", "b", "a"]}, BundleError, "the token 'a' occurs twice in tokenizer.ggml.tokens"),
        ({"token_type": [1, 1]}, BundleError, "tokenizer.ggml.token_type has 2 entries for 3 tokens"),
        ({"merges": ["a b c"]}, BundleError, "tokenizer.ggml.merges has the entry 'a b c', which is no pair"),
        ({"eos_token_id": 9}, BundleError, "tokenizer.ggml.eos_token_id is 9, there are 3 tokens"),
        ({"model": "llama"}, BundleError, "tokenizer.ggml.scores is no list of float"),
        ({"model": "llama", "scores": [0.0]}, BundleError, "tokenizer.ggml.scores has 1 entries for 3 tokens"),
    ],
)
def test_vocabularies_that_are_wrong(tmp_path, changes, error, message):
    keys = GOOD | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(error, match=message) as caught:
        tokenizer_files(keys, tmp_path / "m.gguf")
    assert caught.value.message.startswith(str(tmp_path / "m.gguf"))


def test_a_file_without_a_vocabulary(tmp_path):
    assert tokenizer_files({}, tmp_path) == {}
    assert tokenizer_files({"tokenizer.ggml.model": "none"}, tmp_path) == {}


def test_the_largest_values_are_written_in_their_kinds(cases):
    keys = vocabulary_keys(json.dumps(cases["llama2"]), NAMED, [2], {}, 2000)
    assert isinstance(keys["tokenizer.ggml.scores"], Typed)
    assert len(keys["tokenizer.ggml.tokens"]) == 2000
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD1999]"
