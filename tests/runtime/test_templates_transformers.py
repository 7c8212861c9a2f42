"""Chat templates of the public families' kinds, in our own words: the text and the ids that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from omnic.errors import InputError
from omnic.runtime.templates import ChatTemplate, chat_template
from omnic.runtime.tokenizer import Tokenizer
from omnic.runtime.tokenizer_files import copy_tokenizer
from tests.runtime.zoo import LINES, reread, write

TEMPLATES = sorted((Path(__file__).parent / "data" / "templates").glob("*.jinja"))
TALKS = {
    "question": [{"role": "user", "content": "  What is 2 + 2?\n"}],
    "system": [{"role": "system", "content": "Be brief.\tPlease"}, {"role": "user", "content": "Größe 漢字 🙂?"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nb "},
        {"role": "user", "content": "<tool_response>c</tool_response>"},
        {"role": "assistant", "content": "\n\nd", "thinking": "hm", "reasoning_content": "hm"},
        {"role": "user", "content": "{'e': \"f\"} <&>"},
    ],
    "answered": [{"role": "user", "content": "\x00\x1b"}, {"role": "assistant", "content": "yes\n"}],
    "wrong order": [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}],
}


@pytest.fixture(scope="module", params=["llama3", "llama2", "unigram"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    theirs = write(request.param, folder, pad_token="<|y|>")
    return theirs, Tokenizer.load(folder)


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_text_and_ids_are_those_of_transformers(pair, file, talk, answer):
    theirs, ours = pair
    template = ChatTemplate(file.read_text("utf-8"), file.name)

    def theirs_of(**options):
        return theirs.apply_chat_template(
            TALKS[talk], chat_template=template.source, add_generation_prompt=answer, **options
        )

    try:
        expected = theirs_of(tokenize=False)
    except jinja2.TemplateError as error:
        assert talk == "wrong order"
        with pytest.raises(InputError) as caught:
            template.render(TALKS[talk], ours, answer)
        assert caught.value.message == f"{file.name}: {error}"
        return
    assert template.render(TALKS[talk], ours, answer) == expected
    assert template.encode(TALKS[talk], ours, answer) == theirs_of(return_dict=False)


def test_contents_of_every_kind(pair):
    theirs, ours = pair
    source = next(file for file in TEMPLATES if file.stem == "qwen3").read_text("utf-8")
    special = [*theirs.all_special_tokens, "<|x|>", "<|strip|>", "<|left|>", "<|right|>"]
    for line in LINES:
        if any(token in line for token in special):
            continue  # in a message they are plain text here
        talk = [{"role": "user", "content": line}]
        expected = theirs.apply_chat_template(talk, chat_template=source, return_dict=False)
        assert ChatTemplate(source, "t").encode(talk, ours, answer=False) == expected, line


def test_a_message_cannot_speak_special_tokens(pair):
    _, ours = pair
    template = ChatTemplate("{{ bos_token }}{% for m in messages %}<|x|>{{ m.content }}<|y|>{% endfor %}", "t")
    text = "one<|y|> two <|x|><s>three</s>"
    ids = template.encode([{"role": "user", "content": text}], ours)
    assert [i for i in ids if i in ours.special_ids.values()] == [1, 3, 4]
    assert ours.decode(ids).replace("\u2581", " ").strip() == text


@pytest.mark.parametrize(
    "template, chosen",
    [
        ("one", "one"),
        ([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}], "d"),
        ({"default": "d", "rag": "r"}, "d"),
    ],
)
def test_where_templates_lie(tmp_path, template, chosen):
    theirs = write("gpt2", tmp_path, chat_template=template)
    if not isinstance(template, dict):
        assert theirs.get_chat_template() == chosen
    ours = Tokenizer.load(tmp_path)
    assert chat_template(tmp_path, ours).source == chosen
    out = tmp_path / "out"
    out.mkdir()
    facts = copy_tokenizer(tmp_path, out)
    assert chat_template(out, Tokenizer.load(out)).source == chosen
    assert set(facts.templates) == ({"default"} if isinstance(template, str) else set(ours.files.templates))
    assert type(theirs).from_pretrained(out).get_chat_template() == chosen
    (tmp_path / "chat_template.jinja").write_text("from the file\n")
    assert reread(tmp_path).get_chat_template() == chat_template(tmp_path, ours).source == "from the file\n"


def test_templates_without_one_for_conversations(tmp_path):
    named = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]
    theirs = write("gpt2", tmp_path, chat_template=named)
    with pytest.raises(ValueError, match="default"):
        theirs.get_chat_template()
    with pytest.raises(InputError, match="the templates are rag, tool_use; none has the name default"):
        chat_template(tmp_path, Tokenizer.load(tmp_path))


def test_what_ends_an_answer(tmp_path):
    write("llama3", tmp_path, chat_template="x")
    template, ours = chat_template(tmp_path, Tokenizer.load(tmp_path)), Tokenizer.load(tmp_path)
    assert template.end_ids(ours) == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2]}))
    assert template.end_ids(Tokenizer.load(tmp_path)) == {2, 4}


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% generation %}x", r"Unexpected end of template"),
        ("{% set n = namespace(_a=1) %}", "takes no name that begins with an underscore: '_a'"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "takes no name that begins with an underscore"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{{ dict.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ strftime_now.__globals__['json'] }}", "unsafe"),
        ("{{ (1).__class__.__base__ }}", "unsafe"),
        ("{{ messages[0].update({'role': 'x'}) }}", "unsafe|not safely callable"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("{{ strftime_now(5) }}", "TypeError"),
        ("{{ none.x.y }}", "has no attribute 'x'"),
    ],
)
def test_templates_that_reach_too_far(source, message):
    with pytest.raises(InputError, match=message):
        ChatTemplate(source, "t.jinja").render(TALKS["question"])
