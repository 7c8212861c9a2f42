"""Tuning a module: its products, one after another, what matters most first; each result is kept as it is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from omnic.errors import InputError, nearest
from omnic.ir.graph import Module
from omnic.runtime.kernels.library import Kernels, kernels
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import processor
from omnic.targets.base import Tuned, TuneRequest
from omnic.targets.tvm.emit import plans_of
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.tuning.products import Product, RowClass, row_classes
from omnic.targets.tvm.tuning.records import (
    ProductRecord,
    Record,
    Shape,
    kernels_hash,
    merged,
    read_records,
    user_folder,
    write_records,
)
from omnic.targets.tvm.tuning.search import Outcome, Timer, candidates, search
from omnic.targets.tvm.tuning.timing import ProductTimer, product_bytes

__all__ = ["OPS", "Task", "tasks_of", "tune"]

#: what can be tuned: product kernels, and generated loops
OPS = ("linear", "linear_many", "moe", "loop")

MakeTimer = Callable[["Task", Kernels, int], Timer]


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


def tasks_of(module: Module) -> list[Task]:
    """Return what a legalised module calls: single tokens first, and of a class what reads most first."""
    matrices = Matrices(module)
    plans_of(module, matrices)
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
    deadline = clock() + request.seconds
    tasks = [t for t in tasks_of(module) if t.product.op in wanted]
    level = str(request.options["level"])
    kernel = kernels(None if level == "best" else level, request.threads)
    size = sum(w.type.bytes() for w in module.weights.values())
    for at, task in enumerate(tasks):
        request.progress(f"{task.product}, rows {task.rows.name}", at / len(tasks))
        left = (deadline - clock()) / (len(tasks) - at)
        if left <= 0:
            yield Tuned(str(task.product), task.rows.name, None, "", 1.0, (1.0, 1.0), False, "the budget had ended")
            continue
        timer = (make or _timer)(task, kernel, size)
        field = candidates(task.rows, task.product.k, request.threads)
        outcome = search(timer, field, left, clock)
        del timer
        record = _record(task, outcome, kernel, request.threads)
        if outcome.rounds:
            known = merged(known, [record] if outcome.won else [], [record.key])
            write_records(path, known)
        yield _said(task, outcome)


def _ops(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name not in OPS:
            near = nearest(name, list(OPS))
            raise InputError(f"there is no op '{name}' to tune",
                             f"did you mean '{near}'?" if near else f"known: {', '.join(OPS)}")
    return frozenset(names or OPS)


def _timer(task: Task, kernel: Kernels, size: int) -> Timer:
    return ProductTimer(task.product, task.count, kernel, size)


def _record(task: Task, outcome: Outcome, kernel: Kernels, threads: int) -> ProductRecord:
    product = task.product
    shape = Shape(n=product.n, k=product.k, weights=product.weights, act=product.act, experts=product.experts,
                  top=product.top)
    return ProductRecord.model_validate({
        "triple": host_triple(), "cpu": processor(), "level": kernel.level.name.lower(), "threads": threads,
        "kernels": kernels_hash(), "gain": round(outcome.gain, 4),
        "interval": tuple(round(v, 4) for v in outcome.interval),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "op": product.op, "shape": shape,
        "rows": task.rows.name, "tuning": outcome.best or {},
    })  # fmt: skip


def _said(task: Task, outcome: Outcome) -> Tuned:
    note = ""
    if not outcome.rounds:
        note = "the budget ended before one was left"
    elif not outcome.won:
        note = f"best of {outcome.tried}: {outcome.best}; not beyond noise"
    return Tuned(str(task.product), task.rows.name, outcome.seconds, str(outcome.best) if outcome.won else "",
                 outcome.gain, outcome.interval, outcome.won, note)
