"""Wrong options, files and machines: said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnic.errors import BundleError, InputError
from omnic.passes.kv_quant import KvQuant
from omnic.targets.tvm.options import parse_options
from omnic.targets.tvm.program import ABOUT_FILE, WEIGHTS_FILE, Program
from omnic.targets.tvm.session import NativeSession
from omnic.targets.tvm.target import TARGET
from tests.targets.tvm.helpers import emitted, small_module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm") / "small"
    emitted(small_module(), folder)
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    folder = tmp_path / "small"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"batc": 2}, "target tvm has no option 'batc'", "did you mean 'batch'?"),
        ({"batch": 0}, "target tvm: batch must be 1 to 64, not '0'", None),
        ({"activations": "i4"},
         "target tvm: activations must be auto, calibrated, f32, bf16, i8<per_token> or i8<gN>, not 'i4'",
         "i8<g32> rounds groups of 32 numbers to 8 bits"),
        ({"level": "avx3"}, "target tvm: there is no level 'avx3'", "did you mean 'avx2'?"),
        ({"triple": "aarch64-linux-mus"}, "target tvm: there is no triple 'aarch64-linux-mus'",
         "did you mean 'aarch64-linux-musl'?"),
        ({"emit": "c", "triple": "aarch64-linux-musl"}, "target tvm: emit=c writes sources and compiles nothing",
         "leave out triple, or emit"),
    ],
)
def test_options_are_checked(given: dict[str, object], message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        parse_options(given)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_weights_that_are_cut_short_are_refused(out: Path) -> None:
    path = out / WEIGHTS_FILE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(BundleError) as caught:
        Program(out)
    assert caught.value.message == f"{path}: {size - 4096:,} bytes that are not the whole weights of this program"
    with pytest.raises(BundleError) as caught:
        TARGET.weights(out)
    assert caught.value.message == f"{path} is not there whole: it should have {size:,} bytes"


def test_weights_of_another_program_are_refused(out: Path, tmp_path: Path) -> None:
    emitted(small_module(), tmp_path / "other", seed=4)
    (out / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(BundleError) as caught:
        Program(out)
    assert "that are not the whole weights of this program" in caught.value.message


def test_a_missing_or_empty_file_is_named(out: Path) -> None:
    (out / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        Program(out)
    assert caught.value.message == f"{out / WEIGHTS_FILE}: the file is empty"
    (out / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError) as caught:
        Program(out)
    assert caught.value.message == f"{out}: the bundle has no file 'weights.bin'"


def test_a_program_of_another_omnic_is_refused(out: Path) -> None:
    about = json.loads((out / ABOUT_FILE).read_text())
    states = about["session"]["states"]
    about["session"]["states"] = [{**states[0], "pages": 1}, *states[1:]]
    (out / ABOUT_FILE).write_text(json.dumps(about))
    with pytest.raises(BundleError) as caught:
        NativeSession(Program(out))
    assert caught.value.message.startswith(
        f"{out}: the program says other things than a session of this omnic has to know:"
    )
    del about["session"]
    (out / ABOUT_FILE).write_text(json.dumps(about))
    with pytest.raises(BundleError) as caught:
        NativeSession(Program(out))
    assert caught.value.message == (
        f"{out}: the program does not say what a session has to know: another omnic wrote it"
    )


def test_a_library_that_is_none_is_refused(out: Path) -> None:
    from omnic.targets.tvm.native import program_name

    (out / program_name()).write_bytes(b"no library")
    with pytest.raises(BundleError) as caught:
        Program(out)
    assert caught.value.message.startswith(f"{out / program_name()}: not a program this machine can load:")


def test_a_forced_level_that_the_machine_lacks_is_refused(out: Path) -> None:
    about = (out / ABOUT_FILE).read_text().replace('"level": "best"', '"level": "neon"')
    (out / ABOUT_FILE).write_text(about)
    with pytest.raises(InputError) as caught:
        Program(out)
    assert caught.value.message == (
        "this CPU lacks the instructions of the level 'neon' that the program was compiled to use"
    )


def test_states_grouped_along_their_tokens_are_refused(tmp_path: Path) -> None:
    module = KvQuant(bits=4, keys="channel").run(small_module()).module
    with pytest.raises(InputError) as caught:
        emitted(module, tmp_path / "out")
    assert caught.value.message == (
        "tvm cannot take cache_close of blocks.0.attn (small.yaml:10:5): states grouped along their tokens are not "
        "kept here: use groups of a token"
    )
