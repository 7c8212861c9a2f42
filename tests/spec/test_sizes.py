"""Counts from the spec are those of the IR; the tokenizer's size is looked up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from omnic.errors import DiagnosticError
from omnic.models import build
from omnic.models.summary import summarise
from omnic.spec import Spec, load_spec, parse_spec, preset_names, scale
from omnic.spec.sizes import count_parameters
from tests.spec.strategies import spec_data


def agrees(spec: Spec) -> None:
    counted, summary = count_parameters(spec), summarise(build(spec))
    assert (counted.total, counted.active) == (summary.parameters, summary.active)


@pytest.mark.parametrize("name", preset_names())
def test_presets_count_as_their_ir(name: str) -> None:
    agrees(load_spec(name))


@settings(max_examples=25)
@given(spec_data())
def test_any_spec_counts_as_its_ir(data: dict[str, Any]) -> None:
    agrees(scale(parse_spec(json.dumps(data))))


BODY = """model: m
vocab: {size: 4}
context: 64
tokenizer: t.json
blocks:
  - {width: 64, attention: {kind: mha, heads: 4}, ffn: {kind: dense, hidden: 8}}
"""


def tokenizer(ids: int, added: int = 0) -> dict[str, Any]:
    vocab = {f"t{number}": number for number in range(ids)}
    extra = [{"id": ids + number, "content": f"<{number}>"} for number in range(added)]
    return {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": extra}


def problem(folder: Path, body: str = BODY) -> str:
    (folder / "m.yaml").write_text(body)
    with pytest.raises(DiagnosticError) as caught:
        load_spec(folder / "m.yaml")
    return caught.value.render().replace(f"{folder}/", "")


def test_a_tokenizer_that_is_not_there_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(BODY)
    assert load_spec(tmp_path / "m.yaml").tokenizer == "t.json"


def test_a_tokenizer_of_the_right_size(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(BODY)
    for data in (tokenizer(4), tokenizer(3, 1), {"model": {"vocab": [["a", 0.0]] * 4}}):
        (tmp_path / "t.json").write_text(json.dumps(data))
        load_spec(tmp_path / "m.yaml")


def test_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(tokenizer(5)))
    assert problem(tmp_path) == (
        "m.yaml:4:12: error: the tokenizer has 5 tokens, vocab.size is 4\n  tokenizer: t.json\n             ^^^^^^"
    )
    (tmp_path / "t.json").write_text(json.dumps(tokenizer(3)))
    assert problem(tmp_path).endswith("\n  write 'used: 3' in vocab if the rows beyond are padding")
    (tmp_path / "m.yaml").write_text(BODY.replace("size: 4", "size: 4, used: 3"))
    assert load_spec(tmp_path / "m.yaml").vocab.used == 3
    (tmp_path / "t.json").write_text(json.dumps(tokenizer(2)))
    assert "the tokenizer has 2 tokens, vocab.used is 3" in problem(
        tmp_path, BODY.replace("size: 4", "size: 4, used: 3")
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": "x"}}}', "[" * 10**5]
)
def test_a_tokenizer_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    assert problem(tmp_path).startswith("m.yaml:4:12: error: the tokenizer t.json ")
