"""The cache of lowered programs: what took minutes to lower is a copy the next time.

An entry is a folder named by the hash of all that went into the program, with the files of the program and a list of
their sizes and hashes.  It is written beside and renamed, so it appears whole or not at all, whoever writes the same
one at the same time; an entry whose files are not as the list says is dropped and lowered anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CACHE_BYTES", "cache_folder", "keep", "kept"]

#: what the cache may hold; the programs used longest ago go first
CACHE_BYTES = 4 << 30
_SUMS = "sums.json"
#: seconds after which a folder that a writer left is nobody's
_STALE = 24 * 3600


def cache_folder() -> Path:
    """Return the folder of this user's cache where lowered programs are kept (XDG Base Directory, 0.8)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "omnic" / "executorch"


def kept(key: str, folder: Path | None = None, ending: str = "pte") -> Path | None:
    """Return a file of a program lowered before, None when there is none.

    The program itself (``pte``) is read whole, and dropped with its other files when it is damaged.
    """
    entry = (folder or cache_folder()) / key
    path = entry / f"program.{ending}"
    if not path.is_file():
        return None
    if ending == "pte" and not _whole(entry):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)
    return path


def keep(key: str, program: bytes, folder: Path | None = None, beside: Mapping[str, bytes] | None = None) -> None:
    """Keep a program and its other files by their endings; what was used longest ago makes room for it.

    Raises:
        OSError: the folder cannot be written.
    """
    place = folder or cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    files = {f"program.{ending}": data for ending, data in {"pte": program, **(beside or {})}.items()}
    partial = Path(tempfile.mkdtemp(prefix=".", dir=place))
    try:
        for name, data in files.items():
            (partial / name).write_bytes(data)
        sums = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()}
        (partial / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
        try:
            partial.rename(place / key)
        except OSError:
            # There is one: another writer's, which is the same program, or one that is damaged.
            if not _whole(place / key):
                shutil.rmtree(place / key, ignore_errors=True)
                partial.rename(place / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _make_room(place, key)


def _whole(entry: Path) -> bool:
    """Whether every file of an entry is what was written."""
    try:
        sums = json.loads((entry / _SUMS).read_text(encoding="utf-8"))
        for name, (size, digest) in sums.items():
            with (entry / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return True


def _make_room(place: Path, key: str) -> None:
    """Delete what was used longest ago above :data:`CACHE_BYTES`, and what writers left that never came to an end."""
    entries: list[tuple[float, int, Path]] = []
    for path in place.iterdir():
        # Others write and delete at the same time.
        with contextlib.suppress(OSError):
            changed = path.stat().st_mtime
            if path.name.startswith("."):
                if changed < time.time() - _STALE:
                    _delete(path)
                continue
            files = list(path.iterdir()) if path.is_dir() else [path]
            entries.append((changed, sum(f.stat().st_size for f in files), path))
    total = 0
    for _, size, path in sorted(entries, key=lambda e: e[0], reverse=True):
        total += size
        if total > CACHE_BYTES and path.name != key:
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
