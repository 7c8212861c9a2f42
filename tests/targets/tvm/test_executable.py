"""Executables: the tokens of the session, bad arguments in words, C that any compiler builds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from omnic.errors import InputError
from omnic.runtime.kernels.toolchain import host_triple
from omnic.targets.tvm.native import build_program
from omnic.targets.tvm.program import SOURCE_FILE, WEIGHTS_FILE, Program
from tests.targets.tvm.helpers import PROMPT, emitted, greedy, ids_of, said, small_module


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm") / "small"
    emitted(small_module(), folder)
    build_program(folder / SOURCE_FILE, folder / "run", host_triple(), executable=True)
    return folder


def test_an_executable_says_the_tokens_of_the_session(out: Path) -> None:
    code, output, error = said(out / "run", "-n", 24, out / WEIGHTS_FILE, *PROMPT)
    assert (code, error) == (0, "")
    assert ids_of(output) == greedy(out, 24)
    assert [line.split()[0] for line in output.splitlines()] == ["ids", "level", "open", "prompt", "token"]
    _, plain, _ = said(out / "run", "-n", 24, "-t", 2, "-l", "generic", out / WEIGHTS_FILE, *PROMPT)
    assert plain.splitlines()[1] == "level generic"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give the file of weights and at least one token id"),
        (("WEIGHTS",), "give the file of weights and at least one token id"),
        (("WEIGHTS", "96"), "'96' is no token id: they are 0 to 95"),
        (("WEIGHTS", "5", "x"), "'x' is no token id: they are 0 to 95"),
        (("WEIGHTS", "5", ""), "'' is no token id: they are 0 to 95"),
        (("WEIGHTS", *["1"] * 65), "the prompt has 65 tokens, and the program holds 64"),
        (("nowhere.bin", "1"), "the file of weights 'nowhere.bin' cannot be read"),
        (("SHORT", "1"), "'SHORT' is not the whole weights of this program"),
        (("OTHER", "1"), "'OTHER' is not the whole weights of this program"),
        (("SOURCE", "1"), "'SOURCE' is not the whole weights of this program"),
        (("-l", "neon", "WEIGHTS", "1"), "this CPU, or this program, lacks the level neon; it would run BEST"),
        (("-l", "avx3", "WEIGHTS", "1"), "-l takes the name of a level, not 'avx3'"),
        (("-t", "0", "WEIGHTS", "1"), "-t takes 1 to 1024 threads, not '0'"),
        (("-t", "two", "WEIGHTS", "1"), "-t takes 1 to 1024 threads, not 'two'"),
        (("-n", "0", "WEIGHTS", "1"), "-n takes a number of tokens from 1, not '0'"),
        (("-n",), "-n takes a number of tokens from 1, not ''"),
        (("-q", "1", "WEIGHTS", "1"), "unknown option '-q'; it takes -n COUNT, -t THREADS, -l LEVEL"),
    ],
)
def test_wrong_arguments_are_refused(out: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    whole = (out / WEIGHTS_FILE).read_bytes()
    known = {"WEIGHTS": out / WEIGHTS_FILE, "SHORT": tmp_path / "short.bin", "OTHER": tmp_path / "other.bin",
             "SOURCE": out / SOURCE_FILE, "BEST": Program(out).level.name.lower()}
    (tmp_path / "short.bin").write_bytes(whole[:8192])
    (tmp_path / "other.bin").write_bytes(whole[:16] + b"0" * 64 + whole[80:])
    for name, value in known.items():
        message = message.replace(name, str(value))
    code, output, error = said(out / "run", *(known.get(w, w) for w in words))
    assert (code, output, error) == (2, "", f"small: {message}\n")


def test_a_prompt_that_fills_the_program_gives_one_token(out: Path) -> None:
    code, output, error = said(out / "run", "-n", 5, out / WEIGHTS_FILE, *[7] * 64)
    assert (code, error, len(ids_of(output))) == (0, "", 1)


def test_an_executable_of_one_level_is_small_and_says_the_same(out: Path) -> None:
    level = Program(out).level.name.lower()
    build_program(out / SOURCE_FILE, out / "small", host_triple(), executable=True, level=level)
    assert (out / "small").stat().st_size <= 2_000_000
    code, output, _ = said(out / "small", "-n", 8, out / WEIGHTS_FILE, *PROMPT)
    assert (code, ids_of(output), output.splitlines()[1]) == (0, greedy(out, 8), f"level {level}")


def test_a_level_of_another_platform_is_refused(out: Path) -> None:
    with pytest.raises(InputError) as caught:
        build_program(out / SOURCE_FILE, out / "none", "aarch64-linux-gnu", executable=True, level="avx2")
    assert caught.value.message == "aarch64-linux-gnu has no level 'avx2'"


@pytest.mark.slow
def test_sources_build_with_make_and_open_as_a_bundle(out: Path, tmp_path: Path) -> None:
    emitted(small_module(), tmp_path / "c", emit="c")
    assert not list((tmp_path / "c").glob("program.so"))
    done = subprocess.run(["make", "-s", "-C", str(tmp_path / "c")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, output, _ = said(tmp_path / "c" / "program", "-n", 8, tmp_path / "c" / WEIGHTS_FILE, *PROMPT)
    assert code == 0 and ids_of(output) == greedy(out, 8) == greedy(tmp_path / "c", 8)
