"""Evaluating a package in a child process, whose memory is given back when it ends.

python -m omnic.targets.coreml.evaluator.child PACKAGE     evaluate its default function on zeros, say the peak
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError, OmnicError
from omnic.targets.coreml.evaluator.program import Program
from omnic.targets.coreml.evaluator.types import NUMPY

__all__ = ["Job", "evaluate_in_child", "zeros_for"]

#: seconds after which a job that says nothing is stopped
TIME_BOX = 1800.0


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        inputs: of the function, or values inside it.
        until: what is wanted; all outputs when None.
        function: its name; the default one when empty.
        states: what states hold before.
        rounding: as :meth:`Function.run` takes it.
    """

    inputs: Mapping[str, NDArray[Any]]
    until: Sequence[str] | None = None
    function: str = ""
    states: Mapping[str, NDArray[Any]] | None = None
    rounding: str = "as_typed"


def evaluate_in_child(package: Path, jobs: Sequence[Job]) -> tuple[list[dict[str, NDArray[Any]]], int]:
    """Evaluate ``jobs`` one after the other in a child process.

    Returns:
        What each gives, and the child's largest memory (resident set) in bytes.

    Raises:
        OmnicError: what the evaluation raised.
        InputError: the child was killed, or took longer than the time box.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, str(package), list(jobs)), daemon=True)
    child.start()
    theirs.close()
    found: list[dict[str, NDArray[Any]]] = []
    try:
        while True:
            if not ours.poll(TIME_BOX):
                raise InputError(f"evaluating {package} took more than {TIME_BOX:.0f} s for one part")
            kind, value = ours.recv()
            if kind == "error":
                raise value
            if kind == "peak":
                return found, int(value)
            found.append(value)
    except EOFError:
        child.join()
        raise InputError(
            f"evaluating {package} was killed (exit {child.exitcode})", "it needs memory: free some, or evaluate less"
        ) from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(pipe: Any, package: str, jobs: Sequence[Job]) -> None:
    try:
        with Program.open(Path(package)) as program:
            for job in jobs:
                function = program.function(job.function)
                states = dict(job.states or {})
                pipe.send(("found", function.run(job.inputs, states, until=job.until, rounding=job.rounding)))
    except OmnicError as error:
        pipe.send(("error", error))
    else:
        pipe.send(("peak", peak()))
    finally:
        pipe.close()


def peak() -> int:
    """Return the largest memory (resident set) of this process, in bytes."""
    try:
        # Linux hands the parent's ru_maxrss down to what it starts; the mark of the address space is the process's own.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def zeros_for(program: Program, function: str = "") -> dict[str, NDArray[Any]]:
    """Return zeros for every input of a function, unknown dims 1."""
    inputs = program.function(function).inputs
    return {
        name: np.zeros([1 if d is None else d for d in type.shape], NUMPY[type.word]) for name, type in inputs.items()
    }


def main() -> int:
    """Evaluate the package that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python -m omnic.targets.coreml.evaluator.child PACKAGE", file=sys.stderr)
        return 2
    package = Path(sys.argv[1])
    try:
        with Program.open(package) as program:
            found, most = evaluate_in_child(package, [Job(zeros_for(program))])
    except OmnicError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    size = sum(f.stat().st_size for f in package.rglob("*") if f.is_file())
    print(f"{len(found[0])} outputs; package {size / 1e6:.1f} MB, peak memory {most / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
