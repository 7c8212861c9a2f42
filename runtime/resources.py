"""What this process may really use: cores and memory, container limits included.

``os.cpu_count()`` and the machine's memory are what a container's host has.  The limits are in the CPU
affinity, in ``cpu.max`` / ``memory.max`` of every cgroup above the process (cgroup v2), or in the
``cpu`` and ``memory`` controllers (cgroup v1); the smallest counts.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "cores", "memory", "threads"]

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# cgroup v1 says "no limit" with a number near 2**63.
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Memory:
    """Bytes of memory.

    Attributes:
        limit: the most this process may use: the machine's memory, or a container's or process's limit.
        available: what of it is free now, caches that can be dropped counted as free.
    """

    limit: int
    available: int


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Return the cores this process may use at once; a fraction when a quota says so."""
    allowed = float(_affinity())
    for folder in _controller_folders("cpu", proc, cgroups):
        quota = _cpu_quota(folder)
        if quota is not None:
            allowed = min(allowed, quota)
    return allowed


def threads(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many threads are worth starting: the cores rounded to the nearest, at least 1."""
    return max(1, round(cores(proc, cgroups)))


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Return the memory this process may use and what of it is free."""
    limit, available = _machine_memory(proc)
    for folder in _controller_folders("memory", proc, cgroups):
        most = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if most is None or most >= UNLIMITED:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        droppable = _stat(folder / "memory.stat", ("inactive_file", "total_inactive_file"))
        limit = min(limit, most)
        available = min(available, max(0, most - used + droppable))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        limit, available = min(limit, soft), min(available, soft)
    return Memory(limit, available)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _controller_folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folder of this process's cgroup and of each one above it."""
    listing = _read(proc / "self" / "cgroup")
    if listing is None:
        return
    for line in listing.splitlines():
        _, names, path = line.split(":", 2)
        if names == "":  # cgroup v2
            root = cgroups / "unified" if (cgroups / "unified" / "cgroup.procs").exists() else cgroups
        elif controller in names.split(","):
            root = next((cgroups / name for name in (names, controller) if (cgroups / name).is_dir()), cgroups / names)
        else:
            continue
        yield from _upwards(root, path.strip("/"))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    # Inside a container the path may be the host's and not exist; the root is then the container's own.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:count])
        if folder.is_dir():
            yield folder


def _cpu_quota(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _machine_memory(proc: Path) -> tuple[int, int]:
    info = _read(proc / "meminfo")
    if info is not None:
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in info.splitlines() if ":" in line}
        return fields["MemTotal"], fields.get("MemAvailable", fields["MemFree"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, _free_on_macos() if sys.platform == "darwin" else total


def _free_on_macos() -> int:
    """Return free, inactive and speculative pages as ``vm_stat`` counts them, in bytes."""
    text = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True).stdout
    page = int(text.split("page size of ")[1].split()[0])
    wanted = ("Pages free", "Pages inactive", "Pages speculative")
    counts = [line.rsplit(" ", 1)[1].rstrip(".") for line in text.splitlines() if line.startswith(wanted)]
    return page * sum(int(count) for count in counts)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # absent on this system, or hidden from this process: no limit is known from it
        return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _stat(path: Path, names: tuple[str, ...]) -> int:
    fields = dict(line.split()[:2] for line in (_read(path) or "").splitlines() if len(line.split()) >= 2)
    return next((int(fields[name]) for name in names if name in fields), 0)
