"""``extends``: single values over another spec, with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.errors import DiagnosticError
from omnic.spec import MoE, load_spec, parse_spec, with_values
from omnic.spec.origins import origins

BASE = """model: base
vocab: {size: 512}
context: 256
tie: true
weights: base.safetensors
blocks:
  - {repeat: 2, width: 64, attention: {kind: mha, heads: 4, window: 9}, ffn: {kind: moe, hidden: 8,
      experts: 4, top_k: 2}}
  - {width: 64, attention: {kind: mha, heads: 4}, ffn: {kind: dense, hidden: 8}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.yaml").write_text(BASE)
    return tmp_path


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_single_values(folder: Path) -> None:
    spec = load_spec(
        write(
            folder,
            "model: own\nextends: inner/base.yaml\ncontext: 512\nblocks:\n  0: {attention: {window: none}, repeat: 3}\n"
            "  1: {ffn: {kind: moe, hidden: 16, experts: 2, top_k: 1}}\n",
        )
    )
    assert (spec.model, spec.context, spec.vocab.size, spec.tie) == ("own", 512, 512, True)
    assert [layer.attention.window for layer in spec.layers()] == [None] * 4
    assert spec.layers()[0].attention.heads == 4
    assert spec.layers()[3].ffn.hidden == 16
    assert spec.place("vocab.size")[0].endswith("inner/base.yaml")
    assert spec.place("context") == (str(folder / "own.yaml"), 3, 10)


def test_the_dsl_over_yaml_and_yaml_over_the_dsl(folder: Path) -> None:
    middle = write(
        folder,
        "model middle {\n  extends inner/base.yaml\n  block[0](repeat = 3) {\n    attention(window = none)\n"
        "    ffn(top_k = 1)\n  }\n}\n",
        "middle.omnic",
    )
    top = load_spec(write(folder, "model: top\nextends: middle.omnic\nqk_norm: true\n"))
    assert [layer.attention.window for layer in load_spec(middle).layers()] == [None] * 4
    assert top.layers()[0].attention.qk_norm
    ffn = top.layers()[0].ffn
    assert isinstance(ffn, MoE)
    assert ffn.top_k == 1


def test_a_list_replaces(folder: Path) -> None:
    spec = load_spec(
        write(
            folder,
            "model: own\nextends: inner/base.yaml\n"
            "blocks: [{width: 32, attention: {kind: mha, heads: 4}, ffn: {kind: dense, hidden: 8}}]\n",
        )
    )
    assert (len(spec.layers()), spec.width) == (1, 32)


def test_files_lie_beside_the_spec_that_names_them(folder: Path) -> None:
    spec = load_spec(write(folder, "model: own\nextends: inner/base.yaml\ntokenizer: t.json\n"))
    assert spec.resolve("weights") == folder / "inner" / "base.safetensors"
    assert spec.resolve("tokenizer") == folder / "t.json"
    assert spec.resolve("draft") is None
    assert parse_spec(BASE).resolve("weights") is None


def test_errors_of_the_base_are_shown_there(folder: Path) -> None:
    write(folder / "inner", BASE.replace("heads: 4}", "heads: x}"), "base.yaml")
    with pytest.raises(DiagnosticError) as caught:
        load_spec(write(folder, "model: own\nextends: inner/base.yaml\ntie: 3\n"))
    own, base = sorted(caught.value.diagnostics, key=lambda item: str(item.span))[::-1]
    assert own.render().startswith(f"{folder}/own.yaml:3:6: error: tie must be true or false, not 3\n")
    assert base.render().startswith(f"{folder}/inner/base.yaml:9:47: error: blocks[1].attention.heads must be a whole")


def test_override_without_extends() -> None:
    with pytest.raises(DiagnosticError) as caught:
        parse_spec("model: a\nvocab: {size: 3}\ncontext: 4\nblocks: {0: {width: 3}}\n")
    assert caught.value.diagnostics[0].message == "blocks must be a list, not a mapping"


def test_origins(folder: Path) -> None:
    spec = load_spec(write(folder, "model: own\nextends: tiny\nqk_norm: true\nblocks: {0: {repeat: 2}}\n"))
    found = {item.key: item for item in origins(spec)}
    assert found["blocks[0].repeat"].text == f"{folder}/own.yaml:4"
    assert found["blocks[0].width"].text == "preset tiny (specs/tiny.yaml:13)"
    assert found["blocks[0].attention.qk_norm"].text == f"derived: qk_norm ({folder}/own.yaml:3)"
    assert found["blocks[0].attention.qk_norm"].value is True
    assert found["norm.eps"].text == "default"
    assert found["norm.eps"].meaning == "added to the mean square (the variance)"
    assert found["budget.context"].text == "derived: context"
    assert found["budget.context"].value == 1024
    assert found["passes"].text == "planner: chosen at compile time"
    assert found["chunk"].text == "default"
    assert len(found) == len(origins(spec))


def test_values_from_a_command_line(folder: Path) -> None:
    spec = load_spec(write(folder, "model: own\nextends: inner/base.yaml\nbudget: {context: 128, memory: 1GB}\n"))
    changed = with_values(spec, {"budget": {"memory": "2GB"}, "passes": ["fold", {"a": {"b": 1}}]}, "--budget")
    assert (changed.budget.memory, changed.budget.context, spec.budget.memory) == (2 * 10**9, 128, 10**9)
    assert changed.passes == ("fold", {"a": {"b": 1}})
    assert changed.resolve("weights") == folder / "inner" / "base.safetensors"
    assert {item.key: item for item in origins(changed)}["budget.memory"].text == "--budget:1"
    with pytest.raises(DiagnosticError) as caught:
        with_values(spec, {"budget": {"memory": "2Gb"}}, "--budget")
    assert caught.value.render().startswith("--budget:1:1: error: budget.memory has the unit 'Gb'")


def test_a_text_without_a_folder_looks_at_no_files() -> None:
    text = BASE.replace("tie: true", "draft: other.yaml\ntokenizer: t.json")
    assert parse_spec(text).draft == "other.yaml"
    with pytest.raises(DiagnosticError, match="reads"):
        parse_spec(BASE.replace("tie: true", "draft: draft_3b").replace("size: 512", "size: 32000"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ('extends: "a\\0b.yaml"', "cannot be the name of a file"),
        ('extends: "a\\0b"', "there is no spec file or preset"),
        (f"extends: {'x' * 5000}", "there is no spec file or preset"),
        (f"extends: {'x' * 5000}.yaml", "cannot be read: File name too long"),
        ("extends: inner", "cannot be read: Is a directory"),
        ("extends: /dev/zero", "/dev/zero: the text has 4194304 characters"),
        (f"extends: inner/base.yaml\ntokenizer: {'x' * 500}", None),
        (f"extends: inner/base.yaml\ndraft: {'x' * 500}", "the draft is no valid spec: there is no spec file"),
    ],
)
def test_names_that_no_file_has(folder: Path, key: str, said: str | None) -> None:
    path = write(folder, f"model: own\n{key}\n")
    if said is None:
        assert load_spec(path).tokenizer
        return
    with pytest.raises(DiagnosticError) as caught:
        load_spec(path)
    assert said in caught.value.render()
