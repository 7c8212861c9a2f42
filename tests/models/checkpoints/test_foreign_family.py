"""examples/omnic-family-example: found by its entry point, its own tests run, proved as omnic's own families are."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from omnic.errors import InputError
from omnic.models.checkpoints.checkpoint import open_checkpoint
from tests.models.checkpoints.checks import assert_keys_read, assert_logits
from tests.models.checkpoints.conftest import ProofOf
from tests.models.checkpoints.dense import plain
from tests.models.checkpoints.making import Example, write_checkpoint

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "omnic-family-example"
ARCEE = (
    Example("arcee", "biases", plain(attention_bias=True, mlp_bias=True)),
    Example("arcee", "tied, older form", plain(tie_word_embeddings=True), older=True),
)
Installed = Callable[[], None]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that has the package as an installer leaves it: its modules and the entry points of pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    facts = tmp_path / f"omnic_family_example-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"]
    lines = [line for group, entries in groups.items()
             for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "omnic_family_example").symlink_to(EXAMPLE / "omnic_family_example")
    return tmp_path


@pytest.mark.parametrize("example", ARCEE, ids=str)
def test_it_is_what_transformers_computes(
    example: Example, site: Path, monkeypatch: pytest.MonkeyPatch, proof_of: ProofOf
) -> None:
    monkeypatch.syspath_prepend(site)
    proof = proof_of(example)
    assert_keys_read(proof)
    assert_logits(proof, "reference f64")


def test_without_the_package_the_family_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="omnic knows no family 'arcee'"):
        open_checkpoint(write_checkpoint(ARCEE[0], tmp_path))


def test_its_name_stands_among_the_known_ones(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "arce"}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.syspath_prepend(site)
    with pytest.raises(InputError, match=r"omnic knows no family 'arce'; did you mean 'arcee'\?") as caught:
        open_checkpoint(tmp_path)
    assert "arcee" in str(caught.value.hint)


def test_its_own_tests_pass(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=site)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
