"""YAML and DSL: what is read, where it lies, and that both mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.errors import DiagnosticError
from omnic.spec import load_spec, parse_spec, preset_names, to_dsl, to_json, to_yaml
from omnic.spec.load import read_file, read_tree
from omnic.spec.tree import Text, read_scalar
from omnic.spec.units import bytes_text, parse_bytes, parse_tokens, tokens_text

MOBILE = """
model mobile_4gb {
  vocab 32000 context 8192  # two statements in a line
  12 x block(width = 1024) {
    attention mla(heads = 8, latent = 160, nope_dim = 96, rope_dim = 32, v_dim = 128, window = 2k)
      with rope(base = 10000)
    ffn moe(hidden = 2816, experts = 16, top_k = 2, shared = 1, groups = [8, 8], activation = gelu)
  }
  heads mtp(linear, depth = 2), verifier
  draft draft_60m
  budget memory 4GB context 8k disk 8GB
  target coreml(compute = ane), onnx(ep = cpu)
}
"""


def test_the_dsl_of_the_design_is_the_preset() -> None:
    spec = parse_spec(MOBILE, "m.omnic")
    assert spec == load_spec("mobile_4gb")
    assert spec.layers()[0].place == ("m.omnic", 4, 8)
    assert spec.place("heads.mtp.depth") == ("m.omnic", 9, 29)
    assert spec.place("budget.disk") == ("m.omnic", 11, 37)
    assert spec.place("blocks.0.attention.rope.base") == ("m.omnic", 6, 24)


@pytest.mark.parametrize("name", preset_names())
def test_export_and_back(name: str) -> None:
    spec = load_spec(name)
    for text, syntax in ((to_yaml(spec), "yaml"), (to_dsl(spec), "dsl"), (to_json(spec), "yaml")):
        back = parse_spec(text, "x", syntax)  # type: ignore[arg-type]
        assert back == spec
        assert to_dsl(back) == to_dsl(spec)
        assert back.given() | {"omnic": 1} == spec.given() | {"omnic": 1}


def test_what_export_writes(golden: object) -> None:
    golden("spec/mobile_4gb.dsl.txt", to_dsl(load_spec("mobile_4gb")))  # type: ignore[operator]
    golden("spec/tiny_moe.yaml.export.txt", to_yaml(load_spec("tiny_moe")))  # type: ignore[operator]


def test_dsl_forms() -> None:
    text = """
    model forms {
      omnic 1  vocab(size = 64, used = 60)
      context 1k
      norm layer(eps = 1e-5, place = both)
      softcap(logits = 30)
      weights "a b.safetensors"
      passes [fold, weights(bits = 4, kind = nf4), "tail"]
      block(width = 32) {
        attention mha(heads = 2)
          with rope(base = 1e6, scaling = yarn(factor = 2))
          with global()
          with pattern [global]
        ffn dense(hidden = 8)
      }
      target onnx, coreml(list = [1, a, [none, true]], inner = (deep = "x y"))
      heads mtp none
    }
    """
    spec = parse_spec(text, "f.omnic")
    assert [layer.pattern for layer in spec.layers()] == ["global"]
    assert (spec.vocab.used, spec.norm.kind, spec.norm.place, spec.softcap.logits) == (60, "layer", "both", 30)
    assert spec.weights == "a b.safetensors"
    assert spec.passes == ("fold", {"weights": {"bits": 4, "kind": "nf4"}}, "tail")
    assert spec.targets == {"onnx": {}, "coreml": {"list": (1, "a", (None, True)), "inner": {"deep": "x y"}}}
    assert spec.heads.mtp is None
    rope = spec.layers()[0].attention.rope
    assert rope is not None
    assert rope.scaling is not None
    assert (rope.base, rope.scaling.kind) == (1e6, "yarn")


def test_words_are_read_alike() -> None:
    read = {
        word: read_scalar(word)
        for word in ("true", "no", "none", "12", "1_000", "1e-6", "-.5", "4GB", "0x10", "1e999", "007")
    }
    assert read == {
        "true": True, "no": "no", "none": None, "12": 12, "1_000": 1000, "1e-6": 1e-6, "-.5": -0.5, "4GB": "4GB",
        "0x10": "0x10", "1e999": "1e999", "007": 7,
    }  # fmt: skip


def test_units() -> None:
    assert [parse_bytes(text) for text in ("4GB", "1.5 MiB", "3B")] == [4 * 10**9, 3 * 2**19, 3]
    assert [parse_tokens(text) for text in ("32k", "0.5k", "1M")] == [32768, 512, 2**20]
    assert [bytes_text(size) for size in (4 * 10**9, 2**30, 2048, 12345)] == ["4GB", "1GiB", "2KiB", "12345"]
    assert [tokens_text(size) for size in (32768, 1000)] == ["32k", "1000"]
    for text, said in (("4G", "has the unit 'G'"), ("k", "must be"), ("0.3B", "is not a whole"), ("-1k", "must be")):
        with pytest.raises(ValueError, match=said):
            parse_bytes(text)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"model: a\nx: \xff\n")
    with pytest.raises(DiagnosticError) as caught:
        read_file(path)
    assert caught.value.render() == f"{path}:2:1: error: the file is not UTF-8 text"
    with pytest.raises(DiagnosticError) as caught:
        load_spec(tmp_path)
    assert caught.value.render().startswith(f"error: {tmp_path}: cannot be read:")


def test_names_that_are_no_spec() -> None:
    for name, want in (
        ("mobile4gb", "error: there is no spec file or preset 'mobile4gb'\n  did you mean 'mobile_4gb'?"),
        ("a.txt", "error: a.txt: cannot be read: No such file or directory"),
    ):
        with pytest.raises(DiagnosticError) as caught:
            load_spec(name)
        assert caught.value.render() == want
    with pytest.raises(DiagnosticError) as caught:
        parse_spec("model: a", "a.toml")
    assert caught.value.render() == "error: a.toml: '.toml' is not a spec\n  spec files end in .yaml, .yml, .omnic"


def test_a_page_is_no_spec() -> None:
    with pytest.raises(DiagnosticError, match="a spec has at most 1048576"):
        Text("big.yaml", " " * (1 << 20) + "x")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends(newline: str) -> None:
    tree = read_tree(Text("a.yaml", f"model: a{newline}context: 12{newline}"))
    node = tree.find(("context",))
    assert node is not None
    assert (node.span.line, node.span.column, node.span.source) == (2, 10, "context: 12")
    dsl = read_tree(Text("a.omnic", f"model a {{{newline}  context 12{newline}}}"))
    node = dsl.find(("context",))
    assert node is not None
    assert (node.span.line, node.span.column, node.span.source) == (2, 11, "  context 12")
