"""Which levels there are, and what is said about one that is not."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from omnic.errors import InputError
from omnic.runtime.kernels.abi import Level
from omnic.runtime.kernels.library import Library, kernels


def flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    lines = path.read_text().splitlines()
    words = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return set(words.partition(":")[2].split())


def test_the_levels_are_what_the_system_says_of_its_cpu(built: Library) -> None:
    have = flags()
    if platform.machine() != "x86_64":
        pytest.skip("the names are those of x86-64")
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
    want = [Level.GENERIC]
    if {"avx2", "fma", "f16c"} <= have:
        want.append(Level.AVX2)
    if {"avx2", "avx_vnni"} <= have:
        want.append(Level.AVXVNNI)
    if {"avx2"} | wide <= have:
        want.append(Level.AVX512)
    if {"amx_tile", "amx_int8", "amx_bf16"} | wide <= have:
        want.append(Level.AMX)
    assert list(built.levels()) == want
    assert built.best_level() == want[-1]


def test_every_level_has_its_name(built: Library) -> None:
    for level in Level:
        assert built.c.omnic_level_name(int(level)).decode() == level.name.lower()
    assert built.c.omnic_level_name(99) == b"unknown"


def test_every_function_of_a_level_is_there(built: Library) -> None:
    for level in built.levels():
        table = built.kernels(level).table
        assert table.level == level
        lacking = [name for name, *_ in table._fields_ if not getattr(table, name) and name != "level"]
        assert lacking == []


def test_a_level_the_cpu_lacks_is_refused(built: Library) -> None:
    absent = Level.NEON if platform.machine() == "x86_64" else Level.AVX2
    said = f"this CPU or its system lacks the kernel level {absent.name.lower()}"
    with pytest.raises(InputError, match=said) as found:
        built.kernels(absent)
    assert found.value.hint == f"levels it can run: {', '.join(x.name.lower() for x in built.levels())}"


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="no kernel level 'avx3'"):
        kernels("avx3")


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libomnic_kernels.so"
    path.write_bytes(b"not ELF")
    with pytest.raises(InputError, match=r"libomnic_kernels\.so: not a library this machine can load"):
        Library(path)


def test_another_library_is_refused() -> None:
    import ctypes.util

    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no math library by name")
    with pytest.raises(InputError, match="not a kernel library of omnic"):
        Library(Path(name))
