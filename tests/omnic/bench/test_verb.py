"""``omnic bench`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnic.api import compile as compile_model
from omnic.bench.peers import Precision, precision_of
from omnic.cli import main
from omnic.models import build
from omnic.passes.base import find_pass
from omnic.spec import load_spec, parse_spec, scale

SPEC = """omnic: 1
model: small
vocab: {size: 64}
context: 64
blocks:
  - repeat: 1
    width: 32
    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 16}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
"""
SHORT = ["--prompts", "8", "--contexts", "8", "--new", "2", "--rounds", "2", "--warmup", "1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_model(parse_spec(SPEC, "small.yaml"), "onnx", tmp_path_factory.mktemp("bench") / "small", seed=1,
                         parity="off").path


def test_a_bundle_is_measured(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    bounds = tmp_path / "t.json"
    assert main(["bench", str(bundle), *SHORT, "--json", "--html", "b.html", "--write-thresholds", "t.json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(f["phase"], f["tokens"]) for f in found["figures"]} == {("prefill", 8), ("decode", 8)}
    assert found["peaks"]["omnic onnx"] > 10_000_000 and (tmp_path / "b.html").is_file()
    assert (tmp_path / "build/bench/history.sqlite").is_file()
    rows = json.loads(bounds.read_text())
    for row in rows["rows"]:
        row.update({"min": 1e12} if "min" in row else {"max": 0.0})
    bounds.write_text(json.dumps(rows))
    assert main(["bench", str(bundle), *SHORT, "--no-history", "--thresholds", "t.json"]) == 1
    out = capsys.readouterr().out
    assert "MISSED" in out and "omnic onnx" in out and "GB/s" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--device", "adb:X"], "device 'adb:X' cannot be measured"),
        (["tiny", "--rounds", "0"], "--rounds must be 1 or more, not 0"),
        (["tiny", "--contexts", "1x"], "--contexts: '1x' is not a number of tokens"),
        (["tiny", "--contexts", "", "--prompts", ""], "nothing to measure"),
        (["tiny", "--thresholds", "none.json"], "none.json: No such file or directory"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_bundle_takes_no_options_of_a_spec(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--target", "torch"]) == 2
    assert "--target is for a spec" in capsys.readouterr().err
    assert main(["bench", str(bundle), "--peers", "all"]) == 2
    assert "--peers are built from the model's own numbers" in capsys.readouterr().err


def test_an_unknown_peer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SPEC)
    assert main(["bench", "small.yaml", "--seed", "1", *SHORT, "--peers", "lama.cpp"]) == 2
    assert "did you mean 'llama.cpp'?" in capsys.readouterr().err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--schema", "thresholds"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "ProviderThresholds"


def test_the_precision_of_a_model() -> None:
    module = build(scale(load_spec("tiny")))
    assert precision_of(module) == Precision(16)
    packed = find_pass("int4-packing")(group=32).run(module).module
    assert precision_of(packed) == Precision(4, 32) and str(precision_of(packed)) == "int4 in groups of 32"
