"""Bundles on disks that fill up, in processes that are killed, under limits: never a part of one that loads."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from omnic.errors import BundleError, InputError
from omnic.runtime.bundle import open_bundle
from omnic.runtime.bundle_write import BundleWriter
from omnic.runtime.files import DiskFullError, Filesystem, require_space, write_atomic


class FullDisk(Filesystem):
    """Fails the n-th thing that needs room: opening, writing, syncing, making a folder, renaming."""

    def __init__(self, allowed: int, code: int = errno.ENOSPC) -> None:
        self.allowed, self.code, self.failed = allowed, code, False

    def step(self) -> None:
        self.allowed -= 1
        if self.allowed < 0:
            self.failed = True
            raise OSError(self.code, os.strerror(self.code))

    def open(self, path: Path, mode: str = "wb") -> IO[bytes]:
        self.step()
        file, step = super().open(path, mode), self.step

        class Watched:
            def __getattr__(self, name: str):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data) -> int:
                step()
                return file.write(data)

        return Watched()  # pyright: ignore[reportReturnType]

    def mkdir(self, path: Path) -> None:
        self.step()
        super().mkdir(path)

    def sync_file(self, path: Path) -> None:
        self.step()
        super().sync_file(path)

    def sync_folder(self, path: Path) -> None:
        self.step()
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        super().rename(source, target)

    def exchange(self, one: Path, other: Path) -> None:
        self.step()
        super().exchange(one, other)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_at_any_write(tmp_path, code, write, leftovers):
    steps = 0
    while True:
        out = tmp_path / f"b{steps}"
        disk = FullDisk(steps, code)
        try:
            write(out, fs=disk)
        except DiskFullError as error:
            assert str(out.name) in error.message and error.hint
            assert error.exit_code == 2
            assert not [name for name in leftovers(tmp_path) if ".partial-" in name]
            # Only a failing sync of the parent folder comes after the rename: then it is all there.
            if out.exists():
                open_bundle(out, verify=True)
        else:
            break
        steps += 1
    assert steps > 15
    assert not disk.failed
    open_bundle(out, verify=True)


def test_a_disk_that_fills_up_while_replacing_leaves_the_old_bundle_or_the_new(tmp_path, write, leftovers):
    steps = 0
    out = tmp_path / "b"
    while True:
        write(out, b"old", force=True)
        disk = FullDisk(steps)
        try:
            write(out, b"new", fs=disk, force=True)
        except DiskFullError:
            assert open_bundle(out, verify=True).file("weights.bin").read_bytes() in (b"old", b"new")
            assert leftovers(tmp_path) == ["b"]
        else:
            break
        steps += 1
    assert open_bundle(out).file("weights.bin").read_bytes() == b"new"


class NoExchange(Filesystem):
    """A file system that cannot swap two folders."""

    def exchange(self, one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, "no")


def test_replacing_without_an_exchange(tmp_path, write, leftovers):
    write(tmp_path / "b", b"old")
    write(tmp_path / "b", b"new", fs=NoExchange(), force=True)
    assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"new"
    assert leftovers(tmp_path) == ["b"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path, write):
    write(tmp_path / "b", b"old")
    (tmp_path / "b").rename(tmp_path / ".b.previous-0000")
    with BundleWriter(tmp_path / "b"):
        assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"old"


def test_the_limit_on_file_sizes(tmp_path, write, leftovers):
    """RLIMIT_FSIZE in a child: the error is typed and nothing is left."""
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from omnic.runtime.bundle_write import BundleWriter
from omnic.runtime.files import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for way in ("stream", "foreign"):
    try:
        with BundleWriter({str(tmp_path / "b")!r}) as writer:
            if way == "stream":
                with writer.stream("w") as file:
                    for _ in range(300):
                        file.write(bytes(1000))
            else:
                writer.path("w").write_bytes(bytes(300_000))
    except DiskFullError as error:
        print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("the limit on file sizes of 100.0 kB is reached") == 2
    assert leftovers(tmp_path) == []


def test_room_is_checked_first(tmp_path, monkeypatch):
    with pytest.raises(DiskFullError, match=r"1000000\.0 GB are needed and .* are free"):
        require_space(tmp_path / "not" / "there", 10**15)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    with pytest.raises(DiskFullError, match=r"a file of 5\.0 kB is needed, the limit on file sizes is 1\.0 kB"):
        require_space(tmp_path, 5000, largest_file=5000)
    require_space(tmp_path, 5000, largest_file=900)


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from omnic.runtime.bundle_write import BundleWriter
from omnic.runtime.manifest import Manifest, SpecText, Executable
manifest = Manifest(omnic="0", model="m", target="t", spec=SpecText(file="f", text=""),
                    executable=Executable(kind="k", entry="w"))
print("ready", flush=True)
with BundleWriter({out!r}, force=True) as writer:
    with writer.stream("w") as file:
        for _ in range(200):
            file.write(bytes(20000))
    writer.commit(manifest)
print("done", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_writer_leaves_nothing_that_loads(tmp_path, existing, write, leftovers):
    """SIGKILL at several moments: the destination is absent, the old bundle, or the new one, never a part."""
    out = tmp_path / "b"
    seen = set()
    for moment in range(6):
        if existing:
            write(out, b"old", force=True)
        code = KILLED.format(path=sys.path, out=str(out))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout and child.stdout.readline() == "ready\n"
        time.sleep(moment * 0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for path in tmp_path.iterdir():
            if path != out:
                with pytest.raises(BundleError):
                    open_bundle(path)
        if out.exists():
            seen.add(open_bundle(out, verify=True).manifest.model)
        else:
            assert not existing
    assert seen <= {"tiny", "m"}
    write(out, force=True)
    assert leftovers(tmp_path) == ["b"], "the next writer removes what the killed ones left"


def test_a_running_writer_is_not_taken_for_a_leftover(tmp_path, write, leftovers, manifest):
    with BundleWriter(tmp_path / "b") as slow:
        slow.data("model.onnx", b"slow")
        write(tmp_path / "b")
        slow.data("module.ir", b"still here")
        with pytest.raises(InputError, match="other content"):
            slow.commit(manifest)
    assert leftovers(tmp_path) == ["b"]


def test_write_atomic(tmp_path, leftovers):
    path = tmp_path / "f"
    write_atomic(path, b"one")
    for steps in range(4):
        with pytest.raises(DiskFullError):
            write_atomic(path, b"two", FullDisk(steps))
        assert path.read_bytes() == b"one"
        assert leftovers(tmp_path) == ["f"]
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
