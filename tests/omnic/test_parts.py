"""Parity of parts: states of codes, recent tokens, and weights that a calibrating pass stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from omnic.compiler.options import with_passes
from omnic.compiler.parts import check_parts, chosen_parts, parity_of_parts, parts_of, tokens_of
from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.compiler.progress import silent
from omnic.errors import BundleError
from omnic.ir.numeric import Case
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.spec import parse_spec
from tests.passes.rings import RINGS

CODES = "kv-quant{bits=4, keep=8}"
BLOCKS = "kv-quant{bits=4, keys=channel, block=16, keep=4, recent=36}"
STORED = "int4-packing{kind=i4, method=hqq, group=16}"


def compiled(folder: Path, target: str, passes: Sequence[str]) -> Bundle:
    spec = with_passes(parse_spec(RINGS), list(passes))
    request = CompileRequest(spec, target, folder / "bundle", seed=3, parity="off", results=folder / "results")
    compile_spec(request)
    return open_bundle(folder / "bundle")


def checked(bundle: Bundle, results: Path | None) -> tuple[Case, ...]:
    return check_parts(bundle, {"seed": 3}, results, silent)


@pytest.mark.parametrize(("target", "passes"), [
    ("onnx", (CODES, STORED)), ("onnx", (BLOCKS,)), pytest.param("torch", (CODES,), marks=pytest.mark.slow)])
def test_parts_with_states_of_codes_and_stored_weights(target: str, passes: Sequence[str], tmp_path: Path) -> None:
    bundle = compiled(tmp_path, target, passes)
    # Attention reads more tokens than a ring of recent ones holds, so that codes are among them.
    assert tokens_of(bundle.module) == (17 if CODES in passes else 28)
    cases = checked(bundle, tmp_path / "results")
    assert all(c.ok for c in cases), [c.problem for c in cases if not c.ok]
    told = " ".join(c.name for c in cases)
    for part in ("blocks.0", "blocks.1", "blocks.2", "head"):
        assert f"forward {part}:" in told


def test_a_program_whose_codes_are_wrong_fails(tmp_path: Path) -> None:
    """The program of other bits is held against this module: the parts whose states they are differ."""
    bundle = compiled(tmp_path / "four", "torch", [CODES])
    other = compiled(tmp_path / "two", "torch", [CODES.replace("4", "2")])
    program, theirs = bundle.path / "module.ir", (other.path / "module.ir").read_text(encoding="utf-8")
    ours = bundle.module
    program.write_text(theirs, encoding="utf-8")
    broken = open_bundle(bundle.path, unfinished=True)
    object.__setattr__(broken, "module", ours)
    assert {p.name for p in chosen_parts(parts_of(ours.function()))} >= {"blocks.0", "blocks.1", "blocks.2"}
    cases = check_parts(broken, {"seed": 3}, None, silent)
    wrong = [c.name for c in cases if not c.ok]
    assert [n.split(": mixed")[0] for n in wrong] == [f"forward blocks.{n}" for n in range(3)]
    assert all(n.endswith(", of attention") for n in wrong)
    problem = next(c.problem for c in cases if not c.ok)
    assert problem.startswith("rms of the error over rms is")


def test_a_child_process_finds_stored_weights_and_says_what_it_lacks(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, "onnx", [STORED])
    assert all(c.ok for c in parity_of_parts(bundle, {"seed": 3}, tmp_path / "results", silent))
    with pytest.raises(BundleError, match=r"stored result [0-9a-f]+ is not in"):
        checked(bundle, tmp_path / "empty")
