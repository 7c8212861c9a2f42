"""examples/omnic-pass-example: installed as a user would, found by name, used from a spec, its own tests run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "omnic-pass-example"

SPEC = """omnic: 1
model: small
vocab: {size: 300}
context: 64
chunk: 16
blocks:
  - {width: 32, attention: {kind: mha, heads: 4, head_dim: 8}, ffn: {kind: dense, hidden: 64, activation: swiglu}}
passes:
  - softcap-logits: {cap: CAP}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder on whose path the example is installed, without network and without touching our own."""
    room = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, room / "source")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
             "--disable-pip-version-check", "--target", str(room / "site"), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return room


def run(room: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(room / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment,
                          cwd=room)


def test_its_own_tests_pass(installed: Path) -> None:
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "source/tests")
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_spec_lists_it_with_its_option(installed: Path) -> None:
    (installed / "small.yaml").write_text(SPEC.replace("CAP", "20"))
    shown = run(installed, "-m", "omnic", "compile", "small.yaml", "--target", "torch", "--stop-after",
                "softcap-logits", "--json")
    assert shown.returncode == 0, shown.stderr
    body = json.loads(shown.stdout)
    assert "{softcap = 20.0}" in body["module"]
    assert [(p["name"], p["stage"], p["options"]) for p in body["passes"]] == [
        ("softcap-logits", "lossy", {"cap": 20})
    ]


def test_an_option_out_of_range_is_shown_in_the_spec(installed: Path) -> None:
    (installed / "wrong.yaml").write_text(SPEC.replace("CAP", "0.5"))
    wrong = run(installed, "-m", "omnic", "compile", "wrong.yaml", "--target", "torch")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "wrong.yaml:9:27: error: option 'cap' of pass 'softcap-logits' must be 1..1000, got 0.5",
        "    - softcap-logits: {cap: 0.5}",
        "                            ^^^",
    ]
