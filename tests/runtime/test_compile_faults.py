"""`omnic compile` on a disk that fills up at any write, and killed at any moment: never half a bundle that loads."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from omnic import cli
from omnic.errors import BundleError
from omnic.runtime.bundle import open_bundle
from omnic.runtime.files import PARTIAL
from omnic.spec import load_spec, scale, to_yaml

KILLS = 50


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "small.yaml"
    path.write_text(to_yaml(scale(load_spec("tiny_moe"))))
    return path


class Disk:
    """Replaces ``open``: writes below ``folder`` fail from the n-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.real, self.left, self.writes = str(folder), io.open, 10**9, 0
        monkeypatch.setattr(io, "open", self.open)
        monkeypatch.setattr(builtins, "open", self.open)

    def fill_after(self, writes: int) -> None:
        self.left, self.writes = writes, 0

    def step(self) -> None:
        self.writes += 1
        if self.writes > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        stream = self.real(file, mode, *args, **options)
        inside = isinstance(file, str | os.PathLike) and str(Path(file).absolute()).startswith(self.folder)
        if not inside or not set("wax+") & set(mode):
            return stream
        try:
            self.step()
        except OSError:
            stream.close()
            raise
        step, real = self.step, stream.write
        proxy = _Proxy(stream)

        def write(data: Any) -> int:
            step()
            return real(data)

        proxy.write = write
        return proxy


class _Proxy:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.write: Any = stream.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def compiled(spec: Path, target: str, out: Path) -> int:
    return cli.main(["compile", str(spec), "--seed", "1", "--target", target, "--parity", "off", "-o", str(out)])


def leaves_nothing_half(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            open_bundle(path, verify=True)
        else:
            assert PARTIAL in path.name or ".previous" in path.name
            with pytest.raises(BundleError):
                open_bundle(path)


def fill_the_disk(spec: Path, target: str, tmp_path: Path, monkeypatch, capsys, samples: int | None) -> None:
    disk = Disk(monkeypatch, tmp_path)
    assert compiled(spec, target, tmp_path / "whole") == 0
    total = disk.writes
    assert total > 20
    moments = range(total) if samples is None else sorted(random.Random(1).sample(range(total), samples))
    for moment in moments:
        disk.fill_after(moment)
        capsys.readouterr()
        assert compiled(spec, target, tmp_path / "b") == 2, f"write {moment} of {total}"
        err = capsys.readouterr().err
        assert "no space left on the disk" in err and "write elsewhere with -o" in err and "Traceback" not in err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["whole"], f"write {moment} of {total}"


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_disk_that_fills_up_at_some_writes(spec, target, tmp_path, monkeypatch, capsys):
    fill_the_disk(spec, target, tmp_path, monkeypatch, capsys, 2)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_disk_that_fills_up_at_every_write(spec, target, tmp_path, monkeypatch, capsys):
    fill_the_disk(spec, target, tmp_path, monkeypatch, capsys, None)


def start(spec: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["compile", spec, "--seed", "1", "--target", "onnx", "--parity", "off", "--force", "-o", out]
    return subprocess.Popen(
        [sys.executable, "-m", "omnic", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_compile_killed_at_random_moments(spec, tmp_path):
    began = time.monotonic()
    assert start(spec, tmp_path / "whole").wait() == 0
    length = time.monotonic() - began
    moments = random.Random(2)
    finished = 0
    for number in range(KILLS):
        out = tmp_path / f"b{number % 5}"  # most kills hit a destination that an earlier one left
        child = start(spec, out)
        time.sleep(moments.uniform(0.3, 1.1) * length)
        child.send_signal(signal.SIGKILL)
        finished += child.wait() == 0
        leaves_nothing_half(tmp_path)
    assert finished < KILLS
    for number in range(5):
        assert start(spec, tmp_path / f"b{number}").wait() == 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
