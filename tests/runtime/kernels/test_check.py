"""Random cases and products in C, every level against generic C to the bit: under sanitisers, emulated, and on Arm."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from omnic.errors import MissingExtraError
from omnic.runtime.kernels.build import build_executable
from omnic.runtime.kernels.toolchain import Variant

#: program -> what 30 cases of seed 1 give on every platform
CHECKS = {"check": "digest d69a610b25f0ded5", "check_products": "digest 57373daa4a4e5f89"}


def run(command: list[str], seed: int, cases: int) -> list[str]:
    """Return the lines the check prints; fail when a level differs or a sanitiser speaks."""
    done = subprocess.run([*command, str(seed), str(cases)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(params=CHECKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def program(name: str, variant: Variant = "release", triple: str | None = None) -> str:
    source = Path(__file__).with_name(f"{name}.c")
    return str(build_executable([source], name, triple, variant, static=triple is not None))


def test_random_cases(built: object, name: str) -> None:
    lines = run([program(name)], 1, 30)
    assert lines[0].startswith("levels generic")
    assert lines[-1] == CHECKS[name]


@pytest.mark.slow
def test_random_cases_under_sanitisers(name: str) -> None:
    command = [program(name, "sanitised")]
    for seed in range(2, 6):
        run(command, seed, 60)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
@pytest.mark.skipif(not Path("/usr/include/simde").exists(), reason="SIMDe is not installed (Debian: libsimde-dev)")
@pytest.mark.parametrize("variant", ["emulated", "emulated-sanitised"])
def test_random_cases_in_emulated_levels(name: str, variant: Variant) -> None:
    lines = run([program(name, variant)], 1, 30)
    assert lines == ["levels generic avx2 avxvnni avx512 amx", CHECKS[name]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed (Debian: qemu-user)")
@pytest.mark.parametrize(("cpu", "levels"), [("max", "neon dotprod i8mm"), ("cortex-a76", "neon dotprod"),
                                             ("cortex-a72", "neon")])
def test_random_cases_on_arm(name: str, cpu: str, levels: str) -> None:
    try:
        arm = program(name, triple="aarch64-linux-musl")
    except MissingExtraError as error:
        pytest.skip(error.message)
    assert run(["qemu-aarch64", "-cpu", cpu, arm], 1, 30) == [f"levels generic {levels}", CHECKS[name]]
