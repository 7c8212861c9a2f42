"""prefill-int8 through a compile: parity follows each call, fidelity has both phases, second weights are counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from omnic import cli
from omnic.compiler.options import with_passes
from omnic.compiler.parity import measure_parity
from omnic.compiler.parts import check_parts
from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.compiler.progress import silent
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.passes.prefill_int8 import prefill_bytes, prefill_weights
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.spec import Spec, load_spec, parse_spec, scale
from omnic.targets import get_target

SPEC = """omnic: 1
model: small
vocab: {size: 300}
context: 64
chunk: 32
blocks:
  - repeat: 2
    width: 32
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 8, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
"""
PASSES = ["int4-packing{group=16}", "prefill-int8{from_tokens=7}"]


def compiled(spec: Spec, folder: Path, target: str, parity: str = "full", passes: Sequence[str] = PASSES) -> Bundle:
    spec = with_passes(spec, list(passes))
    compile_spec(CompileRequest(spec, target, folder / target, seed=3, parity=parity, threads=1))
    return open_bundle(folder / target)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compiled(scale(load_spec("tiny")), tmp_path_factory.mktemp("prefill"), "onnx")


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_a_scaled_preset_has_parity(target: str, bundle: Bundle, tmp_path: Path) -> None:
    found = bundle if target == "onnx" else compiled(scale(load_spec("tiny")), tmp_path, target)
    assert found.parity is not None
    assert found.parity["ok"], found.parity
    assert {c["name"].split(" ")[0] for c in found.parity["cases"]} >= {"prefill", "chunks", "8", "ragged"}
    assert found.manifest.numeric_class == "int8"


def test_the_manifest_names_the_second_weights(bundle: Bundle) -> None:
    module, record = bundle.module, bundle.manifest.prefill
    assert record is not None
    assert (record.from_tokens, record.weights, record.bytes) == (
        7, len(prefill_weights(module)), prefill_bytes(module))
    assert record.bytes == sum(w.type.bytes() for n, w in module.weights.items() if n.endswith(".prefill"))
    assert {p.function: p.file for p in bundle.manifest.programs}["prefill"] == "prefill.onnx"


def test_fidelity_has_both_phases(bundle: Bundle) -> None:
    found = bundle.fidelity
    assert found is not None
    assert found["prefill"]["from"] == 7
    # 8 bits cost less than 4, and what int4 computes behind a prompt no more than all of it in int4.
    assert 0 < found["prefill"]["kl"] < found["kl"] / 4
    assert 0 < found["prefill"]["kl_after"] < 2 * found["kl"]


def test_parity_fails_when_a_session_does_not_follow_the_rule(tmp_path: Path) -> None:
    """The session is told of another length: the same programs, and the wrong one for calls in between."""
    two = ["int4-packing{kind=i2, group=32}", PASSES[1]]
    bundle = compiled(scale(load_spec("tiny")), tmp_path, "onnx", "off", two)
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    text = print_module(bundle.module)
    (broken / "module.ir").write_text(text.replace("meta prefill_from = 7", "meta prefill_from = 32"))
    store = WeightStore(bundle.module, seed=3)
    parity = measure_parity(open_bundle(broken, unfinished=True), get_target("onnx"), bundle.module, store, None,
                            origin={"seed": 3}, full=True, threads=1, progress=silent)
    wrong = [c.name for c in parity.cases if not c.ok]
    assert "chunks of 1, 7, 16, 33" in wrong


def test_parts_are_checked_in_both_functions(tmp_path: Path) -> None:
    made = compiled(parse_spec(SPEC), tmp_path, "onnx", "off")
    cases = check_parts(made, {"seed": 3}, None, silent)
    assert all(c.ok for c in cases), [c for c in cases if not c.ok]
    assert {c.name.split(" ")[0] for c in cases} == {"forward", "prefill"}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(w) for w in words])
    return code, *capsys.readouterr()


def test_the_budget_counts_the_second_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(SPEC)
    words = ["compile", str(tmp_path / "small.yaml"), "--target", "onnx", "--seed", "1", "-o", str(tmp_path / "b"),
             "--budget", "175kB", "--parity", "off"]
    assert run(capsys, *words)[0] == 0
    code, _, told = run(capsys, *words, "--pass", "prefill-int8")
    assert code == 2
    assert "small takes" in told
    assert "kB of them for prefill" in told.replace("\n", " ")
    assert not (tmp_path / "b" / "prefill.onnx").exists()


def test_wrong_options_and_targets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(SPEC)
    words = ["compile", str(tmp_path / "small.yaml"), "--seed", "1", "-o", str(tmp_path / "b"), "--target", "onnx"]
    for call, message in (("prefill-int8{from_tokens=1}", "from_tokens"), ("prefill-int8{from=16}", "no option 'from'"),
                          ("prefill-int8{from_tokens=33}", "no call of @small has 33 tokens; T is at most 32")):
        code, _, told = run(capsys, *words, "--pass", call)
        assert code == 2, call
        assert message in told, told
        assert "Traceback" not in told
    assert not (tmp_path / "b").exists()


def test_json_has_the_second_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(SPEC)
    code, out, _ = run(capsys, "compile", str(tmp_path / "small.yaml"), "--seed", "1", "-o", str(tmp_path / "b"),
                       "--target", "torch", "--parity", "off", "--pass", "prefill-int8", "--json")
    assert code == 0
    found = json.loads(out)["prefill"]
    assert (found["from_tokens"], found["weights"]) == (16, 14)
