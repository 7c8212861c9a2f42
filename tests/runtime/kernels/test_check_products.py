"""Random products in C, every level against generic C to the bit: under sanitisers, emulated, and on Arm under qemu."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from omnic.errors import MissingExtraError
from omnic.runtime.kernels.build import build_executable
from omnic.runtime.kernels.toolchain import Variant

CHECK = Path(__file__).with_name("check_products.c")
#: what 30 cases of seed 1 give on every platform
DIGEST = "digest 15f47710ab55981e"


def run(command: list[str], seed: int, cases: int) -> list[str]:
    """Return the lines the check prints; fail when a level differs or a sanitiser speaks."""
    done = subprocess.run([*command, str(seed), str(cases)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def program(variant: Variant = "release", triple: str | None = None) -> str:
    try:
        return str(build_executable([CHECK], "check_products", triple, variant, static=triple is not None))
    except MissingExtraError as error:
        pytest.skip(error.message)


def test_random_products(built: object) -> None:
    lines = run([program()], 1, 30)
    assert lines[0].startswith("levels generic")
    assert lines[-1] == DIGEST


@pytest.mark.slow
def test_random_products_under_sanitisers() -> None:
    command = [program("sanitised")]
    for seed in range(2, 6):
        run(command, seed, 60)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
@pytest.mark.skipif(not Path("/usr/include/simde").exists(), reason="SIMDe is not installed (Debian: libsimde-dev)")
def test_random_products_in_emulated_levels() -> None:
    lines = run([program("emulated")], 1, 30)
    assert lines == ["levels generic avx2 avxvnni avx512 amx", DIGEST]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed (Debian: qemu-user)")
@pytest.mark.parametrize(("cpu", "levels"), [("max", "neon dotprod i8mm"), ("cortex-a76", "neon dotprod"),
                                             ("cortex-a72", "neon")])
def test_random_products_on_arm(cpu: str, levels: str) -> None:
    command = ["qemu-aarch64", "-cpu", cpu, program(triple="aarch64-linux-musl")]
    assert run(command, 1, 30) == [f"levels generic {levels}", DIGEST]
