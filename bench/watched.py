"""Running a compile as a process of its own: how long it takes, what it prints, the largest memory of each process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Watched", "compiled"]


@dataclass(frozen=True)
class Watched:
    """One compile.

    Attributes:
        code: its exit code.
        seconds: of the wall.
        result: the JSON object that it printed.
        peaks: ``compiler`` and ``parity child`` -> largest resident memory in bytes, of every process of the kind.
    """

    code: int
    seconds: float
    result: dict[str, Any]
    peaks: dict[str, float]


def compiled(words: Sequence[str]) -> Watched:
    """Run ``omnic compile`` with ``words`` and ``--json``, and watch it and its children from outside."""
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "omnic", "compile", *words, "--json"], stdout=subprocess.PIPE, text=True
    )
    root = psutil.Process(child.pid)
    peaks = {"compiler": 0.0, "parity child": 0.0}
    while child.poll() is None:
        for process in (root, *_children(root)):
            name = "compiler" if process.pid == root.pid else "parity child"
            peaks[name] = max(peaks[name], _peak(process))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    assert child.stdout is not None
    printed = child.stdout.read()
    return Watched(child.returncode, seconds, json.loads(printed) if printed.strip() else {}, peaks)


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _peak(process: psutil.Process) -> float:
    """Return the high-water mark of a process; where the system has none, what it holds now."""
    try:
        status = Path(f"/proc/{process.pid}/status")
        if status.is_file():
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
            return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0.0)
        return float(process.memory_info().rss)
    except (OSError, psutil.NoSuchProcess):  # it has ended
        return 0.0
