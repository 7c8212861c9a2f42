"""Generated loops: timed in other orders that give the same bits, and put into the order that a record has.

Loops run on the calling thread whatever the session's are, so their records are of one thread.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from omnic.ir.dims import DimRange, evaluate
from omnic.ir.types import DType
from omnic.runtime.kernels.build import INCLUDE, build
from omnic.runtime.kernels.toolchain import find_compiler
from omnic.targets.tvm.native import SUPPORT
from omnic.targets.tvm.tail.build import function_of, object_file
from omnic.targets.tvm.tail.loops import Loop
from omnic.targets.tvm.tail.schedules import loop_hash, traces
from omnic.targets.tvm.tuning.lookup import Tunings
from omnic.targets.tvm.views import View

__all__ = ["LoopTimer", "orders", "traced", "version"]

#: seconds that a sample takes at least, and the most tokens of a call that is timed
SAMPLE, TOKENS = 1e-3, 64
_NUMPY: Mapping[DType, Any] = {DType.I64: np.int64, DType.I32: np.int32, DType.I8: np.int8, DType.U8: np.uint8,
                               DType.BOOL: np.bool_}

Array = np.ndarray[Any, Any]


def version() -> str:
    """Return what a record of a loop belongs to in place of the kernels: TVM and its version."""
    return f"tvm {tvm.__version__}"


def traced(loops: Mapping[str, Loop], tunings: Sequence[Tunings]) -> dict[str, Loop]:
    """Return the loops with the traces that records have for them."""
    found: dict[str, Loop] = {}
    for key, loop in loops.items():
        name = loop_hash(function_of(loop))
        known = {t.triple: r for t in tunings if (r := t.loop(name, version())) is not None}
        found[key] = replace(loop, traces={triple: json.dumps(record.trace) for triple, record in known.items()})
    return found


def orders(loop: Loop, triple: str) -> list[Loop]:
    """Return the loop in each other order, as loops that are called otherwise."""
    found = traces(function_of(loop))
    return [replace(loop, name=f"{loop.name}_{at}", traces={triple: json.dumps(t)}) for at, t in enumerate(found)]


class LoopTimer:
    """Times a loop and its other orders on the same numbers.

    Args:
        loops: the loop as it is, then the other orders; all compiled into one library.
        triple: of this machine.
        dims: of the module: the most tokens of a call.

    Attributes:
        same: the orders whose result is the first one's to the bit.
    """

    def __init__(self, loops: Sequence[Loop], triple: str, dims: Mapping[str, DimRange]) -> None:
        sizes = {name: min(r.high, TOKENS) if name == "T" else 1 for name, r in dims.items()}
        first = loops[0]
        rng = np.random.default_rng(0)
        self._inputs = [_numbers(view, sizes, rng) for view in first.inputs]
        self._sizes = [sizes.get(name, 1) for name in ("B", "T", "R")]
        size = evaluate(first.output.buffer.size, sizes) + _SLACK
        self._output = np.zeros(size, _NUMPY.get(first.output.dtype, np.float32))
        self._library, names = _compiled(loops, triple)
        self._functions: dict[str, Any] = {}
        for name in names:
            function = getattr(self._library, name)
            function.argtypes = [c_void_p] * (len(self._inputs) + 1) + [c_int64] * 3
            function.restype = c_int32
            self._functions[name] = function
        exact = self._result(first.name)
        self.same = [x for x in loops[1:] if x.name in names and self._result(x.name) == exact]
        self._count = 1
        self._count = max(1, round(SAMPLE / max(self(first.name), 1e-7)))

    def _result(self, name: str) -> bytes:
        self._output[...] = 0
        self._functions[name](*self._arguments())
        return self._output.tobytes()

    def _arguments(self) -> list[Any]:
        return [*(a.ctypes.data for a in self._inputs), self._output.ctypes.data, *self._sizes]

    def __call__(self, name: str) -> float:
        """Return the seconds of one call of the loop of that name, the mean of a sample."""
        function, arguments = self._functions[name], self._arguments()
        began = time.thread_time()
        for _ in range(self._count):
            function(*arguments)
        return (time.thread_time() - began) / self._count


#: numbers behind the last one of a result, which an order must leave alone
_SLACK = 64


def _numbers(view: View, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    """Return numbers for a view: positive ones, for logarithms and roots; 0 for integers, which may be indices."""
    dims = zip(view.shape, view.strides, strict=True)
    count = 1 + sum((evaluate(n, sizes) - 1) * evaluate(s, sizes) for n, s in dims)
    kind = _NUMPY.get(view.dtype, np.float32)
    if kind is np.float32:
        return rng.uniform(0.25, 2.0, count).astype(np.float32)
    return np.zeros(count, kind)


def _compiled(loops: Sequence[Loop], triple: str) -> tuple[ctypes.CDLL, list[str]]:
    """Return a library of the loops, and the names of those that could be compiled."""
    compiler = find_compiler(triple)
    kernels = build(triple, compiler=compiler)
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / "loops.o"]
        names = [loop.name for loop in loops]
        try:
            object_file(loops, triple, objects[0])
        except (RuntimeError, ValueError):  # TVM lowers not every vector of every op: leave out those
            objects, names = _objects(loops, triple, Path(folder))
        out = Path(folder) / "loops.so"
        compiler.run([*compiler.flags(triple, "generic", "release"), "-fvisibility=default", f"-I{INCLUDE}",
                      f"-I{SUPPORT}", "-shared", *objects, SUPPORT / "program_ops.c", kernels.archive, "-o", out,
                      *compiler.link_flags(triple, "release")])
        return ctypes.CDLL(str(out)), names


def _objects(loops: Sequence[Loop], triple: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Return an object of each loop that TVM can compile, and their names; the first loop must be one of them."""
    objects: list[Path] = []
    names: list[str] = []
    for at, loop in enumerate(loops):
        into = folder / f"{at}.o"
        try:
            object_file([loop], triple, into)
        except (RuntimeError, ValueError):
            if at == 0:
                raise
            continue
        objects.append(into)
        names.append(loop.name)
    return objects, names
