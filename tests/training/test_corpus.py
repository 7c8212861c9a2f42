"""Corpora hold no held-out text, in a fixed order, under a hash."""

import pytest

from omnic.errors import InputError
from omnic.training.corpus import load_corpus
from omnic.training.heldout import heldout, line_blocks


@pytest.fixture(scope="module")
def stdlib():
    return load_corpus("stdlib")


def test_the_library_has_no_held_out_module_and_no_shared_block(stdlib):
    held = heldout()
    assert not [d.path for d in stdlib.documents if held.owns(d.path)]
    blocks = {digest for text in held.texts() for *_, digest in line_blocks(text.splitlines(keepends=True))}
    leaks = [
        d.path
        for d in stdlib.documents
        if blocks.intersection(digest for *_, digest in line_blocks(d.text.splitlines(keepends=True)))
    ]
    assert leaks == []


def test_the_library_has_no_tests_tables_or_foreign_packages(stdlib):
    parts = {part for d in stdlib.documents for part in d.path.split("/")}
    assert not parts & {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages"}
    assert stdlib.size > 4_000_000


def test_a_folder_is_a_corpus_and_its_hash_is_of_paths_and_texts(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.py").write_text("two = 2\n")
    (tmp_path / "a.txt").write_text("one\r\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.py").write_bytes("ä = 1\n".encode("latin-1"))
    corpus = load_corpus(str(tmp_path))
    assert [(d.path, d.text) for d in corpus.documents] == [("a.txt", "one\n"), ("b/two.py", "two = 2\n")]
    assert corpus.dropped == 1
    assert corpus.sha256 == load_corpus(str(tmp_path)).sha256
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    assert corpus.sha256 != load_corpus(str(tmp_path)).sha256


def test_held_out_text_is_kept_out_of_a_folder(tmp_path):
    held = heldout()
    (tmp_path / "copy.py").write_text("mine = 1\n" + held.texts()[1] + "mine = 2\n")
    (tmp_path / held.modules[6].path).write_text("getopt = 'another version'\n")
    corpus = load_corpus(str(tmp_path))
    assert {d.path for d in corpus.documents} == {"copy.py"}
    assert corpus.cut > 1000
    assert corpus.dropped == 1


def test_a_folder_that_is_none_or_empty_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="corpus 'no/such' is not a folder"):
        load_corpus("no/such")
    with pytest.raises(InputError, match="holds no text"):
        load_corpus(str(tmp_path))
