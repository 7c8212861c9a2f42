"""The dispatcher: overview, suggestions, exit codes, errors as text and as JSON, broken pipes."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from omnic import cli, verbs
from omnic.errors import CheckFailed, Diagnostic, DiagnosticError, InputError, InternalError, MissingExtraError, Span

Runner = Callable[..., int]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], None]:
    """Return a function that installs a verb `probe` with the given `run`."""

    def install(run: Runner) -> None:
        def configure(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--json", action="store_true")
            parser.add_argument("--target", choices=["onnx", "torch"])
            parser.add_argument("--max-new", type=int)

        module = types.SimpleNamespace(NAME="probe", HELP="a verb for tests", configure=configure, run=run)
        monkeypatch.setattr(verbs, "load", lambda name: module)
        monkeypatch.setattr(verbs, "names", lambda: ["probe", "other"])

    return install


def raiser(error: BaseException) -> Runner:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, line in verbs.catalogue().items():
        assert f"  {name} " in out and line in out


def test_no_verb_shows_the_overview_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: omnic VERB [options]\n")


@pytest.mark.parametrize("name", verbs.names())
def test_each_verb_agrees_with_its_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = verbs.load(name)
    assert module.NAME == name
    assert verbs.catalogue()[name] == module.HELP
    assert module.HELP and "\n" not in module.HELP and not module.HELP.endswith(".")
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: omnic {name}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "omnic 0.1.0\n"


def test_unknown_verb_suggests_the_nearest(verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda args: 0)
    assert cli.main(["prove"]) == 2
    assert capsys.readouterr().err == "error: unknown verb 'prove'; did you mean 'probe'?\n  see: omnic --help\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--taget", "onnx"], "unrecognized arguments: --taget onnx; did you mean --target?"),
        (["--target", "onx"], "argument --target: invalid choice: 'onx'"),
        (["--max-new", "many"], "argument --max-new: invalid int value: 'many'"),
        (["--max-new"], "argument --max-new: expected one argument"),
    ],
)
def test_wrong_options_are_input_errors(
    verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    verb(lambda args: 0)
    assert cli.main(["probe", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.endswith("\n  see: omnic probe --help\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("logits differ"), 1),
        (InputError("no such file"), 2),
        (MissingExtraError("the package 'onnx'", "onnx"), 3),
        (InternalError("a value has two definitions"), 4),
    ],
)
def test_typed_errors_have_their_exit_codes(
    verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    verb(raiser(error))
    assert cli.main(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err


@pytest.mark.parametrize("code", [0, 1])
def test_a_verb_returns_its_exit_code(verb: Callable[[Runner], None], code: int) -> None:
    verb(lambda args: code)
    assert cli.main(["probe"]) == code


def test_json_errors_are_one_object_on_stdout(
    verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]
) -> None:
    span = Span("tiny.yaml", 3, 7, width=4, source="dim: 25x6")
    verb(raiser(DiagnosticError([Diagnostic("not a number", span, "write an integer"), Diagnostic("no blocks")])))
    assert cli.main(["probe", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "kind": "DiagnosticError",
            "message": "not a number\nno blocks",
            "hint": None,
            "exit_code": 2,
            "diagnostics": [
                {
                    "message": "not a number", "hint": "write an integer",
                    "file": "tiny.yaml", "line": 3, "column": 7,
                },
                {"message": "no blocks", "hint": None, "file": None, "line": None, "column": None},
            ],
        }
    }  # fmt: skip
    assert captured.err == (
        "tiny.yaml:3:7: error: not a number\n  dim: 25x6\n        ^^^\n  write an integer\nerror: no blocks\n"
    )


def test_wrong_usage_is_json_too(verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda args: 0)
    assert cli.main(["probe", "--json", "--nope"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "InputError"


def test_a_defect_keeps_its_traceback_in_a_file(
    verb: Callable[[Runner], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verb(raiser(ZeroDivisionError("division by zero")))
    assert cli.main(["probe", "--max-new", "3"]) == 4
    err = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert err == (
        "error: internal error: ZeroDivisionError: division by zero\n"
        "  this is a defect of omnic, not of your input: please report it with the command you ran"
        f" and {kept}\n"
    )
    text = kept.read_text()
    assert "command: omnic probe --max-new 3\n" in text and "Traceback (most recent call last)" in text


def test_debug_shows_the_traceback(verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raiser(ZeroDivisionError("division by zero")))
    assert cli.main(["--debug", "probe"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("please report it with the command you ran and the traceback above\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            3,
            "error: the package 'onnx' is not available here\n  install it: pip install 'omnic[onnx]'\n",
        ),
        (MemoryError(), 3, "error: there is not enough memory\n  take a smaller model, context or batch\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "build/w.bin"),
            2,
            "error: build/w.bin: No space left on device\n  free some disk space, or choose another place with -o\n",
        ),
    ],
)
def test_what_the_machine_lacks_is_not_a_defect(
    verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], error: Exception, code: int, text: str
) -> None:
    verb(raiser(error))
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == text


def test_a_missing_module_of_ours_is_a_defect(verb: Callable[[Runner], None], tmp_path: Path) -> None:
    verb(raiser(ModuleNotFoundError("No module named 'omnic.nothing'", name="omnic.nothing")))
    assert cli.main(["--debug", "probe"]) == 4


def test_every_extra_named_in_an_error_exists(repository: Path) -> None:
    import tomllib

    with (repository / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for package, extra in cli.EXTRA_OF.items():
        names = [line.partition(">")[0].partition("=")[0].replace("-", "_") for line in extras[extra]]
        package = {"tvm": "apache_tvm"}.get(package, package)
        assert package in names, f"extra {extra} does not bring {package}"


def test_interrupt_is_130(verb: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raiser(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


LONG_RUN = """
import argparse, sys, types
from omnic import cli, verbs
def run(args):
    print("ready", flush=True)
    {body}
verbs.load = lambda name: types.SimpleNamespace(HELP="h", configure=lambda parser: None, run=run)
verbs.names = lambda: ["probe"]
sys.exit(cli.main(["probe"]))
"""


def test_ctrl_c_of_a_real_process(repository: Path) -> None:
    code = LONG_RUN.format(body="import time; time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "\ninterrupted\n"


def test_a_reader_that_leaves_is_quiet(repository: Path) -> None:
    code = LONG_RUN.format(body="[print('x' * 1000) for _ in range(10_000)]; return 0")
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_output_is_an_input_error(repository: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "omnic", "--help"],
            cwd=repository, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device\n") and "Traceback" not in done.stderr
