"""``omnic import FILE.gguf`` and ``omnic export --as gguf``, as a user runs them."""

from __future__ import annotations

import json

import pytest

from omnic.cli import main
from omnic.compiler.exporting_gguf import export_gguf
from omnic.compiler.importing import import_checkpoint
from omnic.models.gguf.container import read_gguf
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec
from tests.models.gguf.test_vocabulary import fields_of

SPEC = """\
model: small
vocab: {size: 720, used: 705}
context: 128
tokenizer: tokenizer.json
blocks:
  - repeat: 2
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 32, qk_norm: true}
    ffn: {kind: dense, hidden: 96}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a spec, its tokenizer, and a file in every type."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.json").write_text(json.dumps(fields_of("llama3")))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ messages[0].content }}<|x|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    (folder / "small.yaml").write_text(SPEC)
    for type in ("f32", "q8_0"):
        export_gguf(load_spec(str(folder / "small.yaml")), folder / f"{type}.gguf", seed=1, type=type)
    return folder


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_there_and_back_is_the_same_file(folder, type, tmp_path, capsys):
    out = tmp_path / "imported"
    assert run("import", folder / f"{type}.gguf", "-o", out, "--name", "small") == 0
    shown = capsys.readouterr().out
    assert "Qwen3 (GGUF)" in shown and "tokenizer_config.json" in shown
    assert ("of them quantised" in shown) == (type == "q8_0")
    spec = load_spec(str(out / "spec.yaml"))
    assert (spec.vocab.size, spec.vocab.used, spec.budget.context) == (720, 705, 128)
    tokenizer = Tokenizer.load(out)
    assert (tokenizer.stops, tokenizer.frame) == ((2, 4), ((1,), ()))
    assert tokenizer.encode("def f():\n    <|x|>") == Tokenizer.load(folder).encode("def f():\n    <|x|>")
    assert run("export", out / "spec.yaml", "--as", "gguf", "-o", tmp_path / "again.gguf") == 0
    assert ("kept their codes" in capsys.readouterr().out) == (type == "q8_0")
    assert (tmp_path / "again.gguf").read_bytes() == (folder / f"{type}.gguf").read_bytes()


def test_a_linked_file_and_the_report(folder, tmp_path, capsys):
    report = import_checkpoint(folder / "q8_0.gguf", tmp_path / "linked", link=True, name="small")
    assert report.unread == () and report.quantised == 16
    export_gguf(load_spec(str(tmp_path / "linked" / "spec.yaml")), tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (folder / "q8_0.gguf").read_bytes()
    assert run("import", folder / "f32.gguf", "-o", tmp_path / "b", "--json", "--without-tokenizer") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokenizer"] is None
    assert not (tmp_path / "b" / "tokenizer.json").exists()
    assert {"key": "qwen3.block_count", "value": 2, "effect": "blocks.repeat", "given": True} in found["effects"]


def test_a_file_without_a_tokenizer(folder, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert run("export", folder / "small.yaml", "--as", "gguf", "--seed", "1", "--without-tokenizer", "-o", out) == 0
    assert "tokenizer  none" in capsys.readouterr().out
    assert read_gguf(out).metadata["tokenizer.ggml.model"] == "none"
    assert run("import", out, "-o", tmp_path / "imported") == 0
    assert "tokenizer  none: the model takes and gives token ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message, hint",
    [
        (("export", "small.yaml", "--as", "gguf", "--seed", "1"), "a GGUF file has no text", "name it: -o FILE.gguf"),
        (("export", "small.yaml", "--as", "gguf", "-o", "x.gguf"), "small has no weights", "--seed N"),
        (("export", "small.yaml", "--as", "gguf", "--seed", "1", "-o", "f32.gguf"), "f32.gguf exists", "--force"),
        (("export", "small.yaml", "--as", "gguf", "--seed", "1", "-o", "."), ". is a folder", "small.gguf"),
        (("export", "small.yaml", "--as", "gguf", "--seed", "1", "-o", "no/x.gguf"), "folder no does not exist", ""),
        (("export", "small.yaml", "--as", "gguf", "--family", "llama", "--seed", "1", "-o", "x.gguf"),
         "llama lacks blocks.attention.qk_norm true (it would be false) in the block at", ""),
        (("export", "tiny", "--as", "gguf", "-o", "x.gguf"), "can express tiny", ""),
        (("import", "none.gguf", "-o", "y"), "none.gguf cannot be read", ""),
        (("import", "small.yaml", "-o", "y"), "small.yaml is not a folder", ""),
        (("import", "cut.gguf", "-o", "y"), "cut.gguf is truncated: tensor", "fetch or convert the file again"),
        (("import", "text.gguf", "-o", "y"), "text.gguf is not a GGUF file", ""),
    ],
)  # fmt: skip
def test_one_clear_error(folder, words, message, hint, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "cut.gguf").write_bytes((folder / "f32.gguf").read_bytes()[:-5000])
    (folder / "text.gguf").write_text("hello")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error and hint in error
    assert not (folder / "x.gguf").exists() and not (folder / "y" / "spec.yaml").exists()
    assert not list(folder.glob(".*.part"))
