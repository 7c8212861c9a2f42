"""`omnic tune` through the command line: its table, its record, an interruption, wrong inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnic import cli
from omnic.runtime.machine import processor
from omnic.targets.base import Tuned, TuneRequest
from omnic.targets.tvm.target import TvmTarget

SPEC = """omnic: 1
model: small
vocab: {size: 96}
context: 64
chunk: 16
blocks:
  - repeat: 1
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
passes:
  - int4-packing: {group: 32, scale: s4}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


def omnic(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def found(request: TuneRequest) -> Iterator[Tuned]:
    yield Tuned("linear 64 x 64", "1", 2e-5, "panels 4", 1.25, (1.2, 1.3), True)
    yield Tuned("linear 64 x 64", "2-16", 4e-4, "", 1.01, (0.97, 1.05), False, "best of 3: chunk 64; not beyond noise")
    if request.seconds == 90:
        raise KeyboardInterrupt
    yield Tuned("linear 64 x 64", "17-128", None, "", 1.0, (1.0, 1.0), False, "the budget had ended")


def test_the_table_and_what_was_kept(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TvmTarget, "tune", lambda self, request: found(request))
    records = tmp_path / "r.jsonl"
    code, out, _ = omnic(capsys, "tune", spec, "--records", records, "--threads", 2)
    assert code == 0
    assert out.startswith(f"small on {processor()}, 2 threads\n\n")
    assert cells(out) == [
        ["what", "rows", "default us", "best", "gain"],
        ["linear 64 x 64", "1", "20.0", "panels 4", "1.250x [1.200, 1.300]"],
        ["linear 64 x 64", "2-16", "400.0", "default (best of 3: chunk 64; not beyond noise)", "1.010x [0.970, 1.050]"],
        ["linear 64 x 64", "17-128", "default (the budget had ended)"],
    ]
    assert out.endswith(f"1 of 3 are faster another way; kept in {records}\n")


def cells(out: str) -> list[list[str]]:
    lines = out.splitlines()[2:-2]
    return [[cell for cell in map(str.strip, line.split("  ")) if cell] for line in lines]


def test_an_interruption_prints_what_was_found(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TvmTarget, "tune", lambda self, request: found(request))
    code, out, _ = omnic(capsys, "tune", spec, "--budget", "90s")
    assert code == cli.INTERRUPTED
    assert out.splitlines()[-1].startswith("interrupted: 1 of 2 are faster another way; kept in ")
    code, out, _ = omnic(capsys, "tune", spec, "--budget", "90s", "--json")
    given = json.loads(out)
    assert code == cli.INTERRUPTED and given["stopped"] and [f["won"] for f in given["found"]] == [True, False]


def test_a_spec_and_its_bundle_are_measured(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = tmp_path / "r.jsonl"
    words = ("--budget", "1s", "--op", "linear", "--records", records, "--json")
    code, out, _ = omnic(capsys, "tune", spec, "--option", "level=generic", *words)
    given = json.loads(out)
    assert code == 0 and given["records"] == str(records) and not given["stopped"]
    names = {f["what"] for f in given["found"]}
    assert names == {"linear 64 x 64 i4<g32, s4>, act i8<g32>", "linear 96 x 64 i8<row, f16>, act i8<per_token>"}
    bundle = tmp_path / "bundle"
    made = ("--target", "tvm", "--seed", 1, "--option", "level=generic", "-o", bundle, "--parity", "off")
    code, _, _ = omnic(capsys, "compile", spec, *made)
    assert code == 0
    code, out, _ = omnic(capsys, "tune", bundle, *words)
    assert code == 0 and {f["what"] for f in json.loads(out)["found"]} == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "ten"), "--budget: 'ten' is no time; write --budget 90s, 10m or 1h"),
        (("--budget", "0s"), "--budget: '0s' is no time; write --budget 90s, 10m or 1h"),
        (("--threads", "0"), "--threads must be 1 or more, not 0"),
        (("--op", "linaer"), "there is no op 'linaer' to tune; did you mean 'linear'?"),
        (("--target", "torch"), "target torch has nothing to tune; tune a target with kernels"),
        (("--records", "nowhere/r.jsonl"),
         "nowhere/r.jsonl: there is no folder nowhere; make it, or name another file"),
    ],
)
def test_wrong_inputs_say_what_to_do(
    spec: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = omnic(capsys, "tune", spec, *words)
    said = " ".join(err[err.index("error: "):].split())
    assert code == 2 and said.startswith("error: " + message.partition(";")[0])
    for part in message.split("; ")[1:]:
        assert part in said


def test_a_damaged_file_of_records_is_named(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n")
    code, _, err = omnic(capsys, "tune", spec, "--records", path)
    assert code == 2 and f"error: {path}:1: a record of schema None; this omnic reads 1" in " ".join(err.split())
    code, _, err = omnic(capsys, "compile", spec, "--target", "tvm", "--seed", 1, "--option", f"tuning={path}", "-o",
                         tmp_path / "out")
    assert code == 2 and f"{path}:1: a record of schema None" in " ".join(err.split())
