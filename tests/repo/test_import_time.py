"""`import omnic` and `omnic --help` stay cheap: neither torch nor a backend, at most 0.4 s."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "onnx", "onnxruntime", "onnx_ir", "numpy", "pydantic", "transformers", "tokenizers", "coremltools",
    "executorch", "tvm", "torch_mlir", "rich", "lark",
)  # fmt: skip
LIMIT_S = 0.4


def python(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "statement",
    ["import omnic", "import omnic.cli; omnic.cli.main(['--help'])", "import omnic.cli; omnic.cli.main(['chek'])"],
)
def test_nothing_heavy_is_imported(repository: Path, statement: str) -> None:
    code = f"{statement}\nimport sys\nsys.stdout.flush()\nprint('loaded:', [n for n in {HEAVY!r} if n in sys.modules])"
    done = python(repository, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("arguments", [("-c", "import omnic"), ("-m", "omnic", "--help")])
def test_starts_within_the_limit(repository: Path, arguments: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(repository, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # CPU time, so that a busy machine does not count against the code.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime <= LIMIT_S
