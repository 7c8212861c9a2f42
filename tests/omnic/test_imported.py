"""Compiling decoders that other tools exported: from the file itself, and from what import wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from omnic.cli import main
from omnic.models.onnx import import_onnx
from omnic.runtime.bundle import open_bundle
from omnic.targets.torch.session import TorchSession

LLAMA = Path(__file__).parent.parent / "models" / "onnx" / "data" / "genai_llama.onnx"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and what it said on stderr, in one line."""
    code = main(list(arguments))
    return code, " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "llama"
    assert main(["import", str(LLAMA), "-o", str(out), "--capacity", "48", "--chunk", "16"]) == 0
    return out


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_what_import_wrote_becomes_a_bundle_with_parity(target: str, written: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert main(["compile", str(written), "--target", target, "-o", str(out), "--threads", "1"]) == 0
    bundle = open_bundle(out)
    parity = json.loads((out / "parity.json").read_text(encoding="utf-8"))
    assert parity["ok"]
    assert [p.name for p in bundle.manifest.passes] == ["attention-fusion"]
    assert not bundle.from_spec
    assert main(["compile", str(written / "module.ir"), "--target", target, "-o", str(out)]) == 0  # the same one
    assert "Imported module" in (out / "report.html").read_text(encoding="utf-8")


def test_an_exported_file_goes_through_the_passes_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    arguments = ["compile", str(LLAMA), "--target", "torch", "-o", str(out), "--parity", "off"]
    assert main([*arguments, "--pass", "int4-packing{method=rtn, group=32}"]) == 0
    bundle = open_bundle(out)
    assert [p.name for p in bundle.manifest.passes] == ["attention-fusion", "int4-packing"]
    assert any("i4<g32" in str(w.type) for w in bundle.module.weights.values())
    capsys.readouterr()
    code, error = said(capsys, *arguments, "--replace-passes", "--pass", "int4-packing{group=33}")
    assert code == 2
    assert "--pass:1:14: error: option 'group' of pass 'int4-packing' must be one of" in error
    code, error = said(capsys, *arguments, "--why", "cse")
    assert "--why cse: it is not among the passes of this compile (attention-fusion)" in error


def test_what_a_spec_would_have_said_is_refused(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = (str(written), "--target", "torch")
    code, error = said(capsys, "compile", *own, "--seed", "1")
    assert code == 2
    assert error.endswith(f"error: {written}/module.ir has weights of its own leave out --weights, --seed and --lora")
    code, error = said(capsys, "compile", *own, "--budget", "4GB")
    assert code == 2 and "--budget is for specs" in error


def test_folders_that_are_not_whole(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    compiled = ("compile", str(folder), "--target", "torch", "-o", str(tmp_path / "out"))
    (folder / "weights.safetensors").unlink()
    code, error = said(capsys, *compiled)
    assert code == 2
    assert error == (f"error: {folder}/weights.safetensors is not there weights lie beside module.ir, as omnic import "
                     "writes them")
    text = (folder / "module.ir").read_text(encoding="utf-8")
    (folder / "module.ir").write_text(text.replace("= rms_norm(", "= rms_nrm(", 1), encoding="utf-8")
    code, error = said(capsys, *compiled)
    assert code == 2 and "unknown op 'rms_nrm'" in error and "module.ir:" in error
    (folder / "module.ir").write_bytes(b"\xff\xfe")
    code, error = said(capsys, *compiled)
    assert code == 2 and "is not UTF-8 text" in error
    (folder / "module.ir").write_text("module @m {\n  func @other(%x: f32[2]) -> (%y: f32[2]) {\n    return y = %x\n"
                                      "  }\n}\n", encoding="utf-8")
    code, error = said(capsys, *compiled)
    assert code == 2 and "@m has no function @forward with a result 'logits'" in error


def test_a_decoder_without_a_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models.onnx.test_bad_files import decoder, saved

    path = saved(decoder(), tmp_path)
    code, error = said(capsys, "compile", str(path), "--target", "torch", "-o", str(tmp_path / "out"))
    assert code == 2
    assert error.endswith("error: @m has no states: every call would compute all tokens from the first on export it "
                          "with its cache (past_key_values in, present out)")
    assert not (tmp_path / "out").exists()


def test_masks_of_infinities_run_in_torch_as_they_are() -> None:
    """What no pass has touched keeps its masks: infinite ones, and those of the smallest f32."""
    module, weights = import_onnx(LLAMA, 48, chunk=16)
    found = TorchSession.of(module, weights).forward(np.array([[3, 1, 4]])).logits
    assert np.isfinite(found).all()
