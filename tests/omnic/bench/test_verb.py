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
SHORT = ["--prompts", "8", "--contexts", "8", "--new", "2", "--rounds", "2", "--warmup", "1", "--no-canary"]


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
    assert "MISSED" in out and "omnic onnx" in out and "GB/s" in out and "estimated for" in out


def test_what_ran_must_be_what_is_required(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bench", str(bundle), *SHORT, "--no-history"]
    assert main([*words, "--require", "GroupQueryAttention=1"]) == 0
    out = capsys.readouterr().out
    assert "calls of GroupQueryAttention for a token: 1, bound >= 1: met" in out and "CPUExecutionProvider" in out
    assert main([*words, "--require", "QMoE"]) == 1
    assert "calls of QMoE for a token: 0, bound >= 1: MISSED" in capsys.readouterr().out


def test_another_bundle_takes_turns(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    plain = compile_model(parse_spec(SPEC, "small.yaml"), "onnx", tmp_path / "plain", seed=1, parity="off",
                          options={"profile": "plain"})
    (tmp_path / "t.json").write_text(json.dumps({"schema_version": 1, "rows": [
        {"metric": "speedup", "over": "omnic onnx plain", "min": 0.0001}]}))
    words = ["bench", str(bundle), *SHORT, "--no-history", "--thresholds", "t.json"]
    assert main([*words, "--against", str(plain.path)]) == 0
    out = capsys.readouterr().out
    assert "omnic onnx plain  decode" in out and "speedup over omnic onnx plain at any context, any provider:" in out
    other = compile_model(parse_spec(SPEC.replace("size: 64", "size: 128"), "small.yaml"), "onnx", tmp_path / "other",
                          seed=1, parity="off")
    assert main([*words, "--against", str(other.path)]) == 2
    assert "a model of 128 words and 64 tokens" in capsys.readouterr().err


def test_the_budget_of_the_spec_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SPEC + "budget: {memory: 1MB}\n")
    assert main(["bench", "small.yaml", "--seed", "1", *SHORT]) == 1
    assert "bound <= 1e+06: MISSED" in capsys.readouterr().out


def test_lengths_are_chosen_and_the_canary_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SPEC.replace("context: 64", "context: 256"))
    assert main(["bench", "small.yaml", "--seed", "1", "--budget", "1s", "--new", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["prompts"] == [128] and found["plan"]["contexts"] == [128] and found["plan"]["rounds"] >= 5
    assert found["conditions"]["canary"].startswith("right tokens") and found["memory"]["engine"] > 10_000_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--device", "adb:X"], "device 'adb:X' cannot be measured"),
        (["tiny", "--rounds", "0"], "--rounds must be 1 or more, not 0"),
        (["tiny", "--contexts", "1x"], "--contexts: '1x' is not a number of tokens"),
        (["tiny", "--contexts", "", "--prompts", ""], "nothing to measure"),
        (["tiny", "--thresholds", "none.json"], "none.json: No such file or directory"),
        (["nowhere"], "nowhere"),
        (["tiny", "--budget", "soon"], "--budget: 'soon' is no time"),
        (["tiny", "--budget", "9s", "--contexts", "8"], "--budget chooses the lengths"),
        (["tiny", "--require", "MatMul=x"], "--require MatMul=x: 'x' is no number of calls"),
        (["tiny", "--against", "nowhere"], "nowhere"),
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
