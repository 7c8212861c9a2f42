"""Programs for other CPUs, run by qemu: the tokens of this machine at every level, and a CPU below a forced level."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from omnic.api import compile as compile_model
from omnic.errors import MissingExtraError
from omnic.ir.numeric import class_of, find_class, near_ties
from omnic.runtime.kernels.toolchain import find_compiler, host_triple
from omnic.spec import load_spec
from omnic.targets.cut import module_of
from omnic.targets.tvm.native import build_program
from omnic.targets.tvm.program import SOURCE_FILE, WEIGHTS_FILE, Program
from omnic.targets.tvm.session import NativeSession
from tests.targets.tvm.helpers import PROMPT, emitted, greedy, ids_of, said, small_module

ARM = (("cortex-a72", "neon"), ("cortex-a76", "dotprod"), ("max", "i8mm"))
ARM_QEMU = pytest.mark.skipif(shutil.which("qemu-aarch64") is None,
                              reason="qemu-aarch64 is not installed (Debian: qemu-user)")
X86_QEMU = pytest.mark.skipif(shutil.which("qemu-x86_64") is None or not host_triple().startswith("x86_64"),
                              reason="qemu-x86_64 is not installed (Debian: qemu-user)")


def platform_of(*triples: str) -> str:
    """The first of these platforms that a compiler here makes programs for."""
    for triple in triples:
        try:
            find_compiler(triple)
        except MissingExtraError:
            continue
        return triple
    pytest.skip(f"no compiler for {' or '.join(triples)} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)")


def made(out: Path, triple: str) -> Path:
    """A program for a platform, linked statically where that allows it, made at most once."""
    if not (out / triple).is_file():
        build_program(out / SOURCE_FILE, out / triple, triple, executable=True)
    return out / triple


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross") / "small"
    emitted(small_module(), folder)
    return folder


def hold(found: list[int], out: Path) -> None:
    """Hold tokens against those of this machine: where they part, the reference must be ambiguous."""
    wanted = greedy(out, len(found))
    if found == wanted:
        return
    at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    session = NativeSession(Program(out))
    logits = session.forward(np.array([[*PROMPT, *wanted[:at]]])).logits[0]
    assert near_ties(logits, find_class(class_of(module_of(out))))[-1], (at, found, wanted)


@ARM_QEMU
@pytest.mark.parametrize(("cpu", "level"), ARM)
def test_arm_says_the_same_tokens_at_every_level(out: Path, cpu: str, level: str) -> None:
    program = made(out, platform_of("aarch64-linux-musl", "aarch64-linux-gnu"))
    for threads in (1, 2):
        code, output, error = said("qemu-aarch64", "-cpu", cpu, program, "-n", 24, "-t", threads, out / WEIGHTS_FILE,
                                   *PROMPT)
        assert (code, error, output.splitlines()[1]) == (0, "", f"level {level}")
        hold(ids_of(output), out)


@ARM_QEMU
def test_an_arm_cpu_below_a_forced_level_is_refused(out: Path) -> None:
    program = made(out, platform_of("aarch64-linux-musl", "aarch64-linux-gnu"))
    assert said("qemu-aarch64", "-cpu", "cortex-a72", program, "-l", "i8mm", out / WEIGHTS_FILE, *PROMPT) == (
        2, "", "small: this CPU, or this program, lacks the level i8mm; it would run neon\n"
    )


@X86_QEMU
def test_an_old_x86_says_the_same_tokens(out: Path) -> None:
    """A CPU without AVX.  (qemu 7 reads what AVX2's masked loads mask out, so newer ones are no test of ours.)"""
    program = made(out, host_triple())
    code, output, error = said("qemu-x86_64", "-cpu", "Nehalem", program, "-n", 8, out / WEIGHTS_FILE, *PROMPT)
    assert code == 0, error
    assert output.splitlines()[1] == "level generic"
    hold(ids_of(output), out)


@X86_QEMU
def test_an_old_x86_below_a_forced_level_is_refused(out: Path) -> None:
    program = made(out, host_triple())
    code, output, error = said("qemu-x86_64", "-cpu", "Nehalem", program, "-l", "avx2", out / WEIGHTS_FILE, *PROMPT)
    assert (code, output) == (2, "")
    assert error.endswith("small: this CPU, or this program, lacks the level avx2; it would run generic\n")


@pytest.mark.slow
@ARM_QEMU
@pytest.mark.parametrize("passes", [(), ("int4-packing{group=32,scale=s4}",)], ids=["f32", "int4"])
@pytest.mark.parametrize("preset", ["tiny", "tiny_moe"])
def test_arm_says_the_same_64_tokens(preset: str, passes: tuple[str, ...], tmp_path: Path) -> None:
    triple = platform_of("aarch64-linux-musl", "aarch64-linux-gnu")
    bundle = compile_model(load_spec(preset), "tvm", tmp_path / "out", passes=passes, parity="off")
    program = made(bundle.path, triple)
    assert triple.endswith("gnu") or program.stat().st_size <= 2_000_000
    runs = [(cpu, ("-t", str(threads)), level) for cpu, level in ARM for threads in (1, 2)]
    for cpu, options, level in [*runs, ("max", ("-l", "generic"), "generic")]:
        code, output, error = said("qemu-aarch64", "-cpu", cpu, program, *options, bundle.path / WEIGHTS_FILE, *PROMPT)
        assert (code, error, output.splitlines()[1]) == (0, "", f"level {level}")
        assert len(ids_of(output)) == 64
        hold(ids_of(output), bundle.path)


@pytest.mark.slow
def test_a_static_program_with_every_level_is_small(tmp_path: Path) -> None:
    triple = platform_of("x86_64-linux-musl")
    bundle = compile_model(load_spec("tiny"), "tvm", tmp_path / "out", options={"triple": triple}, parity="off")
    program = bundle.path / f"tiny-{triple}"
    assert program.stat().st_size <= 2_000_000
    if host_triple() == "x86_64-linux-gnu":
        code, output, _ = said(program, bundle.path / WEIGHTS_FILE, *PROMPT)
        assert (code, ids_of(output)) == (0, greedy(bundle.path, 64))


@pytest.mark.slow
@pytest.mark.parametrize(("triple", "first"), [("x86_64-windows-gnu", b"MZ"), ("aarch64-windows-gnu", b"MZ"),
                                               ("aarch64-macos", b"\xcf\xfa\xed\xfe"),
                                               ("x86_64-macos", b"\xcf\xfa\xed\xfe")])
def test_programs_of_platforms_that_are_not_run_here_are_built(out: Path, triple: str, first: bytes) -> None:
    bytes = made(out, platform_of(triple)).read_bytes()
    assert bytes.startswith(first) and len(bytes) <= 2_000_000
    if first == b"MZ":
        libraries = {word for word in (b"libwinpthread", b"libgcc_s", b"libunwind") if word in bytes}
        assert b"KERNEL32.dll" in bytes and not libraries
