"""A compile to Core ML that cannot write its weight file, or is killed while it does: nothing is left that loads."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from omnic import cli
from omnic.errors import BundleError
from omnic.runtime.bundle import open_bundle
from omnic.runtime.files import PARTIAL
from omnic.spec import load_spec, scale, to_yaml
from omnic.targets.coreml import package
from omnic.targets.coreml.stored import WeightTable


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "small.yaml"
    path.write_text(to_yaml(scale(load_spec("tiny_moe"))))
    return path


def words(spec: Path, out: Path) -> list[str]:
    return ["compile", str(spec), "--seed", "1", "--target", "coreml", "--parity", "off", "-o", str(out)]


def test_a_weight_file_that_does_not_fit_is_said_and_nothing_stays(spec, tmp_path, monkeypatch, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for what is asked of the disk in advance, too little for the tables of rotations behind the weights.
    monkeypatch.setattr("omnic.runtime.bundle_write.require_space", lambda *_: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        code = cli.main(words(spec, tmp_path / "b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    err = capsys.readouterr().err
    assert "limit on file sizes" in err or "too large" in err or "no space left" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_end_was_lost_is_noticed(tmp_path, monkeypatch):
    file = tmp_path / "weight.bin"
    writer = package.BlobWriter(str(file))
    offsets = [int(writer.write_float_data(np.ones(1000, np.float32))) for _ in range(2)]
    del writer
    package._check_written(file, offsets)
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(OSError, match="Input/output error"):
        package._check_written(file, offsets)


def test_an_interrupt_while_weights_are_written_leaves_nothing(spec, tmp_path, monkeypatch, capsys):
    real, written = WeightTable.write, []

    def write(self: WeightTable, key: str, writer: object) -> int:
        written.append(key)
        if len(written) == 5:
            raise KeyboardInterrupt
        return real(self, key, writer)

    monkeypatch.setattr(WeightTable, "write", write)
    assert cli.main(words(spec, tmp_path / "b")) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_compile_killed_while_it_writes_leaves_nothing_that_loads(spec, tmp_path):
    for moment in range(6):
        out = tmp_path / "b"
        child = subprocess.Popen([sys.executable, "-m", "omnic", *words(spec, out)], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while time.monotonic() < until and child.poll() is None and not list(tmp_path.rglob("weight.bin")):
            time.sleep(0.01)
        time.sleep(0.02 * moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in tmp_path.iterdir():
            if PARTIAL in path.name:
                with pytest.raises(BundleError):
                    open_bundle(path)
            else:
                open_bundle(path, verify=True)
    assert subprocess.run([sys.executable, "-m", "omnic", *words(spec, tmp_path / "b")], check=False,
                          capture_output=True).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
