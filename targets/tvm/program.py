"""A saved program, opened: its library through ctypes, its weights mapped into memory."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import sys
import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InputError, InternalError
from omnic.ir.dims import evaluate, parse_dim
from omnic.runtime.kernels.abi import Level
from omnic.targets.tvm.native import cached_program, program_name

__all__ = ["ABOUT_FILE", "SOURCE_FILE", "WEIGHTS_FILE", "Bound", "Program", "zero_pages"]

ABOUT_FILE = "program.json"
SOURCE_FILE = "program.c"
WEIGHTS_FILE = "weights.bin"
_DTYPES: Mapping[str, Any] = {"f32": np.float32, "i64": np.int64, "bool": np.bool_, "i32": np.int32,
                            "i8": np.int8, "u8": np.uint8}


@dataclass(frozen=True)
class Bound:
    """A call of one shape: arrays to write into, arrays to read, and their addresses for C."""

    function: bytes
    sizes: tuple[int, int, int]
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    given: Any
    wanted: Any


class Program:
    """One program, shared by the sessions and forks that run it; one call at a time.

    Args:
        folder: of the bundle.
        threads: of its pool.
        library: a library to run instead of the bundle's own.
        about: what it says of itself, instead of the bundle's.

    Raises:
        BundleError: a file is missing, truncated, or belongs to another program.
        InputError: this machine lacks the level the program was compiled to force.
    """

    def __init__(
        self, folder: Path, threads: int = 1, library: Path | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.threads = folder, threads
        self.about: Mapping[str, Any] = about or json.loads(_present(folder, ABOUT_FILE).read_text(encoding="utf-8"))
        self._c = _load(library or _library(folder))
        self._lock = threading.Lock()
        self._file = _mapped(_present(folder, WEIGHTS_FILE))
        self._instance = self._open(str(self.about["level"]))
        self.row_bytes = int(self.about["row_bytes"])

    def _open(self, level: str) -> int:
        number = -1 if level == "best" else int(Level[level.upper()])
        instance = c_void_p()
        failed = self._c.omnic_program_open(
            self._file.ctypes.data, self._file.nbytes, number, self.threads, byref(instance)
        )
        path = self.folder / WEIGHTS_FILE
        if failed == 4:
            raise BundleError(
                f"{path}: {self._file.nbytes:,} bytes that are not the whole weights of this program",
                "copy the bundle again, or compile it again",
            )
        if failed == 1:
            raise InputError(
                f"this CPU lacks the instructions of the level '{level}' that the program was compiled to use",
                "compile it without the option level, which then is chosen when it is opened",
            )
        if failed:
            raise InputError(f"{self.folder}: there are not enough threads or memory for {self.threads} threads",
                             "ask for fewer threads")
        assert instance.value is not None
        return instance.value

    def __del__(self) -> None:
        instance = getattr(self, "_instance", None)
        if instance:
            self._c.omnic_program_close(instance)
            self._instance = 0

    @property
    def level(self) -> Level:
        """The level of the kernels that it runs."""
        return Level(self._c.omnic_program_level(self._instance))

    def bind(self, function: str, batch: int, tokens: int, rows: int) -> Bound:
        """Return the arrays of a call."""
        sizes = {"B": batch, "T": tokens, "R": rows}
        about = self.about["functions"][function]
        inputs = {i["name"]: np.zeros(_shape(i["shape"], sizes), _DTYPES[i["dtype"]]) for i in about["inputs"]}
        outputs = {r["name"]: np.zeros(_shape(r["shape"], sizes), _DTYPES[r["dtype"]]) for r in about["results"]}
        return Bound(
            function.encode(), (batch, tokens, rows), inputs, outputs, _pointers(inputs.values()),
            _pointers(outputs.values()),
        )

    def run(self, bound: Bound, states: int, times: NDArray[np.float64] | None = None) -> None:
        """Run a bound call on the states at an address."""
        clock = None if times is None else times.ctypes.data_as(POINTER(c_double))
        with self._lock:
            failed = self._c.omnic_program_run(
                self._instance, bound.function, *bound.sizes, bound.given, bound.wanted, states, clock
            )
        if failed == 3:
            raise InputError("there is not enough memory for a call of that size", "run shorter calls")
        if failed:
            raise InternalError(f"the program refused a call of {bound.function.decode()} {bound.sizes}")

    def move(self, moved: Sequence[int], source: NDArray[np.int64], target: NDArray[np.int64], states: int) -> None:
        """Copy tokens between slots in the states with these numbers; source and target are [B, N]."""
        read, write = np.ascontiguousarray(source, np.int64), np.ascontiguousarray(target, np.int64)
        which = np.asarray(moved, np.int32)
        with self._lock:
            failed = self._c.omnic_program_move(
                self._instance, which.ctypes.data_as(POINTER(c_int32)), len(which), *read.shape,
                read.ctypes.data, write.ctypes.data, states,
            )
        if failed:
            raise InputError("there is not enough memory to move that many tokens", "move fewer at a time")


def _shape(shape: Sequence[str | int], sizes: Mapping[str, int]) -> list[int]:
    return [d if isinstance(d, int) else evaluate(parse_dim(d), sizes) for d in shape]


def _pointers(arrays: Any) -> Any:
    found = [a.ctypes.data for a in arrays]
    return (c_void_p * max(len(found), 1))(*found)


def zero_pages(size: int) -> NDArray[np.uint8]:
    """Return that many zero bytes at the begin of a page, of which only those that are written take memory.

    A cache has room for the whole capacity of every head.  Pages of 2 MiB would make all of it resident with the first
    token, since one holds several heads.
    """
    if sys.platform == "win32":
        return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)[:size]
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel without huge pages does not know the advice
                raise
    return np.frombuffer(pages, np.uint8)[:size]


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder}: the bundle has no file '{name}'", "copy the bundle again, or compile it again")
    return path


def _library(folder: Path) -> Path:
    """Return the program's library: the bundle's, or where it holds sources alone, one compiled from them."""
    path = folder / program_name()
    return path if path.is_file() else cached_program(_present(folder, SOURCE_FILE))


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped and shared with whoever maps it too."""
    if not path.stat().st_size:
        raise BundleError(f"{path}: the file is empty", "copy the bundle again, or compile it again")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        data.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(data, np.uint8)


def _load(path: Path) -> Any:
    try:
        c: Any = ctypes.CDLL(str(path))
    except OSError as error:
        raise BundleError(
            f"{path}: not a program this machine can load: {error}", "compile it again on this machine"
        ) from error
    if not hasattr(c, "omnic_program_open"):
        raise BundleError(f"{path}: not a program of omnic", "compile it again")
    c.omnic_program_open.argtypes = [c_void_p, c_int64, c_int, c_int, POINTER(c_void_p)]
    c.omnic_program_open.restype = c_int
    c.omnic_program_close.argtypes = [c_void_p]
    c.omnic_program_close.restype = None
    c.omnic_program_level.argtypes = [c_void_p]
    c.omnic_program_level.restype = c_int
    c.omnic_program_run.argtypes = [c_void_p, c_char_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p,
                                    POINTER(c_double)]
    c.omnic_program_run.restype = c_int
    c.omnic_program_move.argtypes = [c_void_p, POINTER(c_int32), c_int64, c_int64, c_int64, c_void_p, c_void_p,
                                     c_void_p]
    c.omnic_program_move.restype = c_int
    return c
