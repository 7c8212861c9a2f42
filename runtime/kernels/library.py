"""The kernel library, loaded: its levels, a pool of threads, scratch memory."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_void_p, pointer
from pathlib import Path
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.runtime.kernels.abi import ABI, Call, Level, Ops, Shortlist, Tuning, Weight, declare
from omnic.runtime.kernels.build import ROOM, build
from omnic.runtime.kernels.toolchain import Variant, host_triple, library_name

__all__ = ["Kernels", "Library", "Pool", "Scratch", "address", "kernels", "library", "load", "packaged"]


def packaged(triple: str) -> Path:
    """Return where a wheel puts the library of a platform (it need not be there)."""
    return ROOM / "lib" / triple / library_name(triple)


class Pool:
    """Worker threads (``omnic_pool``), the calling thread counted.  One thread calls at a time.

    Raises:
        InputError: ``threads`` is below 1, or the system does not give that many.
    """

    def __init__(self, library: Library, threads: int) -> None:
        self.address: int | None = None
        if threads < 1:
            raise InputError(f"a pool has at least 1 thread, not {threads}")
        self._library = library
        self.address = library.c.omnic_pool_create(threads)
        if not self.address:
            raise InputError(f"the system did not give {threads} threads", "ask for fewer")
        self.threads = threads

    def close(self) -> None:
        """End the threads.  A second call does nothing."""
        if self.address:
            self._library.c.omnic_pool_destroy(self.address)
            self.address = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Scratch:
    """Memory of a call, 64-byte aligned, that grows to what is asked."""

    def __init__(self) -> None:
        self._bytes = np.zeros(0, np.uint8)
        self.address = 0
        self.size = 0

    def need(self, size: int) -> None:
        """Have at least ``size`` bytes."""
        if size > self.size:
            self._bytes = np.empty(size + 64, np.uint8)
            self.address = -(-self._bytes.ctypes.data // 64) * 64
            self.size = size


class Library:
    """One shared library of kernels.

    Raises:
        InputError: the file is no kernel library of this ABI.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.c: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise InputError(f"{path}: not a library this machine can load: {error}") from error
        if not hasattr(self.c, "omnic_kernels"):
            raise InputError(f"{path}: not a kernel library of omnic")
        declare(self.c)
        self.path = path

    def best_level(self) -> Level:
        """Return the best level this CPU and system can run."""
        return Level(self.c.omnic_best_level())

    def levels(self) -> tuple[Level, ...]:
        """Return every level that the library holds and this machine can run, the plainest first."""
        return tuple(level for level in Level if self.c.omnic_kernels(int(level)))

    def kernels(self, level: Level | str | None = None, pool: Pool | None = None) -> Kernels:
        """Return the functions of a level (default: the best one).

        Raises:
            InputError: there is no such level, or this machine cannot run it.
        """
        if isinstance(level, str):
            if level.upper() not in Level.__members__:
                raise InputError(f"no kernel level '{level}'", f"levels: {', '.join(x.name.lower() for x in Level)}")
            level = Level[level.upper()]
        level = self.best_level() if level is None else level
        table = self.c.omnic_kernels(int(level))
        if not table:
            able = ", ".join(x.name.lower() for x in self.levels())
            raise InputError(f"this CPU or its system lacks the kernel level {level.name.lower()}",
                             f"levels it can run: {able}")
        if table.contents.abi != ABI:
            raise InputError(f"{self.path}: a kernel library of ABI {table.contents.abi}, this omnic wants {ABI}")
        return Kernels(self, level, table.contents, pool)


class Kernels:
    """The functions of one level with the pool and the scratch memory they run with."""

    def __init__(self, library: Library, level: Level, table: Ops, pool: Pool | None) -> None:
        self.library = library
        self.level = level
        self.table = table
        self.pool = pool
        self.scratch = Scratch()

    @property
    def threads(self) -> int:
        """Threads that share the work."""
        return self.pool.threads if self.pool else 1

    def call(self, scratch: int = 0, tuning: Tuning | None = None) -> Call:
        """Return the first argument of every function, with that many bytes of scratch."""
        self.scratch.need(scratch)
        address = self.pool.address if self.pool else None
        call = Call(address, self.scratch.address or None, self.scratch.size)
        if tuning is not None:
            call.tuning = pointer(tuning)
        return call

    def run(self, name: str, *arguments: Any, scratch: int = 0, tuning: Tuning | None = None) -> None:
        """Call a function of the table; products and experts heed ``tuning`` (default: the level's own)."""
        getattr(self.table, name)(byref(self.call(scratch, tuning)), *arguments)

    def scratch_linear(self, weight: Weight, rows: int, act: int, act_group: int) -> int:
        """Return the bytes of scratch of ``linear`` and ``head_argmax``."""
        return self.library.c.omnic_scratch_linear(byref(weight), rows, act, act_group, self.threads)

    def scratch_shortlist(self, shortlist: Shortlist, rows: int, act: int, act_group: int) -> int:
        """Return the bytes of scratch of ``head_shortlist``."""
        return self.library.c.omnic_scratch_shortlist(byref(shortlist), rows, act, act_group, self.threads)

    def scratch_attention(self, heads: int, tokens: int, d: int, dv: int, slots: int) -> int:
        """Return the bytes of scratch of ``attention`` and ``mla``."""
        return self.library.c.omnic_scratch_attention(heads, tokens, d, dv, slots, self.threads)


def address(array: np.ndarray[Any, Any] | None) -> c_void_p | None:
    """Return the address of an array's numbers."""
    return None if array is None else c_void_p(array.ctypes.data)


@functools.cache
def load(variant: Variant = "release") -> Library:
    """Return the library of this machine: the wheel's, or in a source checkout the one built and cached.

    Raises:
        MissingExtraError: there is none, and no compiler to make it.
        CompilerError: the compiler failed.
    """
    triple = host_triple()
    carried = packaged(triple)
    if variant == "release" and carried.is_file():
        return Library(carried)
    return Library(build(triple, variant).shared)


def library() -> Library:
    """Return the release library of this machine."""
    return load("release")


def kernels(level: Level | str | None = None, threads: int = 1) -> Kernels:
    """Return the functions of a level (default: the best one), run by that many threads.

    Raises:
        InputError: this machine cannot run the level, or does not give the threads.
        MissingExtraError: there is no library, and no compiler to make it.
    """
    found = library()
    return found.kernels(level, Pool(found, threads) if threads != 1 else None)
