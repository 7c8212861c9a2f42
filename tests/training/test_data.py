"""Batches are a function of (seed, step); an epoch shows every window once."""

import itertools
import json

import numpy as np
import pytest
import torch

from omnic.errors import BundleError, InputError
from omnic.training.corpus import load_corpus
from omnic.training.data import Tokens, pack, tokenize
from omnic.training.tokenizer_build import build_tokenizer


def tokens(count=1000):
    return Tokens(np.arange(count, dtype=np.uint16), "corpus", "tokenizer")


def test_a_batch_depends_on_seed_and_step_alone():
    one, two = tokens(), tokens()
    for step in (0, 7, 3):
        one.batch(0, step, 4, 16)
    assert torch.equal(one.batch(0, 5, 4, 16), two.batch(0, 5, 4, 16))
    assert not torch.equal(one.batch(0, 5, 4, 16), one.batch(1, 5, 4, 16))
    assert not torch.equal(one.batch(0, 5, 4, 16), one.batch(0, 6, 4, 16))


def test_rows_are_runs_of_the_text_one_longer_than_the_window():
    batch = tokens().batch(3, 11, 4, 16)
    assert batch.shape == (4, 17)
    assert batch.dtype == torch.int64
    assert (batch.diff(dim=1) == 1).all()


def test_an_epoch_has_every_window_once_and_epochs_differ():
    text = tokens(1000)
    per_epoch = (1000 - 1 - 16) // 16 // 4
    starts = [text.batch(0, step, 4, 16)[:, 0].tolist() for step in range(2 * per_epoch)]
    first, second = (list(itertools.chain.from_iterable(part)) for part in (starts[:per_epoch], starts[per_epoch:]))
    assert len(set(first)) == len(first)
    assert np.all(np.diff(sorted(first)) >= 16)
    assert first != second


def test_a_text_shorter_than_a_batch_is_an_input_error():
    with pytest.raises(InputError, match=r"the corpus has 20 tokens, one batch needs 81"):
        tokens(20).batch(0, 0, 4, 16)


def test_packing_puts_a_start_before_every_document():
    assert pack([[5, 6], [], [7]], bos=0, size=100).tolist() == [0, 5, 6, 0, 0, 7]
    assert pack([[1]], 0, 70000).dtype == np.uint32


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(4):
        (folder / f"{i}.py").write_text(
            "\n".join(f"def function_{i}_{j}(value): return value + {j}" for j in range(60))
        )
    corpus = load_corpus(str(folder))
    return corpus, build_tokenizer(corpus, 300, tmp_path_factory.mktemp("tok") / "tokenizer.json")


def test_a_shard_is_read_again_and_a_damaged_one_is_found(small, tmp_path):
    corpus, tokenizer = small
    made = tokenize(corpus, tokenizer, tmp_path)
    assert made.ids.tolist() == tokenize(corpus, tokenizer, tmp_path).ids.tolist()
    assert tokenizer.decode(made.ids[1:40].tolist()) in corpus.documents[0].text
    shard = tmp_path / "tokens.npy"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"tokens.npy is damaged"):
        tokenize(corpus, tokenizer, tmp_path)


def test_a_shard_of_another_text_is_made_anew(small, tmp_path):
    corpus, tokenizer = small
    tokenize(corpus, tokenizer, tmp_path)
    about = tmp_path / "tokens.json"
    facts = json.loads(about.read_text())
    about.write_text(json.dumps({**facts, "corpus": "other"}))
    tokenize(corpus, tokenizer, tmp_path)
    assert json.loads(about.read_text()) == facts
