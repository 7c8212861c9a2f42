"""Finding a compiler, platforms and variants, the cache, and what is said where there is no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.errors import InputError, MissingExtraError
from omnic.runtime.kernels import build as building
from omnic.runtime.kernels import toolchain
from omnic.runtime.kernels.build import build, build_executable
from omnic.runtime.kernels.toolchain import LEVELS, TRIPLES, Compiler, CompilerError, find_compiler, host_triple

ZIG = Compiler("zig", ("zig", "cc"), "clang version 0")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_zig", lambda: None)
    monkeypatch.setattr(toolchain, "_system", lambda: None)


def test_without_a_compiler_the_extra_that_brings_one_is_named(no_compiler: None, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError) as found:
        build(cache=tmp_path)
    assert found.value.render() == (
        f"error: a C compiler for {host_triple()} is not available here\n"
        "  install it: pip install 'omnic[native-build]'"
    )


def test_another_platform_wants_ziglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_zig", lambda: None)
    with pytest.raises(MissingExtraError, match="a C compiler for aarch64-macos is not available here"):
        find_compiler("aarch64-macos")


def test_the_system_compiler_does_its_own_platform_alone() -> None:
    compiler = Compiler("system", ("cc",), "cc 1")
    other = "aarch64-linux-musl"
    with pytest.raises(InputError, match=f"the system compiler does not compile for {other}, only for {host_triple()}"):
        compiler.flags(other, "generic", "release")


def test_a_cross_compiler_of_the_system_does_its_platform_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    triple = "aarch64-linux-gnu" if host_triple() != "aarch64-linux-gnu" else "x86_64-linux-gnu"
    monkeypatch.setattr(toolchain, "_zig", lambda: None)
    monkeypatch.setattr(toolchain, "_version", lambda _: "gcc 12")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}" if name == f"{triple}-gcc" else None)
    compiler = find_compiler(triple)
    assert (compiler.command, compiler.triple) == ((f"/bin/{triple}-gcc",), triple)
    assert "-target" not in compiler.flags(triple, "generic", "release")
    with pytest.raises(InputError, match=f"does not compile for {host_triple()}, only for {triple}"):
        compiler.flags(host_triple(), "generic", "release")
    with pytest.raises(MissingExtraError):
        find_compiler(triple.replace("gnu", "musl"))


def test_platforms_and_variants_that_are_none() -> None:
    with pytest.raises(InputError, match="no platform 'x86_64-linux'; did you mean x86_64-linux-gnu"):
        build("x86_64-linux")
    with pytest.raises(InputError, match="no variant 'debug' of the kernel library"):
        build(variant="debug")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ziglang brings no address sanitiser"):
        ZIG.flags("x86_64-linux-gnu", "generic", "sanitised")
    with pytest.raises(InputError, match="the variant emulated is of x86-64 levels"):
        ZIG.flags("aarch64-linux-musl", "generic", "emulated")


@pytest.mark.parametrize("triple", TRIPLES)
def test_no_level_contracts_or_reorders_sums(triple: str) -> None:
    for level in LEVELS[triple.partition("-")[0]]:
        flags = ZIG.flags(triple, level, "release")
        assert "-ffp-contract=off" in flags
        assert "-ffast-math" not in flags
        assert flags[flags.index("-target") + 1] == TRIPLES[triple]


def test_the_baseline_asks_for_no_instruction_of_a_level() -> None:
    assert "-mcpu=x86_64" in ZIG.flags("x86_64-linux-gnu", "generic", "release")
    assert "-mcpu=generic" in ZIG.flags("aarch64-linux-musl", "neon", "release")
    assert "-mcpu=generic+dotprod+i8mm" in ZIG.flags("aarch64-linux-musl", "i8mm", "release")


def test_what_is_built_is_kept(built: object, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    monkeypatch.setattr(Compiler, "run", lambda *_: pytest.fail("compiled again"))
    assert build() == first


def test_another_source_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = Compiler("system", ("cc",), "cc 1")
    before = building._key(compiler, host_triple(), "release")
    (tmp_path / "level.h").write_text("/* other */\n")
    monkeypatch.setattr(building, "SOURCES", tmp_path)
    assert building._key(compiler, host_triple(), "release") != before


def test_a_compiler_that_fails_says_what_it_said(built: object, tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(CompilerError, match="nothing"):
        build_executable([source], "wrong")
    assert not list(building.cache_folder().glob("programs/*/wrong*"))
