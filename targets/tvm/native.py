"""From the C of a program to something that runs: a shared library for sessions, or an executable.

Built libraries of parts are kept in the user's cache folder under a hash of the C and of the kernel library.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omnic.errors import InputError, MissingExtraError
from omnic.runtime.kernels.build import INCLUDE, SOURCES, Built, build, cache_folder
from omnic.runtime.kernels.toolchain import LEVELS, architecture, find_compiler, host_triple
from omnic.targets.tvm.tail.loops import Loop

__all__ = ["SUPPORT", "build_program", "cached_program", "executable_name", "loops_text", "program_name",
           "write_sources"]

SUPPORT = Path(__file__).resolve().parent / "support"
_RUN = ("program_run.c", "program_ops.c")


def program_name(triple: str | None = None) -> str:
    """Return the file name of a program that sessions load."""
    triple = triple or host_triple()
    return "program.dll" if "windows" in triple else "program.dylib" if "macos" in triple else "program.so"


def executable_name(model: str, triple: str) -> str:
    """Return the file name of an executable."""
    return f"{model}-{triple}{'.exe' if 'windows' in triple else ''}"


def build_program(
    source: Path, out: Path, triple: str | None = None, executable: bool = False, loops: Sequence[Loop] = (),
    level: str = "best",
) -> Built:
    """Compile ``source`` (``program.c``) and link it with the kernel library into ``out``.

    Args:
        source: the program's C.
        out: the library, or the executable (linked statically where the platform allows it).
        triple: the platform; this machine's when None.
        executable: with our ``main``.
        loops: generated loops that it calls, made objects by TVM.
        level: the only one that is linked beside generic; ``best``: every level of the platform.

    Raises:
        MissingExtraError: there is no compiler for the platform.
        CompilerError: the compiler failed.
    """
    triple = triple or host_triple()
    without = _without(level, triple)
    compiler = find_compiler(triple)
    kernels = build(triple, compiler=compiler)
    files = [source, *(SUPPORT / name for name in _RUN)]
    options: list[str] = [] if executable else ["-shared"]
    if executable:
        files.append(SUPPORT / "main.c")
        options += ["-DOMNIC_EXECUTABLE"]
        options += ["-static"] if "macos" not in triple else []
        options += ["-s"] if "macos" not in triple else []
    with tempfile.TemporaryDirectory() as folder:
        if without:
            files.append(Path(folder) / "levels.c")
            files[-1].write_text(without, encoding="utf-8")
        if loops:
            files.append(loops_object(loops, triple, Path(folder) / "loops.o"))
        compiler.run(
            [*compiler.flags(triple, "generic", "release"), f"-I{INCLUDE}", f"-I{SUPPORT}", *options, *files,
             kernels.archive, "-o", out, *compiler.link_flags(triple, "release")]
        )
    return kernels


def _without(level: str, triple: str) -> str:
    """Return empty tables in the place of all levels but one and generic: those of the archive are then not linked.

    Raises:
        InputError: the platform has no such level.
    """
    known = LEVELS[architecture(triple)]
    if level == "best":
        return ""
    if level not in known:
        raise InputError(f"{triple} has no level '{level}'", f"it has: {', '.join(known)}")
    lines = ['#include "omnic_kernels.h"']
    lines += [
        f"extern const omnic_ops omnic_ops_{name};\nconst omnic_ops omnic_ops_{name} = {{.level = -1}};"
        for name in known
        if name not in (level, "generic")
    ]
    return "\n".join(lines) + "\n"


def loops_object(loops: Sequence[Loop], triple: str, out: Path) -> Path:
    """Make an object of generated loops.

    Raises:
        MissingExtraError: TVM is not installed.
    """
    try:
        from omnic.targets.tvm.tail.build import object_file
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"loops for {len(loops)} ops without a kernel (Python package '{error.name}')",
                                "tvm") from error
    object_file(loops, triple, out)
    return out


def loops_text(loops: Sequence[Loop]) -> str:
    """Return C of generated loops.

    Raises:
        MissingExtraError: TVM is not installed.
    """
    try:
        from omnic.targets.tvm.tail.build import c_text
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"loops for {len(loops)} ops without a kernel (Python package '{error.name}')",
                                "tvm") from error
    return c_text(loops)


def cached_program(source: Path, loops: Sequence[Loop] = ()) -> Path:
    """Return the compiled library of ``source`` for this machine, built where the cache has none."""
    triple = host_triple()
    digest = hashlib.sha256(source.read_bytes() + repr([(loop.root, loop.output.shape) for loop in loops]).encode())
    for path in (*(SUPPORT / name for name in (*_RUN, "omnic_program.h")),):
        digest.update(path.read_bytes())
    digest.update(build(triple).folder.name.encode())
    out = cache_folder().parent / "programs" / f"{digest.hexdigest()[:24]}-{program_name(triple)}"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        work = out.with_name(f"{secrets.token_hex(4)}-{out.name}")
        try:
            build_program(source, work, loops=loops)
            os.replace(work, out)
        finally:
            work.unlink(missing_ok=True)
    return out


def write_sources(folder: Path) -> None:
    """Write what ``program.c`` is compiled with into ``folder``: our C, the kernels, a Makefile."""
    shutil.copytree(SOURCES, folder / "kernels" / "src")
    shutil.copytree(INCLUDE, folder / "kernels" / "include")
    (folder / "support").mkdir()
    for path in sorted(SUPPORT.iterdir()):
        if path.suffix in (".c", ".h"):
            shutil.copy(path, folder / "support" / path.name)
    shutil.copy(SUPPORT / "Makefile.txt", folder / "Makefile")
