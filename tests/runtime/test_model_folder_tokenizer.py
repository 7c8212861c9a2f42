"""A model folder's tokenizer in a compiled bundle: what stands before a text, what ends it, the chat template."""

from __future__ import annotations

import json

import pytest

from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.runtime.bundle import open_bundle
from omnic.runtime.model import load_model
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec
from tests.runtime.zoo import write

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|x|>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write("llama2", folder, chat_template=TEMPLATE)
    size = Tokenizer.load(folder).size
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9], "top_p": 0.9}))
    (folder / "spec.yaml").write_text(
        f"model: small\nvocab: {{size: {size}}}\ncontext: 64\ntokenizer: tokenizer.json\nblocks:\n"
        "  - width: 32\n    attention: {kind: mha, heads: 2}\n    ffn: {kind: dense, hidden: 48}\n"
    )
    return folder


@pytest.fixture(scope="module")
def model(folder):
    spec = load_spec(str(folder / "spec.yaml"))
    compile_spec(CompileRequest(spec, "torch", folder / "bundle", seed=1, parity="off", results=folder / "results"))
    return load_model(folder / "bundle")


def test_the_bundle_holds_what_the_tokenizer_needs(folder, model):
    bundle = open_bundle(folder / "bundle", verify=True)
    files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    assert bundle.manifest.tokenizer.files == files
    assert bundle.text("tokenizer.json") == (folder / "tokenizer.json").read_text()
    assert bundle.json("generation_config.json") == {"bos_token_id": 1, "eos_token_id": [2, 7, 9]}
    assert model.tokenizer.stops == (2, 7, 9)
    assert model.encode("a b") == [1, *model.tokenizer.encode("a b")]
    assert model.template.render([{"role": "user", "content": "a"}], model.tokenizer) == "<s><|x|>a"
    assert model.template.end_ids(model.tokenizer) == {2, 7, 9}


def test_each_of_several_ids_ends_a_generation(model):
    free = model.generate("a", 30, greedy=True, end_ids=[])
    assert len(free.ids) == 30
    for stop in (2, 7, 9):
        only = model.generate("a", 30, bias={stop: 1e4}, greedy=True)
        assert only.finish == "end" and only.ids == ()
        chat = model.chat([{"role": "user", "content": "a"}], 30, bias={stop: 1e4}, greedy=True)
        assert chat.finish == only.finish
    assert len(model.generate("a", 30, bias={8: 1e4}, greedy=True).ids) == 30


def test_another_template_is_another_bundle(folder, model):
    spec = load_spec(str(folder / "spec.yaml"))
    request = CompileRequest(spec, "torch", folder / "bundle", seed=1, parity="off", results=folder / "results")
    before = open_bundle(folder / "bundle").manifest.key
    assert compile_spec(request).manifest.key == before
    (folder / "chat_template.jinja").write_text("other")
    try:
        again = CompileRequest(spec, "torch", folder / "c", seed=1, parity="off", results=folder / "results")
        assert compile_spec(again).manifest.key != before
    finally:
        (folder / "chat_template.jinja").unlink()
