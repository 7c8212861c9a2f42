"""Other orders of a generated loop nest that give the same bits: the innermost outputs as vectors, sums behind them.

Every output keeps its own sum in its own order; only which outputs are computed side by side changes.  MetaSchedule is
not asked: it samples divisors of extents, and those of these loops are B, T and R.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm.tirx import IntImm

from omnic.errors import InputError

__all__ = ["loop_hash", "scheduled", "traces"]

#: outputs side by side
WIDTHS = (4, 8, 16, 32, 64)
#: numbers of a sum that are written out
STEPS = (1, 4)


def loop_hash(function: Any) -> str:
    """Return a hash of the TIR of a loop, whatever the loop is called."""
    return hashlib.sha256(function.script().encode()).hexdigest()[:16]


def traces(function: Any) -> Iterator[list[Any]]:
    """Yield the trace of each other order, as JSON."""
    for width in WIDTHS:
        for step in STEPS:
            schedule = Schedule(tvm.IRModule({"main": function}))
            if _apply(schedule, width, step):
                trace: Any = schedule.trace
                yield _plain(trace.as_json())


def scheduled(function: Any, trace: list[Any]) -> Any:
    """Return the loop in the order of a trace.

    Raises:
        InputError: the trace is of another loop, or none of TVM's.
    """
    schedule = Schedule(tvm.IRModule({"main": function}))
    try:
        Trace.apply_json_to_schedule(trace, schedule)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:  # what TVM raises
        raise InputError(f"a record of a loop holds a trace that TVM does not take: {str(error).splitlines()[-1]}",
                         "delete the record, or measure again: omnic tune MODEL --op loop") from error
    return schedule.mod["main"]


def _apply(schedule: Any, width: int, step: int) -> bool:
    """Put ``width`` neighbours side by side; False where the loop has no such neighbours."""
    block = schedule.get_sblock("y")
    loops = schedule.get_loops(block)
    kinds = [str(v.iter_type) for v in schedule.get(block).iter_vars]
    spatial = [at for at, kind in enumerate(kinds) if kind == "0"]
    sums = [loops[at] for at, kind in enumerate(kinds) if kind != "0"]
    if not spatial or len(loops) != len(kinds):
        return False
    last = loops[spatial[-1]]
    extent = schedule.get(last).extent
    if not isinstance(extent, IntImm) or int(extent) % width or (step > 1 and not sums):
        return False
    outer, inner = schedule.split(last, factors=[None, width])
    if sums:
        schedule.reorder(outer, *sums, inner)
        if step > 1:
            count = schedule.get(sums[-1]).extent
            if not isinstance(count, IntImm) or int(count) % step:
                return False
            _, few = schedule.split(sums[-1], factors=[None, step])
            schedule.unroll(few)
    schedule.vectorize(inner)
    if sums:
        # The zeros before a sum become a loop of their own, in front of its outermost loop.
        start = schedule.decompose_reduction(block, schedule.get_loops(block)[len(spatial)])
        schedule.vectorize(schedule.get_loops(start)[-1])
    return True


def _plain(value: Any) -> Any:
    """Return what TVM gives as JSON in Python's own lists and numbers."""
    if isinstance(value, (str, bool)) or value is None:
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (int, IntImm)):
        return int(value)
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "__iter__"):
        return [_plain(v) for v in value]
    return int(value)
