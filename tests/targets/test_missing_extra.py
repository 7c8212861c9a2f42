"""A target whose packages are not installed says which extra brings them, in one line, before anything else is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What Python does with a name that is None here is what it does with a package that is not there.
CHILD = """
import sys
sys.modules[sys.argv[1]] = None
from omnic.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("target", "package"),
    [
        ("coreml", "coremltools"),
        ("executorch", "executorch"),
        ("executorch", "torchao"),
        ("onnx", "onnxruntime"),
        ("torch", "torch"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(target: str, package: str, tmp_path: Path) -> None:
    words = ["compile", "tiny", "--target", target, "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", CHILD, package, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"error: the target '{target}' (Python package '{package}') is not available here\n"
        f"  install it: pip install 'omnic[{target}]'\n"
    )
    assert not any(tmp_path.iterdir())
