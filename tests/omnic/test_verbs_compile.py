"""`omnic compile`, `report` and `diff` through the command line, with right and wrong inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnic import cli
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec

SPEC = """omnic: 1
model: small
vocab: {size: 300}
context: 64
chunk: 16
blocks:
  - repeat: 2
    width: 32
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 8, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Return a folder with a spec and two bundles: ``good`` for torch, ``altered`` in one weight for onnx."""
    room = tmp_path_factory.mktemp("room")
    (room / "small.yaml").write_text(SPEC)
    module = build(load_spec(str(room / "small.yaml")))
    store = WeightStore.random(module, 1)
    weights = {name: np.array(store.array(name), np.float32) for name in module.weights}
    save_file(weights, room / "good.safetensors")
    weights["blocks.1.ffn.up"][5, 5] += 1
    save_file(weights, room / "altered.safetensors")
    for name, target in (("good", "torch"), ("altered", "onnx")):
        words = ("--weights", room / f"{name}.safetensors", "--target", target, "-o", room / name, "--parity", "off")
        assert cli.main(["compile", str(room / "small.yaml"), *map(str, words)]) == 0
    return room


def omnic(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize(("context", "chunk"), [(2, 2), (64, 1), (64, 64)])
def test_short_contexts_and_chunks_compile(tmp_path, capsys, target, context, chunk):
    sizes = SPEC.replace("context: 64", f"context: {context}").replace("chunk: 16", f"chunk: {chunk}")
    (tmp_path / "short.yaml").write_text(sizes)
    words = ("--seed", 1, "--target", target, "-o", tmp_path / "b", "--json")
    code, out, _ = omnic(capsys, "compile", tmp_path / "short.yaml", *words)
    assert code == 0 and json.loads(out)["parity_ok"] is True


def test_plain_progress_names_each_step_once(room, tmp_path, capsys):
    out = tmp_path / "b"
    code, _, err = omnic(
        capsys, "compile", room / "small.yaml", "--seed", 1, "--target", "torch", "--parity", "off", "-o", out
    )
    steps = [line.split(": ", 1)[1].rstrip(" 0123456789%") for line in err.splitlines()]
    assert code == 0 and len(set(steps)) == len(steps) and "write weights" in steps


@pytest.mark.parametrize(
    "words, message",
    [
        (("--target", "torhc"), "did you mean 'torch'?"),
        (("--target", "torch", "--budget", "1kB"), "more than the --budget of 1.0 kB"),
        (("--target", "torch", "--budget", "lots"), "budget.memory must be a number of bytes"),
        (("--target", "torch", "--pass", "specialise-train"), "after the passes specialise-train, @forward has no"),
        (("--target", "torch", "--pass", "nope"), "unknown pass 'nope'"),
        (("--target", "onnx", "--option", "profil=plain"), "did you mean 'profile'?"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_leaves_nothing(room, tmp_path, capsys, words, message):
    out = tmp_path / "b"
    code, _, err = omnic(capsys, "compile", room / "small.yaml", "--seed", 1, "-o", out, "--parity", "off", *words)
    assert code == 2 and message in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w["embed"].__setitem__((3, 3), np.nan), "tensor 'embed' of w.safetensors holds nan at [3, 3]"),
        (lambda w: w.__setitem__("embed", w["embed"][1:].copy()), "embed is [299, 32], want [300, 32]"),
        (lambda w: w.pop("final_norm"), "1 missing: final_norm"),
    ],
)
def test_damaged_weights_are_named(room, tmp_path, capsys, monkeypatch, change, message):
    weights = load_file(room / "good.safetensors")
    change(weights)
    monkeypatch.chdir(tmp_path)
    save_file(weights, "w.safetensors")
    words = ("--weights", "w.safetensors", "--target", "torch", "-o", "b", "--parity", "off")
    code, _, err = omnic(capsys, "compile", room / "small.yaml", *words)
    assert code == 2 and message in err and [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_destination_below_a_file_is_refused(room, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code, _, err = omnic(
        capsys, "compile", room / "small.yaml", "--seed", 1, "--target", "torch", "-o", tmp_path / "file" / "b"
    )
    assert code == 2 and f"{tmp_path / 'file'} is a file, no folder can be made in it" in err


def test_diff_names_the_op_of_an_altered_weight(room, capsys):
    code, out, _ = omnic(capsys, "diff", room / "good", room / "altered", "--json")
    body = json.loads(out)
    assert code == 1 and body["first"]["op"] == "linear" and body["first"]["scope"] == "blocks.1.ffn"
    assert omnic(capsys, "diff", room / "good", room / "good")[0] == 0
    assert omnic(capsys, "diff", "reference", room / "altered")[0] == 0
    assert omnic(capsys, "diff", "reference", "reference")[0] == 2


def test_report_refuses_places_it_cannot_write(room, tmp_path, capsys):
    page = tmp_path / "r.html"
    assert omnic(capsys, "report", room / "good", "-o", page)[:2] == (0, f"{page}\n")
    assert "exists" in omnic(capsys, "report", room / "good", "-o", page)[2]
    assert "there is no folder" in omnic(capsys, "report", room / "good", "-o", tmp_path / "no" / "r.html")[2]
    code, _, err = omnic(capsys, "report", room / "good", "-o", tmp_path, "--force")
    assert code == 2 and "is a folder, the report is a file" in err
    assert omnic(capsys, "report", tmp_path)[0] == 2


def test_a_closed_standard_input_is_an_empty_one(room):
    words = [sys.executable, "-m", "omnic", "run", str(room / "good"), "--prompt-file", "-"]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2 and "internal error" not in done.stderr and done.stderr.startswith("error: ")
