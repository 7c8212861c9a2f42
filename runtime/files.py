"""The disk: writing that survives kills, full disks and limits, and says what to do about them.

Everything omnic writes for keeps goes through a :class:`Filesystem`, so that a test can make any
single write fail.  ``disk_errors`` turns the operating system's refusals into :class:`DiskFullError`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import io
import os
import resource
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from omnic.errors import InputError

__all__ = ["DiskFullError", "Filesystem", "HashingWriter", "disk_errors", "human_bytes", "remove_stale",
           "require_space", "sha256_file", "temporary_sibling", "write_atomic"]

PIECE = 1 << 20
PARTIAL = ".partial-"


class DiskFullError(InputError):
    """The disk, a quota or the limit on file sizes refused a write (exit code 2)."""


def human_bytes(count: float) -> str:
    """Return ``count`` bytes as people write them (decimal units)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{int(count)} bytes"


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise :class:`DiskFullError` in place of ENOSPC, EDQUOT and EFBIG while writing ``path``."""
    try:
        yield
    except OSError as error:
        refused = _refusal(error, path)
        if refused is None:
            raise
        raise refused from error


def _refusal(error: OSError, path: str | os.PathLike[str]) -> DiskFullError | None:
    where = os.fsdecode(path)
    if error.errno == errno.ENOSPC:
        return DiskFullError(
            f"{where}: no space left on the disk ({human_bytes(free_bytes(where))} free)",
            "free some space, or write elsewhere with -o; nothing unfinished was left behind",
        )
    if error.errno == errno.EDQUOT:
        return DiskFullError(f"{where}: the disk quota is used up", "free some of it, or write elsewhere with -o")
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        allowed = "" if limit == resource.RLIM_INFINITY else f" of {human_bytes(limit)}"
        return DiskFullError(
            f"{where}: the limit on file sizes{allowed} is reached",
            "raise it (ulimit -f unlimited), or write to a file system that takes larger files with -o",
        )
    return None


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes a user may still write on the file system that holds ``path`` (or its nearest parent)."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def require_space(path: str | os.PathLike[str], need: int, largest_file: int = 0) -> None:
    """Raise when ``need`` bytes cannot be written under ``path``.

    Args:
        path: where the files go; need not exist.
        need: bytes of everything together.
        largest_file: bytes of the largest file, checked against the limit on file sizes.

    Raises:
        DiskFullError: with the figures and what to do.
    """
    free = free_bytes(path)
    if free < need:
        raise DiskFullError(
            f"{os.fsdecode(path)}: {human_bytes(need)} are needed and {human_bytes(free)} are free",
            "free some space, or write elsewhere with -o",
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and largest_file > limit:
        raise DiskFullError(
            f"{os.fsdecode(path)}: a file of {human_bytes(largest_file)} is needed, the limit on file sizes is "
            f"{human_bytes(limit)}",
            "raise it: ulimit -f unlimited",
        )


class Filesystem:
    """The few calls that change the disk; tests replace single ones to inject faults."""

    def open(self, path: Path, mode: str = "wb") -> IO[bytes]:
        """Open a file for binary writing."""
        return cast(IO[bytes], open(path, mode))

    def mkdir(self, path: Path) -> None:
        """Make a folder and its parents."""
        path.mkdir(parents=True, exist_ok=True)

    def sync_file(self, path: Path) -> None:
        """Make the bytes of a file durable."""
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Make the entries of a folder durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing a file or an empty folder."""
        os.replace(source, target)

    def exchange(self, one: Path, other: Path) -> None:
        """Swap two existing folders in one step.

        Raises:
            OSError: this system or file system cannot.
        """
        _exchange(os.fsencode(one), os.fsencode(other))

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and everything in it; nothing if it is gone."""
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: bytes, other: bytes) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    name, arguments = ("renamex_np", (one, other, 2)) if sys.platform == "darwin" else (
        "renameat2", (-100, one, -100, other, 2))  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(library, name, None)
    if call is None:
        raise OSError(errno.ENOSYS, f"{name} is not there")
    if call(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class HashingWriter(io.RawIOBase):
    """A write-only stream over a file that keeps the size and the SHA-256 of what went through."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: object) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of ``data`` (bytes or a contiguous buffer) and return its size."""
        view = memoryview(data).cast("B")  # pyright: ignore[reportArgumentType]
        with disk_errors(self._path):
            self._file.write(view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def digest(self) -> str:
        """Return the SHA-256 so far, in hex."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Flush, make durable, close."""
        if self.closed:
            return
        try:
            with disk_errors(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            super().close()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read a piece at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(path: str | os.PathLike[str], data: bytes, fs: Filesystem | None = None) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        DiskFullError: there is no room; the old file is untouched.
    """
    fs, path = fs or Filesystem(), Path(path)
    temporary = path.with_name(f".{path.name}{PARTIAL}{secrets.token_hex(4)}")
    try:
        with disk_errors(path):
            with fs.open(temporary) as file:
                file.write(data)
            fs.sync_file(temporary)
            fs.rename(temporary, path)
            fs.sync_folder(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def temporary_sibling(out: Path, fs: Filesystem) -> tuple[Path, int]:
    """Make a temporary folder beside ``out`` and lock it.

    Returns:
        The folder, and the descriptor that holds its lock; the lock dies with the process, which is how
        :func:`remove_stale` knows what a killed one left.
    """
    fs.mkdir(out.parent)
    while True:
        folder = out.parent / f".{out.name}{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}"
        os.mkdir(folder)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Between mkdir and the lock another process may have taken it for a leftover.
        if folder.exists() and os.stat(folder).st_ino == os.fstat(handle).st_ino:
            return folder, handle
        os.close(handle)


def remove_stale(out: Path, fs: Filesystem) -> list[Path]:
    """Remove what killed writers of ``out`` left beside it and return the paths."""
    removed: list[Path] = []
    for path in sorted(out.parent.glob(f".{out.name}{PARTIAL}*")):
        if path.is_dir() and _unlocked(path):
            fs.remove_tree(path)
            removed.append(path)
    return removed


def _unlocked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def copy_stream(source: BinaryIO, target: HashingWriter) -> None:
    """Copy everything that is left of ``source``, a piece at a time."""
    while piece := source.read(PIECE):
        target.write(piece)
