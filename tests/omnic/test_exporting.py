"""`omnic export --as hf`: what transformers loads computes what omnic computes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.cli import main
from omnic.compiler.exporting import export_hf
from omnic.compiler.importing import import_checkpoint
from omnic.compiler.pipeline import open_weights
from omnic.errors import InputError
from omnic.ir.reference import ReferenceSession
from omnic.models import build
from omnic.spec import Spec, load_spec, parse_spec

LLAMA = """
model: small
vocab: {size: 131}
context: 96
chunk: 32
norm: {eps: 1.0e-05}
blocks:
  - repeat: 2
    width: 32
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 10, bias: true, rope: {base: 5000}}
    ffn: {kind: dense, hidden: 44, activation: geglu_tanh, bias: true}
"""


def ours(spec: Spec, ids: np.ndarray, seed: int) -> np.ndarray:
    front = build(spec)
    store, _ = open_weights(front, spec, None, seed)
    return np.asarray(ReferenceSession(front, store, batch=len(ids)).forward(ids).logits)


def theirs(folder: Path, ids: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    spec = parse_spec(LLAMA)
    report = export_hf(spec, tmp_path / "hf", seed=7, shard_bytes=30_000)
    assert "model.safetensors.index.json" in report.files
    ids = np.random.default_rng(0).integers(0, 131, (2, 24))
    wanted = ours(spec, ids, 7)
    assert np.abs(theirs(tmp_path / "hf", ids) - wanted).max() < 2e-6 * np.sqrt(np.mean(wanted**2))


def test_what_was_exported_comes_back_the_same(tmp_path: Path) -> None:
    spec = parse_spec(LLAMA)
    export_hf(spec, tmp_path / "hf", seed=7)
    report = import_checkpoint(tmp_path / "hf", tmp_path / "again", name="small")
    again = load_spec(str(report.spec))
    assert report.unread == ()
    store, _ = open_weights(build(again), again, None, None)
    first, _ = open_weights(build(spec), spec, None, 7)
    assert all(np.array_equal(store.array(n), first.array(n)) for n in first.module.weights)


def test_checksums_hold(tmp_path: Path) -> None:
    export_hf(parse_spec(LLAMA), tmp_path / "hf", seed=7)
    lines = (tmp_path / "hf" / "SHA256SUMS").read_text().splitlines()
    listed = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    assert listed.keys() == {"README.md", "config.json", "model.safetensors"}
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "hf" / name).read_bytes()).hexdigest() == digest


def test_the_shipped_model_goes_out_with_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "tiny", "--as", "hf", "-o", str(tmp_path / "hf"), "--without-heads"]) == 0
    assert "tokenizer.json" in capsys.readouterr().out
    config: dict[str, Any] = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["tie_word_embeddings"]) == ("llama", "bfloat16", True)
    assert "bits per byte" in (tmp_path / "hf" / "README.md").read_text()


def test_heads_that_no_family_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "tiny", "--as", "hf", "-o", str(tmp_path / "hf"), "--family", "llama"]) == 2
    error = capsys.readouterr().err
    assert "no published family that omnic writes can express tiny: llama lacks heads.mtp" in error
    assert "--without-heads" in error
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (("bias: true, rope", "bias: true, sinks: true, rope"), "layers[0].attention.sinks true (it would be false)"),
        (("activation: geglu_tanh", "activation: relu2"), "no dense gated network in layer 0"),
    ],
)
def test_what_a_family_cannot_say(tmp_path: Path, change: tuple[str, str], lacks: str) -> None:
    with pytest.raises(InputError) as found:
        export_hf(parse_spec(LLAMA.replace(*change)), tmp_path / "hf", seed=1, family="llama")
    assert lacks in found.value.message


def test_an_unknown_family_and_a_full_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="omnic does not write the family 'lama'"):
        export_hf(parse_spec(LLAMA), tmp_path / "hf", seed=1, family="lama")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        export_hf(parse_spec(LLAMA), tmp_path / "hf", seed=1)
