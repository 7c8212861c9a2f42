"""check, explain, export and list, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnic.cli import main
from omnic.spec import load_spec, preset_names, to_dsl

GOOD_IR = "core_ops.ir"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "tiny", "mobile_4gb"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "specs/tiny.yaml: ok: tiny, 3 layers, 3.54 M parameters",
        "specs/mobile_4gb.yaml: ok: mobile_4gb, 12 layers, 1,371.53 M parameters",
    ]


def test_check_files(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((repository / "specs").glob("*.yaml"))
    assert len(files) == len(preset_names())
    assert main(["check", *map(str, files), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [Path(report["file"]).stem for report in body["files"]] == [path.stem for path in files]
    assert body["files"][-1]["parameters"] == 3_876_096


def test_check_reports_all_files_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.yaml").write_text("model: a\nextends: tiny\nties: 1\n")
    (here / "b.omnic").write_text("model b {\n  extends tiny tie maybe\n}\n")
    assert main(["check", "a.yaml", "tiny", "b.omnic", "c.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "specs/tiny.yaml: ok: tiny, 3 layers, 3.54 M parameters\n"
    assert err == (
        "a.yaml:3:1: error: unknown key 'ties' in the spec\n  ties: 1\n  ^^^^\n  did you mean 'tie'?\n"
        "b.omnic:2:20: error: tie must be true or false, not 'maybe'\n    extends tiny tie maybe\n"
        "                     ^^^^^\n"
        "error: c.yaml: cannot be read: No such file or directory\n"
    )


def test_check_an_unknown_option_of_a_target(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.yaml").write_text("model: a\nextends: tiny\ntargets:\n  onnx: {epp: cpu}\n  onnyx: {}\n")
    assert main(["check", "a.yaml"]) == 2
    assert capsys.readouterr().err.startswith("a.yaml:4:3: error: ")
    (here / "a.yaml").write_text("model: a\nextends: tiny\ntargets:\n  onnyx: {}\n")
    assert main(["check", "a.yaml"]) == 0
    assert (
        "the target 'onnyx' is not part of this omnic: its options are not checked; did you mean 'onnx'?"
        in capsys.readouterr().out
    )


def test_check_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "m.omnic").write_text(to_dsl(load_spec("mobile_4gb")))
    assert main(["check", "mobile_4gb", "m.omnic", "--same"]) == 0
    assert capsys.readouterr().out.endswith("the same model: specs/mobile_4gb.yaml, m.omnic\n")
    (here / "m.omnic").write_text(to_dsl(load_spec("mobile_4gb")).replace("top_k = 2", "top_k = 1"))
    assert main(["check", "mobile_4gb", "m.omnic", "--same"]) == 1
    out = capsys.readouterr().out
    assert "layers[0].ffn.top_k: 2 in specs/mobile_4gb.yaml, 1 in m.omnic\n" in out
    assert main(["check", "mobile_4gb", "m.omnic", "--same", "--json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert body["same"] is False
    assert body["differences"][0] == {
        "key": "layers[0].ffn.top_k",
        "files": ["specs/mobile_4gb.yaml", "m.omnic"],
        "values": [2, 1],
    }
    assert main(["check", "tiny", "--same"]) == 2
    assert capsys.readouterr().err == (
        "error: --same compares two or more specs\n  omnic check a.yaml b.omnic --same\n"
    )


def test_check_ir(repository: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = repository / "tests" / "golden" / GOOD_IR
    assert main(["check", str(good)]) == 0
    assert f"{good}: ok: module " in capsys.readouterr().out
    (here / "bad.ir").write_text("module @m {\n  func @f( {\n}\n")
    assert main(["check", "bad.ir", "missing.ir"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bad.ir:2:")
    assert "error: missing.ir: cannot be read: No such file or directory" in err


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "mobile_4gb_moe16", "blocks[0].ffn.shared", "norm"]) == 0
    assert capsys.readouterr().out == (
        "mobile_4gb_moe16\n"
        "  norm.kind             rms    default\n"
        "  norm.eps              1e-06  default\n"
        "  norm.place            pre    default\n"
        "  norm.weight           true   default\n"
        "  norm.bias             none   default\n"
        "  norm.embedding        false  default\n"
        "  blocks[0].ffn.shared  2      preset mobile_4gb_moe16 (specs/mobile_4gb_moe16.yaml:7)\n"
    )
    assert main(["explain", "tiny", "--set", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert {value["source"] for value in body["values"]} == {"preset"}
    assert body["values"][2] == {
        "key": "vocab.size",
        "value": 4096,
        "source": "preset",
        "detail": "tiny",
        "place": {"file": "specs/tiny.yaml", "line": 5, "column": 15},
        "meaning": "rows of the embedding and of the head",
    }
    assert main(["explain", "tiny", "norm.epz"]) == 2
    assert capsys.readouterr().err == "error: tiny has no value norm.epz\n  did you mean norm.eps?\n"


@pytest.mark.parametrize("name", preset_names())
def test_explain_every_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}\n  omnic ")


def test_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "tiny", "--as", "dsl"]) == 0
    assert capsys.readouterr().out == to_dsl(load_spec("tiny"))
    assert main(["export", "tiny", "--as", "yaml", "-o", "t.yaml"]) == 0
    assert main(["export", "tiny", "--as", "yaml", "-o", "t.yaml"]) == 0
    assert main(["check", "tiny", "t.yaml", "--same"]) == 0
    (here / "t.yaml").write_text("mine")
    capsys.readouterr()
    assert main(["export", "tiny", "--as", "json", "-o", "t.yaml"]) == 2
    assert capsys.readouterr().err == "error: t.yaml exists with other content\n  --force replaces it\n"
    assert (here / "t.yaml").read_text() == "mine"
    assert main(["export", "tiny", "--as", "json", "-o", "t.yaml", "--force"]) == 0
    assert json.loads((here / "t.yaml").read_text())["model"] == "tiny"
    assert main(["export", "tiny", "--as", "json", "-o", "no/t.yaml"]) == 2
    assert main(["export", "tiny", "--as", "json", "-o", "."]) == 2
    assert sorted(path.name for path in here.iterdir()) == ["t.yaml"]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "presets"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(preset_names())
    assert main(["list", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert set(body) == {"presets", "targets", "passes", "pipelines"}
    assert {"onnx", "torch"} <= {row["name"] for row in body["targets"]}
    phase = next(row for row in body["passes"] if row["name"] == "specialise-phase")
    assert phase["stage"] == "specialise"
    assert [(o["name"], o.get("default", "-"), o["range"]) for o in phase["options"]] == [
        ("phase", "-", ""),
        ("tokens", "-", "at least 1"),
        ("mla_form", None, "one of naive, absorbed"),
        ("function", "forward", ""),
    ]
    assert {"auto", "clean-up", "merge"} <= {row["name"] for row in body["pipelines"]}
    assert main(["list", "passes"]) == 0
    shown = capsys.readouterr().out
    assert "  cse  (front)  Compute once what is computed twice." in shown
    assert "      context: int, must be given, 2..16777216" in shown
