"""Bundles: what is written opens, what is damaged is named, and a failed write leaves nothing."""

from __future__ import annotations

import errno
import json
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
from omnic.runtime import bundle as bundles
from omnic.runtime.bundle import open_bundle
from omnic.runtime.bundle_write import BundleWriter, check_destination
from omnic.runtime.files import DiskFullError, Filesystem, require_space, write_atomic
from omnic.runtime.manifest import Executable, Manifest, SpecText, TokenizerEntry, checksum, json_schemas

MANIFEST = Manifest(
    omnic="0.1.0",
    model="tiny",
    target="onnx",
    spec=SpecText(file="tiny.yaml", text="omnic: 1\n"),
    executable=Executable(kind="onnx", entry="model.onnx"),
    tokenizer=TokenizerEntry(files=("tokenizer/tokenizer.json",), vocab=8),
)


def write(out: Path, payload: bytes = b"weights", fs: Filesystem | None = None, **options):
    with BundleWriter(out, fs=fs, **options) as writer:
        writer.data("model.onnx", b"program")
        writer.text("module.ir", "module @tiny {}\n")
        writer.json("tokenizer/tokenizer.json", {"a": 1})
        with writer.stream("weights.bin") as file:
            for at in range(0, len(payload), 3):
                file.write(payload[at : at + 3])
        return writer.commit(MANIFEST)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip(tmp_path):
    written = write(tmp_path / "b")
    opened = open_bundle(tmp_path / "b", verify=True)
    assert opened.manifest.files == written.manifest.files
    assert opened.manifest.model_copy(update={"checksum": ""}) == written.manifest.model_copy(update={"checksum": ""})
    assert sorted(opened.manifest.files) == ["model.onnx", "module.ir", "tokenizer/tokenizer.json", "weights.bin"]
    assert opened.entry.read_bytes() == b"program"
    assert opened.json("tokenizer/tokenizer.json") == {"a": 1}
    assert opened.parity is None
    assert opened.bytes() == sum(p.stat().st_size for p in (tmp_path / "b").rglob("*") if p.is_file()) - (
        tmp_path / "b" / "manifest.json"
    ).stat().st_size
    assert leftovers(tmp_path) == ["b"]
    assert open_bundle(tmp_path / "b" / "manifest.json").path == tmp_path / "b"


def test_files_of_other_writers_are_found_and_hashed(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.path("model.onnx").write_bytes(b"one")
        writer.path("deep/er/file").write_bytes(b"two")
        writer.copy("copied", __file__)
        writer.commit(MANIFEST)
    opened = open_bundle(tmp_path / "b", verify=True)
    assert opened.file("copied").read_bytes() == Path(__file__).read_bytes()
    assert opened.text("deep/er/file") == "two"
    with pytest.raises(BundleError, match="the bundle has no file 'nothing'"):
        opened.file("nothing")


@pytest.mark.parametrize("name", ["model.onnx", "module.ir", "tokenizer/tokenizer.json", "weights.bin"])
def test_a_flipped_byte_is_named(tmp_path, name):
    write(tmp_path / "b")
    path = tmp_path / "b" / name
    for at in range(path.stat().st_size):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError) as caught:
            open_bundle(tmp_path / "b")
        assert caught.value.message == f"{path}: its SHA-256 is not the one in manifest.json; the file is damaged"
        data[at] ^= 1
        path.write_bytes(data)
    open_bundle(tmp_path / "b")


def test_every_flipped_byte_of_the_manifest_is_found(tmp_path):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 4
        if json_equal(data, whole):
            continue  # another white space is no other manifest
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            open_bundle(tmp_path / "b")


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_truncated_or_missing_file_is_named(tmp_path):
    write(tmp_path / "b", b"x" * 100)
    path = tmp_path / "b" / "weights.bin"
    path.write_bytes(b"x" * 99)
    with pytest.raises(BundleError, match=r"weights\.bin: 99 bytes, 100 were written"):
        open_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match=r"the bundle has no file 'weights\.bin'"):
        open_bundle(tmp_path / "b")


def test_large_files_are_hashed_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "HASH_LIMIT", 60)
    write(tmp_path / "b", b"x" * 100)
    (tmp_path / "b" / "weights.bin").write_bytes(b"x" * 99 + b"y")
    open_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"weights\.bin: its SHA-256"):
        open_bundle(tmp_path / "b", verify=True)
    (tmp_path / "b" / "model.onnx").write_bytes(b"Program")
    with pytest.raises(BundleError, match=r"model\.onnx: its SHA-256"):
        open_bundle(tmp_path / "b")


def test_a_newer_schema_says_so(tmp_path):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    body = json.loads(path.read_text())
    body |= {"schema_version": 2, "omnic": "3.0", "new_field": 1}
    path.write_text(json.dumps(body))
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "b")
    assert caught.value.message == f"{path}: schema version 2; this omnic reads up to 1"
    assert "upgrade omnic (the bundle was written by 3.0)" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema_version": "x"}, "schema_version"),
        ({"executable": {"kind": "onnx"}}, "executable.entry"),
        ({"surplus": 1}, "surplus"),
        ({"files": {"../out": {"bytes": 1, "sha256": "0" * 64}}}, "not a path inside the bundle"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "not a path inside the bundle"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, change, message):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    body = json.loads(path.read_text()) | change
    body["checksum"] = checksum(body)
    path.write_text(json.dumps(body))
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b")


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"not a bundle, it has no manifest\.json"):
        open_bundle(tmp_path)
    for text in ("", "[]", "\xff"):
        (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(BundleError, match="the file is damaged"):
            open_bundle(tmp_path)


def test_an_existing_bundle(tmp_path):
    out = tmp_path / "b"
    write(out)
    before = out.stat().st_ino
    write(out)
    assert out.stat().st_ino == before, "the same content is left as it is"
    with pytest.raises(InputError, match=r"holds a bundle of other content \(tiny for onnx\)") as caught:
        write(out, b"other")
    assert caught.value.hint == "replace it with --force, or choose another folder with -o"
    assert open_bundle(out).file("weights.bin").read_bytes() == b"weights"
    write(out, b"other", force=True)
    assert open_bundle(out).file("weights.bin").read_bytes() == b"other"
    assert leftovers(tmp_path) == ["b"]


def test_the_same_inputs_may_replace_without_force(tmp_path):
    write(tmp_path / "b", key="k1")
    write(tmp_path / "b", b"timing differs", key="k1")
    assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"timing differs"
    with pytest.raises(InputError, match="other content"):
        check_destination(tmp_path / "b", key="k2")
    check_destination(tmp_path / "b", key="k2", force=True)


def test_a_damaged_bundle_is_replaced_with_force_only(tmp_path):
    write(tmp_path / "b", key="k")
    (tmp_path / "b" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="holds a bundle that cannot be read"):
        write(tmp_path / "b", key="k")
    write(tmp_path / "b", key="k", force=True)
    open_bundle(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    write(out)  # an empty folder may be used
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(InputError, match="holds files and is no bundle"):
            write(other, force=force)
    assert (other / "thesis.txt").read_text() == "years"
    with pytest.raises(InputError, match="is a file"):
        write(other / "thesis.txt", force=True)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    open_bundle(tmp_path / "real")


def test_leaving_without_commit_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
        raise RuntimeError
    with BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
    assert leftovers(tmp_path) == []


def test_an_unfinished_bundle_opens_for_its_own_parity_only(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
        preview = writer.preview(MANIFEST)
        assert preview.entry.read_bytes() == b"x"
        assert open_bundle(preview.path, unfinished=True).manifest.model == "tiny"
        with pytest.raises(BundleError, match="what an interrupted compile left"):
            open_bundle(preview.path)
        writer.json("parity.json", {"ok": True})
        assert writer.commit(MANIFEST).parity == {"ok": True}


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
def test_a_disk_that_fills_up_at_any_write(tmp_path, code):
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


def test_a_disk_that_fills_up_while_replacing_leaves_the_old_bundle_or_the_new(tmp_path):
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


def test_replacing_without_an_exchange(tmp_path):
    write(tmp_path / "b", b"old")
    write(tmp_path / "b", b"new", fs=NoExchange(), force=True)
    assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"new"
    assert leftovers(tmp_path) == ["b"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    write(tmp_path / "b", b"old")
    (tmp_path / "b").rename(tmp_path / ".b.previous-0000")
    with BundleWriter(tmp_path / "b"):
        assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"old"


def test_the_limit_on_file_sizes(tmp_path):
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
def test_a_killed_writer_leaves_nothing_that_loads(tmp_path, existing):
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


def test_a_running_writer_is_not_taken_for_a_leftover(tmp_path):
    with BundleWriter(tmp_path / "b") as slow:
        slow.data("model.onnx", b"slow")
        write(tmp_path / "b")
        slow.data("module.ir", b"still here")
        with pytest.raises(InputError, match="other content"):
            slow.commit(MANIFEST)
    assert leftovers(tmp_path) == ["b"]


def test_write_atomic(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"one")
    for steps in range(4):
        with pytest.raises(DiskFullError):
            write_atomic(path, b"two", FullDisk(steps))
        assert path.read_bytes() == b"one"
        assert leftovers(tmp_path) == ["f"]
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"


def test_the_committed_schemas_are_the_generated_ones(repository):
    for name, schema in json_schemas().items():
        committed = json.loads((repository / "runtime" / "data" / name).read_text())
        assert committed == schema, "run: python -m omnic.runtime.manifest"


def test_a_manifest_fits_its_schema(tmp_path, repository):
    jsonschema = pytest.importorskip("jsonschema")
    write(tmp_path / "b")
    schema = json.loads((repository / "runtime" / "data" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "b" / "manifest.json").read_text()), schema)
