"""Compile the kernel library: every level's object, a shared library and a static archive.

What is built is kept in the user's cache folder under a hash of the sources, the compiler and its options, so a second
call costs only the hash.  Wheels carry the library of their platform, and then nothing is compiled.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omnic.errors import InputError
from omnic.runtime.kernels.toolchain import (
    LEVELS,
    VARIANTS,
    Compiler,
    Variant,
    architecture,
    find_compiler,
    host_triple,
    library_name,
)

__all__ = ["INCLUDE", "SOURCES", "Built", "build", "build_executable", "cache_folder"]

ROOM = Path(__file__).resolve().parent
SOURCES = ROOM / "src"
#: the folder of ``omnic_kernels.h``
INCLUDE = ROOM / "include"


@dataclass(frozen=True)
class Built:
    """A built library.

    Attributes:
        folder: where it lies, in the cache.
        shared: the shared library.
        archive: the static archive of the same objects.
        triple: its platform.
    """

    folder: Path
    shared: Path
    archive: Path
    triple: str


def cache_folder() -> Path:
    """Return the folder for built libraries: ``$XDG_CACHE_HOME/omnic/kernels``, or under ``~/.cache``, or the
    system's own place for caches.
    """
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "omnic" / "kernels"


def _objects(triple: str) -> list[tuple[Path, str]]:
    """Return every file that is compiled for a platform, with its level."""
    levels = LEVELS[architecture(triple)]
    common = [path for path in sorted(SOURCES.rglob("*.c")) if path.parent.name != "levels"]
    return [(SOURCES / "levels" / f"{level}.c", level) for level in levels] + [(path, "generic") for path in common]


def _key(compiler: Compiler, triple: str, variant: Variant, extra: Sequence[Path] = ()) -> str:
    """Return a hash of all that the result depends on."""
    digest = hashlib.sha256()
    words = [compiler.kind, *compiler.command, compiler.version, triple, variant]
    for level in LEVELS[architecture(triple)]:
        words += compiler.flags(triple, level, variant)
    digest.update("\0".join([*words, *compiler.link_flags(triple, variant)]).encode())
    found = [path for folder in (INCLUDE, SOURCES) for path in sorted(folder.rglob("*"))]
    sources = [path for path in found if path.suffix in (".c", ".h")]
    for path in [*sources, *extra]:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(compiler: Compiler, triple: str, variant: Variant, folder: Path) -> list[Path]:
    jobs: list[tuple[Path, list[str]]] = []
    for source, level in _objects(triple):
        into = folder / f"{'-'.join(source.relative_to(SOURCES).with_suffix('').parts)}.o"
        jobs.append((into, [*compiler.flags(triple, level, variant), "-c", str(source), "-o", str(into)]))
    # The wider a level, the longer its object takes: the widest goes first, so that no core waits for it at the end.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(compiler.run, [arguments for _, arguments in reversed(jobs)]):
            pass
    return [into for into, _ in jobs]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time build what ``folder`` will hold, so that others find it made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield  # two builders at once only waste time: see _publish
        return
    import fcntl

    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _publish(work: Path, folder: Path) -> None:
    """Move what was built to its place; of two builders at once the first one wins, their results are equal."""
    try:
        work.rename(folder)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        if not folder.is_dir():
            raise


def build(
    triple: str | None = None, variant: Variant = "release", compiler: Compiler | None = None, cache: Path | None = None
) -> Built:
    """Return the library of a platform (default: this machine's), compiling it where the cache has none.

    Raises:
        InputError: there is no such platform or variant, or the compiler cannot do it.
        MissingExtraError: no compiler is installed.
        CompilerError: the compiler failed.
    """
    triple = triple or host_triple()
    architecture(triple)
    if variant not in VARIANTS:
        raise InputError(f"no variant '{variant}' of the kernel library", f"variants: {', '.join(VARIANTS)}")
    compiler = compiler or find_compiler(triple, variant)
    folder = (cache or cache_folder()) / _key(compiler, triple, variant)
    built = Built(folder, folder / library_name(triple), folder / "libomnic_kernels.a", triple)
    if built.shared.is_file() and built.archive.is_file():
        return built
    with _alone(folder):
        if not (built.shared.is_file() and built.archive.is_file()):
            _make(compiler, triple, variant, built)
    return built


def _make(compiler: Compiler, triple: str, variant: Variant, built: Built) -> None:
    folder = built.folder
    work = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    work.mkdir()
    try:
        objects = _compile(compiler, triple, variant, work)
        compiler.archive(work / built.archive.name, objects)
        compiler.run(["-shared", *objects, "-o", work / built.shared.name, *compiler.link_flags(triple, variant)])
        for made in objects:
            made.unlink()
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build_executable(
    sources: Sequence[Path], name: str, triple: str | None = None, variant: Variant = "release", static: bool = False,
    compiler: Compiler | None = None, cache: Path | None = None,
) -> Path:
    """Return a program of C ``sources`` linked with the library's archive, compiling it where the cache has none.

    Raises:
        InputError: there is no such platform or variant, or the compiler cannot do it.
        MissingExtraError: no compiler is installed.
        CompilerError: the compiler failed.
    """
    triple = triple or host_triple()
    compiler = compiler or find_compiler(triple, variant)
    library = build(triple, variant, compiler, cache)
    key = _key(compiler, triple, variant, sources) + ("-static" if static else "")
    program = (cache or cache_folder()) / "programs" / key / (f"{name}.exe" if "windows" in triple else name)
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    work = program.with_name(f"{program.name}.{secrets.token_hex(4)}")
    options = [*compiler.flags(triple, "generic", variant), f"-I{INCLUDE}", *(["-static"] if static else [])]
    try:
        compiler.run([*options, *sources, library.archive, "-o", work, *compiler.link_flags(triple, variant)])
        work.replace(program)
    finally:
        work.unlink(missing_ok=True)
    return program
