"""Cores and memory from made-up /proc and /sys/fs/cgroup trees."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from omnic.runtime import resources

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a writer of files below proc/ and cgroup/ of a machine with 8 cores and 16 GB."""
    monkeypatch.setattr(resources, "_affinity", lambda: 8)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(**files: str) -> tuple[Path, Path]:
        meminfo = f"MemTotal: {16 * GB // 1024} kB\nMemFree: 1000 kB\nMemAvailable: {8 * GB // 1024} kB\n"
        for name, text in {"proc/meminfo": meminfo, "cgroup/.keep": "", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "proc", tmp_path / "cgroup"

    return write


def near(value: float, want: float) -> bool:
    return abs(value - want) < 2048


def test_without_limits(machine):
    place = machine()
    assert resources.cores(*place) == 8
    assert resources.threads(*place) == 8
    found = resources.memory(*place)
    assert near(found.limit, 16 * GB) and near(found.available, 8 * GB)


def test_cgroup_v2_the_smallest_of_all_parents_counts(machine):
    place = machine(**{
        "proc/self/cgroup": "0::/a/b\n",
        "cgroup/cpu.max": "max 100000\n",
        "cgroup/a/cpu.max": "250000 100000\n",
        "cgroup/a/b/cpu.max": "max 100000\n",
        "cgroup/a/memory.max": f"{4 * GB}\n",
        "cgroup/a/memory.current": f"{3 * GB}\n",
        "cgroup/a/memory.stat": f"anon 5\ninactive_file {GB}\n",
        "cgroup/a/b/memory.max": "max\n",
    })  # fmt: skip
    assert resources.cores(*place) == 2.5
    assert resources.threads(*place) == 2
    assert resources.memory(*place) == resources.Memory(4 * GB, 2 * GB)


def test_a_quota_below_one_core_still_gives_a_thread(machine):
    place = machine(**{"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "20000 100000\n"})
    assert (resources.cores(*place), resources.threads(*place)) == (0.2, 1)


def test_inside_a_container_the_hosts_path_is_absent(machine):
    place = machine(**{"proc/self/cgroup": "0::/docker/123\n", "cgroup/cpu.max": "300000 100000\n"})
    assert resources.cores(*place) == 3


def test_cgroup_v1(machine):
    place = machine(**{
        "proc/self/cgroup": "5:memory:/job\n3:cpu,cpuacct:/job\n",
        "cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
        "cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "cgroup/memory/job/memory.limit_in_bytes": f"{2 * GB}\n",
        "cgroup/memory/job/memory.usage_in_bytes": f"{GB // 2}\n",
        "cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    })  # fmt: skip
    assert resources.cores(*place) == 1.5
    assert resources.memory(*place) == resources.Memory(2 * GB, 2 * GB - GB // 2)


def test_the_limit_of_the_process(machine, monkeypatch):
    place = machine()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * GB, 3 * GB))
    assert resources.memory(*place) == resources.Memory(3 * GB, 3 * GB)


def test_this_machine():
    assert 0 < resources.cores() <= (os.cpu_count() or 1)
    found = resources.memory()
    assert 0 < found.available <= found.limit
