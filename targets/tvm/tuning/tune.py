"""Tuning a module: its products, one after another, what matters most first; each result is kept as it is found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omnic.errors import InputError, MissingExtraError, nearest
from omnic.ir.graph import Module
from omnic.runtime.kernels.library import Kernels, kernels
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import processor
from omnic.targets.base import Tuned, TuneRequest
from omnic.targets.tvm.emit import plans_of
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.tail.loops import Loop
from omnic.targets.tvm.tuning.products import Product, RowClass, row_classes
from omnic.targets.tvm.tuning.records import (
    LoopRecord,
    ProductRecord,
    Record,
    Shape,
    Tuning,
    kernels_hash,
    merged,
    read_records,
    user_folder,
    write_records,
)
from omnic.targets.tvm.tuning.search import DEFAULT, Outcome, Timer, candidates, search
from omnic.targets.tvm.tuning.timing import ProductTimer, product_bytes

__all__ = ["OPS", "Task", "tasks_of", "tune"]

#: what can be tuned: product kernels, and generated loops
OPS = ("linear", "linear_many", "moe", "loop")

MakeTimer = Callable[["Task", Kernels, int], Timer[Tuning]]


@dataclass(frozen=True)
class Task:
    """A product and a class of rows that a program calls it with.

    Attributes:
        product: what is called.
        rows: the class.
        count: rows that are timed.
        calls: how often functions of the program call it.
    """

    product: Product
    rows: RowClass
    count: int
    calls: int


def tasks_of(matrices: Matrices) -> list[Task]:
    """Return what planned functions call: single tokens first, and of a class what reads most first."""
    found: dict[tuple[Product, RowClass], list[int]] = {}
    for product, calls in matrices.products.items():
        for low, high in calls:
            for rows in row_classes(low, high):
                found.setdefault((product, rows), []).append(max(low, min(rows.measured, high)))
    tasks = [Task(product, rows, max(counts), len(counts)) for (product, rows), counts in found.items()]
    return sorted(tasks, key=lambda t: (t.rows.low, -t.calls * product_bytes(t.product), t.product))


def default_file() -> Path:
    """Return this user's file of this processor."""
    name = "".join(c if c.isalnum() else "-" for c in f"{processor()}-{host_triple()}".lower())
    return user_folder() / f"{'-'.join(filter(None, name.split('-')))}.jsonl"


def tune(
    request: TuneRequest, make: MakeTimer | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Tuned]:
    """Yield a result for each product and class of rows; its record is in the file before it is yielded.

    Args:
        request: what to tune, and for how long.
        make: makes the timer of a task; the kernel library's by default.
        clock: of the budget.

    Raises:
        InputError: an unknown op, a damaged file of records, or a module the target cannot take.
    """
    wanted = _ops(request.ops)
    path = request.records or default_file()
    known: Sequence[Record] = read_records(path) if path.is_file() else ()
    module = legalise(request.module, request.options)
    matrices = Matrices(module)
    plans_of(module, matrices)
    tasks = [t for t in tasks_of(matrices) if t.product.op in wanted]
    loops = list(matrices.loops.values()) if "loop" in wanted else []
    level = str(request.options["level"])
    kernel = kernels(None if level == "best" else level, request.threads)
    size = sum(w.type.bytes() for w in module.weights.values())
    total = len(tasks) + len(loops)
    deadline = clock() + request.seconds  # what was compiled until here does not count
    for at, task in enumerate(tasks):
        request.progress(f"{task.product}, rows {task.rows.name}", at / total)
        left = (deadline - clock()) / (total - at)
        if left <= 0:
            yield _missed(str(task.product), task.rows.name)
            continue
        timer = (make or _timer)(task, kernel, size)
        outcome = search(timer, DEFAULT, candidates(task.rows, task.product.k, request.threads), left, clock)
        del timer
        if outcome.rounds:
            record = _record(task, outcome, kernel, request.threads)
            known = merged(known, [record] if outcome.won else [], [record.key])
            write_records(path, known)
        yield _said(str(task.product), task.rows.name, outcome)
    for at, loop in enumerate(loops, len(tasks)):
        request.progress(str(loop), at / total)
        left = (deadline - clock()) / (total - at)
        if left <= 0:
            yield _missed(str(loop), "")
            continue
        outcome, key, found = tune_loop(loop, module, kernel.level.name.lower(), left, clock)
        if outcome.rounds:
            known = merged(known, [found] if found is not None else [], [key])
            write_records(path, known)
        yield _said(str(loop), "", outcome)


def tune_loop(
    loop: Loop, module: Module, level: str, seconds: float, clock: Callable[[], float]
) -> tuple[Outcome[str], tuple[Any, ...], LoopRecord | None]:
    """Return what a search over the orders of a loop found, the key of its record, and the record if one won."""
    try:
        from omnic.targets.tvm.tail.build import function_of
        from omnic.targets.tvm.tail.schedules import loop_hash
        from omnic.targets.tvm.tuning.loops import LoopTimer, orders, version
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"loops of ops without a kernel (Python package '{error.name}')", "tvm") from error
    triple = host_triple()
    others = orders(loop, triple)
    timer = LoopTimer([loop, *others], triple, module.dims)
    outcome = search(timer, loop.name, [o.name for o in timer.same], seconds, clock)
    trace = next((o.traces[triple] for o in others if o.name == outcome.best), "[[], []]")
    record = LoopRecord.model_validate({
        **_conditions(outcome, level, 1, version()), "op": "loop", "loop": loop_hash(function_of(loop)),
        "trace": json.loads(trace),
    })  # fmt: skip
    return outcome, record.key, record if outcome.won else None


def _ops(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name not in OPS:
            near = nearest(name, list(OPS))
            raise InputError(f"there is no op '{name}' to tune",
                             f"did you mean '{near}'?" if near else f"known: {', '.join(OPS)}")
    return frozenset(names or OPS)


def _timer(task: Task, kernel: Kernels, size: int) -> Timer[Tuning]:
    return ProductTimer(task.product, task.count, kernel, size)


def _conditions(outcome: Outcome[Any], level: str, threads: int, kernels: str) -> dict[str, Any]:
    return {
        "triple": host_triple(), "cpu": processor(), "level": level, "threads": threads, "kernels": kernels,
        "gain": round(outcome.gain, 6), "interval": tuple(round(v, 6) for v in outcome.interval),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _record(task: Task, outcome: Outcome[Tuning], kernel: Kernels, threads: int) -> ProductRecord:
    product = task.product
    shape = Shape(n=product.n, k=product.k, weights=product.weights, act=product.act, experts=product.experts,
                  top=product.top)
    return ProductRecord.model_validate({
        **_conditions(outcome, kernel.level.name.lower(), threads, kernels_hash()), "op": product.op, "shape": shape,
        "rows": task.rows.name, "tuning": outcome.best or Tuning(),
    })  # fmt: skip


def _missed(what: str, rows: str) -> Tuned:
    return Tuned(what, rows, None, "", 1.0, (1.0, 1.0), False, "the budget had ended")


def _said(what: str, rows: str, outcome: Outcome[Any]) -> Tuned:
    note = ""
    if outcome.best is None:
        note = "there is one way" if not outcome.tried else "the budget ended before one was left"
    elif not outcome.won:
        note = f"best of {outcome.tried}: {outcome.best}; not beyond noise"
    return Tuned(what, rows, outcome.seconds, str(outcome.best) if outcome.won else "", outcome.gain,
                 outcome.interval, outcome.won, note)
