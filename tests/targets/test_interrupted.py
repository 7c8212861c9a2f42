"""A compile that is killed or interrupted while a program is emitted leaves nothing that loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnic.errors import BundleError
from omnic.runtime.bundle import open_bundle
from omnic.runtime.files import PARTIAL
from omnic.spec import load_spec, scale, to_yaml

# The process sends itself the signal when the emitter tells of its progress for the n-th time.
CHILD = """
import os, sys
from dataclasses import replace
from omnic.cli import main
from omnic.targets import get_target

name, moment, number, *words = sys.argv[1:]
target, calls = get_target(name), []
emit = type(target).emit

def interrupted(self, request):
    def progress(what, share):
        calls.append(what)
        if len(calls) == int(moment):
            os.kill(os.getpid(), int(number))
        request.progress(what, share)
    return emit(self, replace(request, progress=progress))

type(target).emit = interrupted
sys.exit(main(words))
"""
CASES = [("coreml", 3, signal.SIGKILL), ("executorch", 2, signal.SIGINT)]
MORE = [(target, moment, number) for target in ("coreml", "executorch", "onnx", "torch") for moment in (1, 2)
        for number in (signal.SIGKILL, signal.SIGINT)]


@pytest.mark.parametrize(
    ("target", "moment", "number"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE if case not in CASES)],
)
def test_an_interrupted_emission_leaves_nothing_that_loads(
    target: str, moment: int, number: signal.Signals, tmp_path: Path
) -> None:
    spec, folder = tmp_path / "small.yaml", tmp_path / "out"
    folder.mkdir()
    spec.write_text(to_yaml(scale(load_spec("tiny"))))
    words = ["compile", str(spec), "--seed", "1", "--target", target, "--parity", "off", "-o", str(folder / "b")]
    # A cache of its own: what was lowered before is not emitted again.
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CHILD, target, str(moment), str(int(number)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    left = list(folder.iterdir())
    if number == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL
        assert all(path.name.startswith(".") and PARTIAL in path.name for path in left)
    else:
        assert done.returncode == 130 and "Traceback" not in done.stderr
        assert not left
    for path in left:
        with pytest.raises(BundleError):
            open_bundle(path)
