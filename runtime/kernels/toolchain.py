"""C compilers for the kernel library: which there is, what it is told for each level, where it cannot do a thing.

Two kinds: ``ziglang`` (the package of the extra ``native-build``), which compiles for every platform, and the system's
``cc`` (gcc or clang), which compiles for its own; a cross compiler of the system (Debian's ``aarch64-linux-gnu-gcc``)
is one more of the second kind.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omnic.errors import InputError, MissingExtraError, OmnicError, nearest

__all__ = ["LEVELS", "TRIPLES", "VARIANTS", "Compiler", "CompilerError", "Variant", "architecture", "find_compiler",
           "host_triple", "library_name"]

#: platforms a library is built for, and the target ziglang compiles for; Linux' glibc is one every machine has
TRIPLES = {
    "x86_64-linux-gnu": "x86_64-linux-gnu.2.17",
    "x86_64-linux-musl": "x86_64-linux-musl",
    "x86_64-windows-gnu": "x86_64-windows-gnu",
    "x86_64-macos": "x86_64-macos",
    "aarch64-linux-gnu": "aarch64-linux-gnu.2.17",
    "aarch64-linux-musl": "aarch64-linux-musl",
    "aarch64-windows-gnu": "aarch64-windows-gnu",
    "aarch64-macos": "aarch64-macos",
}

Variant = Literal["release", "sanitised", "emulated", "emulated-sanitised"]
#: release; with the sanitisers of addresses and undefined behaviour; with every x86 level on intrinsics in plain C
VARIANTS: tuple[Variant, ...] = ("release", "sanitised", "emulated", "emulated-sanitised")

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
#: level -> what the instruction set adds to the architecture's baseline, by architecture
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "generic": (),
        "avx2": _AVX2,
        "avxvnni": (*_AVX2, "avxvnni"),
        "avx512": _AVX512,
        "amx": (*_AVX512, "amx-tile", "amx-int8", "amx-bf16"),
    },
    "aarch64": {"generic": (), "neon": (), "dotprod": ("dotprod",), "i8mm": ("dotprod", "i8mm")},
}

# Sums and products stay as they are written: no contraction, no reordering, in every level.
_COMMON = ("-std=gnu11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
           "-fno-trapping-math", "-Wall", "-Wextra")
_SANITISED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")


class CompilerError(OmnicError):
    """The compiler refused sources of ours (exit code 4): its messages are in the text."""

    exit_code = 4


@dataclass(frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        kind: ``zig`` or ``system``.
        command: the words that start it.
        version: what it says of itself; part of the cache's key.
        triple: the only platform that a compiler of the system compiles for; None: this machine's.
    """

    kind: Literal["zig", "system"]
    command: tuple[str, ...]
    version: str
    triple: str | None = None

    def flags(self, triple: str, level: str, variant: Variant) -> list[str]:
        """Return the options that compile a file of ``level`` for ``triple``.

        Raises:
            InputError: this compiler cannot do that platform or variant.
        """
        arch = architecture(triple)
        features = LEVELS[arch][level]
        emulated = variant.startswith("emulated")
        if emulated and arch != "x86_64":
            raise InputError(f"the variant {variant} is of x86-64 levels, and the platform is {triple}")
        if emulated and level != "generic":
            features = _AVX2
        options = [*_COMMON, *self._machine(triple, arch, features)]
        if emulated:
            options = ["-O1" if option == "-O3" else option for option in options]
            options += ["-DOMNIC_EMULATED=1", "-Wno-psabi"]
        if variant.endswith("sanitised"):
            if self.kind == "zig":
                raise InputError("ziglang brings no address sanitiser", "build this variant with the system compiler")
            options = ["-O1" if option == "-O3" else option for option in options] + list(_SANITISED)
        elif self.kind == "zig":
            options += ["-fno-sanitize=all"]
        elif "clang" not in self.version:
            # gcc would copy each loop over rows for every question that does not change in it (has it a bias, a
            # residual, one scale a row): half more code and compile time, and no faster.
            options += ["-fno-unswitch-loops"]
        return options

    def _machine(self, triple: str, arch: str, features: tuple[str, ...]) -> list[str]:
        if self.kind == "zig":
            names = "".join(f"+{feature.replace('-', '_')}" for feature in features)
            return ["-target", TRIPLES[triple], f"-mcpu={'x86_64' if arch == 'x86_64' else 'generic'}{names}"]
        if triple != (own := self.triple or host_triple()):
            raise InputError(f"the system compiler does not compile for {triple}, only for {own}",
                             "install ziglang, which compiles for every platform: pip install 'omnic[native-build]'")
        if arch == "x86_64":
            return ["-march=x86-64", *(f"-m{feature}" for feature in features)]
        return ["-march=armv8.2-a" + "".join(f"+{feature}" for feature in features) if features else "-march=armv8-a"]

    def link_flags(self, triple: str, variant: Variant) -> list[str]:
        """Return the options that link for ``triple``."""
        options = ["-target", TRIPLES[triple]] if self.kind == "zig" else []
        if variant.endswith("sanitised"):
            options += ["-fsanitize=address,undefined"]
        elif self.kind == "zig":
            options += ["-fno-sanitize=all"]
        return [*options, *([] if "windows" in triple else ["-lm", "-lpthread"])]

    def run(self, arguments: Sequence[str | Path]) -> None:
        """Run the compiler.

        Raises:
            CompilerError: it failed.
        """
        command = [*self.command, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise CompilerError(f"the C compiler failed ({done.returncode}): {' '.join(command)}\n{said}")

    def archive(self, into: Path, objects: Sequence[Path]) -> None:
        """Make a static archive.

        Raises:
            CompilerError: it failed.
            MissingExtraError: the system has no ``ar``.
        """
        if self.kind == "zig":
            command = [*self.command[:-1], "ar"]
        elif (ar := shutil.which("ar" if self.triple is None else f"{self.triple}-ar")) is not None:
            command = [ar]
        else:
            raise MissingExtraError("the archiver ar", "native-build")
        done = subprocess.run([*command, "rcs", str(into), *map(str, objects)], capture_output=True, text=True,
                              check=False)
        if done.returncode:
            raise CompilerError(f"the archiver failed ({done.returncode}): {done.stderr.strip()}")


def architecture(triple: str) -> str:
    """Return the architecture of a platform.

    Raises:
        InputError: there is no such platform.
    """
    if triple not in TRIPLES:
        near = nearest(triple, tuple(TRIPLES))
        raise InputError(f"no platform '{triple}'" + (f"; did you mean {near}?" if near else ""),
                         f"platforms: {', '.join(TRIPLES)}")
    return triple.partition("-")[0]


def host_triple() -> str:
    """Return the platform Python runs on.

    Raises:
        InputError: the kernel library does not know it.
    """
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    system = {"linux": "linux-gnu", "darwin": "macos", "win32": "windows-gnu"}.get(sys.platform, sys.platform)
    if system == "linux-gnu" and not platform.libc_ver()[0]:
        system = "linux-musl"
    triple = f"{arch}-{system}"
    if triple not in TRIPLES:
        raise InputError(f"the kernel library does not run on {machine} under {sys.platform}",
                         f"platforms: {', '.join(TRIPLES)}")
    return triple


def library_name(triple: str) -> str:
    """Return the file name of the shared library of a platform."""
    if "windows" in triple:
        return "omnic_kernels.dll"
    return "libomnic_kernels.dylib" if "macos" in triple else "libomnic_kernels.so"


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else ""


def _zig() -> Compiler | None:
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        return None
    program = Path(found.submodule_search_locations[0]) / ("zig.exe" if sys.platform == "win32" else "zig")
    command = (str(program), "cc")
    version = _version(command) if program.is_file() else ""
    return Compiler("zig", command, version) if version else None


def _system() -> Compiler | None:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        version = _version((path,)) if path else ""
        if path and version:
            return Compiler("system", (path,), version)
    return None


def _cross(triple: str) -> Compiler | None:
    """Return the system's cross compiler for another platform of Linux."""
    other = triple.endswith("-linux-gnu") and triple != host_triple()
    path = shutil.which(f"{triple}-gcc") if other else None
    version = _version((path,)) if path else ""
    return Compiler("system", (path,), version, triple) if path and version else None


def find_compiler(triple: str | None = None, variant: Variant = "release") -> Compiler:
    """Return the compiler to build with: ziglang where it is installed and can do it, else one of the system.

    Raises:
        MissingExtraError: there is none that can do it.
    """
    triple = triple or host_triple()
    zig, system = _zig(), _system()
    if variant == "release" and zig is not None:
        return zig
    # The emulated intrinsics and the sanitisers are packages of the system, found by its compiler.
    if system is not None and triple == host_triple():
        return system
    if variant == "release" and (cross := _cross(triple)) is not None:
        return cross
    what = f"a C compiler for {triple}" if variant == "release" else f"a system C compiler (for the variant {variant})"
    raise MissingExtraError(what, "native-build" if variant == "release" else None)
