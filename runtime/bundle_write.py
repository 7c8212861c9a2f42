"""Writing a bundle: all of it appears at once, or nothing does.

The files go to a locked temporary folder beside the destination; ``commit`` hashes them, makes them
durable, writes the manifest last and renames the folder into place.  A process that is killed leaves
only a temporary folder, which ``open_bundle`` refuses and the next writer removes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from omnic.errors import BundleError, InputError, InternalError
from omnic.runtime.bundle import MANIFEST, Bundle, open_bundle, read_manifest
from omnic.runtime.files import (
    Filesystem,
    HashingWriter,
    copy_stream,
    disk_errors,
    remove_stale,
    require_space,
    sha256_file,
    temporary_sibling,
)
from omnic.runtime.manifest import FileEntry, Manifest

__all__ = ["BundleWriter", "check_destination"]

# The folder that a replaced bundle has for a moment where folders cannot be swapped in one step.
PREVIOUS = ".previous"


def check_destination(out: str | Path, force: bool = False, key: str = "") -> None:
    """Refuse a destination that holds something else, before any work is done.

    A bundle with the same ``key`` (made from the same inputs) may be replaced; another one needs ``force``;
    a folder that is no bundle is never replaced.

    Raises:
        InputError: saying what is there.
    """
    out = Path(out)
    if out.is_symlink() and not out.exists():
        raise InputError(f"{out}: a link to nothing", "remove it, or choose another folder with -o")
    if not out.exists():
        check_parent(out)
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file, a bundle is a folder", "choose another folder with -o")
    if not any(out.iterdir()):
        check_parent(out)
        return
    if not (out / MANIFEST).is_file():
        raise InputError(
            f"{out}: holds files and is no bundle; omnic does not replace it", "choose another folder with -o"
        )
    if force or not key:
        return
    try:
        there = read_manifest(out / MANIFEST)
    except BundleError as error:
        unreadable = f"{out}: holds a bundle that cannot be read: {error.message}"
        raise InputError(unreadable, "replace it with --force") from error
    if there.key != key:
        raise InputError(
            f"{out}: holds a bundle of other content ({there.model} for {there.target})",
            "replace it with --force, or choose another folder with -o",
        )


def check_parent(out: Path) -> None:
    """Refuse a destination below a file, or where no folder can be made.

    Raises:
        InputError: naming the nearest path there is.
    """
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir():
        raise InputError(f"{out}: {above} is a file, no folder can be made in it", "choose another folder with -o")
    # Permissions do not say it all: root may write everywhere, but not every file system takes folders.
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.", dir=above))
    except PermissionError as error:
        raise InputError(
            f"{out}: {above} cannot be written", "change the permissions, or choose another folder with -o"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # said when the bundle is written, with the space there is
        raise InputError(
            f"{out}: no folder can be made in {above}: {error.strerror}", "choose another folder with -o"
        ) from error


class BundleWriter:
    """Writes one bundle; use it in a ``with`` and call :meth:`commit` last.

    Example::

        with BundleWriter("build/tiny-onnx", key=key) as writer:
            writer.require(500_000_000)
            onnx_ir.save(model, writer.path("model.onnx"))
            writer.text("module.ir", print_module(module))
            with writer.stream("weights.bin") as file:
                file.write(array)
            bundle = writer.commit(manifest)

    Args:
        out: the destination folder.
        force: replace a bundle of other content.
        key: hash of everything that goes into the compile; a bundle of the same key is replaced without force.
        fs: how the disk is written.

    Raises:
        InputError: the destination holds something else.
        DiskFullError: also for an ENOSPC, EDQUOT or EFBIG that anything raises inside the ``with``.
    """

    def __init__(
        self, out: str | Path, force: bool = False, key: str = "", fs: Filesystem | None = None
    ) -> None:
        self.out = Path(out).absolute() if not Path(out).is_symlink() else Path(out).resolve()
        self.force, self.key, self.fs = force, key, fs or Filesystem()
        self._folder: Path | None = None
        self._lock = -1
        self._entries: dict[str, FileEntry] = {}
        self._disk = disk_errors(self.out)

    @property
    def folder(self) -> Path:
        """The temporary folder."""
        if self._folder is None:
            raise InternalError("a bundle writer was used outside its with block")
        return self._folder

    def __enter__(self) -> BundleWriter:
        self._restore_previous()
        check_destination(self.out, self.force, self.key)
        with disk_errors(self.out):
            remove_stale(self.out, self.fs)
            self._folder, self._lock = temporary_sibling(self.out, self.fs)
        self._disk.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self.fs.remove_tree(self._folder)
            self._folder = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._disk.__exit__(kind, error, trace)

    def require(self, need: int, largest_file: int = 0) -> None:
        """Raise :class:`DiskFullError` now if ``need`` more bytes will not fit."""
        require_space(self.out, need, largest_file)

    def path(self, name: str) -> Path:
        """Return the path to write file ``name`` to; its folder exists."""
        path = self.folder / name
        self._entries.pop(name, None)
        if path.parent != self.folder:
            self.fs.mkdir(path.parent)
        return path

    @contextmanager
    def stream(self, name: str) -> Iterator[HashingWriter]:
        """Open file ``name`` for streaming; it is hashed on the way."""
        path = self.path(name)
        with disk_errors(path):
            file = self.fs.open(path)
        with HashingWriter(file, path) as writer:
            yield writer
        self._entries[name] = FileEntry(bytes=writer.size, sha256=writer.digest())

    def data(self, name: str, data: bytes) -> None:
        """Write file ``name``."""
        with self.stream(name) as file:
            file.write(data)

    def text(self, name: str, text: str) -> None:
        """Write file ``name`` in UTF-8."""
        self.data(name, text.encode())

    def json(self, name: str, value: Any) -> None:
        """Write file ``name`` as JSON for people and programs."""
        self.text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def copy(self, name: str, source: str | Path) -> None:
        """Copy a file into the bundle."""
        with open(source, "rb") as file, self.stream(name) as out:
            copy_stream(file, out)

    def preview(self, manifest: Manifest) -> Bundle:
        """Return the unfinished bundle, so that its own saved bytes can be run before it is committed.

        A child process opens it with ``open_bundle(bundle.path, unfinished=True)``.
        """
        self._write_manifest(manifest)
        return open_bundle(self.folder, unfinished=True)

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash every file, make it durable, and put the bundle in its place.

        Args:
            manifest: complete but for ``files``, ``key`` and ``checksum``, which are filled in here.

        Returns:
            The bundle.  An existing one of the same content is left as it is.

        Raises:
            InputError: the destination meanwhile holds a bundle of other content and ``force`` is off.
        """
        files = {name: self._entry(name) for name in self._names()}
        finished = manifest.model_copy(update={"files": files, "key": self.key})
        if not self.force:
            there = self._existing()
            if there and _same(there, finished):
                return open_bundle(self.out)
            check_destination(self.out, key=self.key or "(no key)")
        self._write_manifest(finished)
        self.fs.sync_folder(self.folder)
        self._into_place()
        return Bundle(self.out, finished)

    def _names(self) -> list[str]:
        found = (p for p in self.folder.rglob("*") if p.is_file())
        return sorted(name for p in found if (name := p.relative_to(self.folder).as_posix()) != MANIFEST)

    def _entry(self, name: str) -> FileEntry:
        path = self.folder / name
        if name in self._entries:
            return self._entries[name]
        self.fs.sync_file(path)
        return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))

    def _existing(self) -> Manifest | None:
        if not (self.out / MANIFEST).is_file():
            return None
        try:
            return open_bundle(self.out).manifest
        except BundleError:  # a damaged bundle equals nothing; check_destination reports it
            return None

    def _write_manifest(self, manifest: Manifest) -> None:
        text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
        path = self.folder / MANIFEST
        with disk_errors(path):
            with self.fs.open(path) as file:
                file.write(text.encode())
            self.fs.sync_file(path)

    def _into_place(self) -> None:
        folder, out = self.folder, self.out
        if out.exists() and any(out.iterdir()):
            self._replace(folder, out)
        else:
            self.fs.rename(folder, out)
            self._folder = None
        self.fs.sync_folder(out.parent)

    def _replace(self, folder: Path, out: Path) -> None:
        try:
            self.fs.exchange(folder, out)
            return  # the old bundle now has the temporary name and __exit__ removes it
        except OSError:  # not every system and file system can swap
            previous = out.with_name(f".{out.name}{PREVIOUS}-{secrets.token_hex(4)}")
        self.fs.rename(out, previous)
        try:
            self.fs.rename(folder, out)
        except OSError:
            self.fs.rename(previous, out)
            raise
        self._folder = None
        self.fs.remove_tree(previous)

    def _restore_previous(self) -> None:
        """Put back a bundle whose replacement was killed between two renames."""
        for previous in sorted(self.out.parent.glob(f".{self.out.name}{PREVIOUS}-*")):
            if self.out.exists():
                self.fs.remove_tree(previous)
            else:
                self.fs.rename(previous, self.out)


def _same(there: Manifest, ours: Manifest) -> bool:
    """Return whether two manifests describe the same content."""
    return there.model_copy(update={"checksum": ""}) == ours.model_copy(update={"checksum": ""})
