"""The passes of a compile: which run, what they are lent, and how to look in between."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from omnic import cli
from omnic.compiler import lowering
from omnic.compiler.calibration import calibration_windows, save_calibration
from omnic.compiler.lowering import CalibrationSource, listed_passes, lower, pass_context, results_folder
from omnic.compiler.options import with_passes
from omnic.compiler.pipeline import CompileRequest, compile_spec
from omnic.errors import DiagnosticError, InputError, InternalError, OmnicError
from omnic.ir.graph import Module
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import NOTHING, PassContext, PassResult, Remark
from omnic.passes.constant_folding import ConstantFolding
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec, load_spec, parse_spec
from omnic.spec.presets import preset_names
from omnic.training.heldout import heldout

SPEC = """omnic: 1
model: small
vocab: {size: 300}
context: 64
chunk: 16
blocks:
  - {width: 32, attention: {kind: mha, heads: 4, head_dim: 8}, ffn: {kind: dense, hidden: 64, activation: swiglu}}
passes:
  - constant-folding: {limit: 8}
  - gate-up-merge
"""


@pytest.fixture
def spec() -> Spec:
    return parse_spec(SPEC, file="small.yaml")


def omnic(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def names(spec: Spec) -> list[str]:
    return [p.name for p in listed_passes(spec)]


def test_passes_of_the_command_line_come_after_the_specs(spec: Spec) -> None:
    both = with_passes(spec, ["cse", "constant-folding{limit=16}"])
    assert names(both) == ["constant-folding", "gate-up-merge", "cse", "constant-folding"]
    assert listed_passes(both)[0].made == ConstantFolding(8)
    assert listed_passes(both)[3].made == ConstantFolding(16)
    assert names(with_passes(spec, ["cse"], replace=True)) == ["cse"]
    assert names(with_passes(spec, [], replace=True)) == []
    assert with_passes(spec, []) is spec


def test_a_pipeline_is_its_passes(spec: Spec) -> None:
    assert names(with_passes(spec, ["clean-up"], replace=True)) == [
        "constant-folding", "layout-cleaning", "cse", "dead-code",
    ]
    assert listed_passes(load_spec(preset_names()[0])) == ()
    with pytest.raises(DiagnosticError) as caught:
        listed_passes(with_passes(spec, ["merge{group=3}"]))
    assert "'merge' is a pipeline and takes no options" in caught.value.render()


@pytest.mark.parametrize(("old", "new", "want"), [
    ("limit: 8", "limit: 0", [
        "small.yaml:9:31: error: option 'limit' of pass 'constant-folding' must be 1..16777216, got 0",
        "    - constant-folding: {limit: 0}",
        "                                ^",
    ]),
    ("limit: 8", "limitt: 8", [
        "small.yaml:9:32: error: pass 'constant-folding' has no option 'limitt'",
        "    - constant-folding: {limitt: 8}",
        "                                 ^",
        "  did you mean 'limit'?",
    ]),
    ("- gate-up-merge", "- gate-upmerge", [
        "small.yaml:10:5: error: unknown pass 'gate-upmerge'",
        "    - gate-upmerge",
        "      ^^^^^^^^^^^^",
        "  did you mean 'gate-up-merge'?",
    ]),
])
def test_a_wrong_entry_is_shown_where_it_stands(old: str, new: str, want: list[str]) -> None:
    with pytest.raises(DiagnosticError) as caught:
        listed_passes(parse_spec(SPEC.replace(old, new), file="small.yaml"))
    assert caught.value.render().splitlines() == want


@pytest.mark.parametrize(("text", "want"), [
    ("constant-folding{limit=none}", "--pass:1:18: error: option 'limit' of pass 'constant-folding' must be int"),
    ("cse{x=1}", "--pass:1:5: error: pass 'cse' has no option 'x'"),
    ("cse{x}", "'x' is not an option of pass 'cse'"),
    ("cse {", "'cse {' is not a pass"),
    ("rope-rescale", "--pass:1:1: error: pass 'rope-rescale' needs the option 'context'"),
    ("rope-rescale{context=4, context=8}", "option 'context' of pass 'rope-rescale' is given twice"),
])
def test_a_wrong_pass_on_the_command_line(spec: Spec, text: str, want: str) -> None:
    with pytest.raises(OmnicError) as caught:
        listed_passes(with_passes(spec, [text]))
    assert want in caught.value.render()


def test_a_pass_that_refuses_names_its_line(spec: Spec) -> None:
    wanted = with_passes(spec, ["rope-rescale{context=32}"])
    with pytest.raises(DiagnosticError) as caught:
        lower(build(wanted), listed_passes(wanted), NOTHING)
    assert caught.value.render().startswith("--pass:1:1: error: option 'context' of pass 'rope-rescale' must be at")


# -- looking in between --------------------------------------------------------------------------------------------
def test_why_print_after_and_stop_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SPEC)
    common = ("compile", file, "--target", "torch", "--seed", 1, "--parity", "off", "-o", tmp_path / "b")
    code, out, err = omnic(capsys, *common, "--why", "gate-up-merge", "--print-after", "gate-up-merge")
    assert code == 0
    assert "gate-up-merge: changed the module\n  gate-up-merge: applied 1 time\n" in out
    assert "# after gate-up-merge (2 of 2)" in err and "@blocks.0.ffn.gate_up" in err
    assert "# after constant-folding" not in err
    # The bundle is there now; why is answered from its manifest.
    code, out, _ = omnic(capsys, *common, "--why", "constant-folding", "--json")
    assert code == 0
    assert json.loads(out)["why"] == {
        "pass": "constant-folding", "changed": False, "applied": {}, "missed": [], "said": [],
    }
    code, out, _ = omnic(capsys, "compile", file, "--target", "torch", "--stop-after", "front")
    assert code == 0 and out.startswith("module @small {") and "gate_up" not in out
    code, out, _ = omnic(capsys, "compile", file, "--target", "torch", "--stop-after", "legalise")
    assert code == 0 and "gate_up" in out
    code, _, err = omnic(capsys, *common, "--why", "cse")
    assert code == 2
    assert "--why cse: it is not among the passes of this compile (constant-folding, gate-up-merge)" in err
    assert "add it with --pass cse" in err
    code, _, err = omnic(capsys, *common, "--stop-after", "gate-up-merg")
    assert code == 2 and "did you mean 'gate-up-merge'?" in err


def test_other_passes_are_another_bundle(tmp_path: Path, spec: Spec) -> None:
    def key(*passes: str) -> str:
        request = CompileRequest(with_passes(spec, passes), "torch", tmp_path / "b", seed=1, force=True, parity="off",
                                 results=tmp_path / "r")
        return compile_spec(request).manifest.key

    assert len({key(), key("cse"), key("constant-folding{limit=16}"), key("constant-folding{limit=32}")}) == 4


# -- what passes are lent ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Break:
    """Give the function a result that no node makes."""

    name: ClassVar[str] = "break"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        function = module.function()
        kept = dataclasses.replace(function, nodes=function.nodes[1:])
        return PassResult(module.with_function(kept), True, (Remark("break", "done"),))


def test_what_a_pass_makes_is_verified(spec: Spec) -> None:
    with pytest.raises(InputError) as caught:
        lower(build(spec), [lowering.Listed(Break(), {})], NOTHING)
    assert "pass 'break' made a module that is not valid\n" in caught.value.message
    assert not isinstance(caught.value, InternalError), "a pass of another package is not our defect"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    path = load_spec("tiny").resolve("tokenizer")
    assert path is not None
    return Tokenizer.load(path)


def test_calibration_is_of_the_training_corpus_and_never_held_out(tokenizer: Tokenizer) -> None:
    tiny = load_spec("tiny")
    found = calibration_windows(tiny, tokenizer, windows=6, length=64)
    assert found.tokens.shape == (6, 64) and found.tokens.dtype == np.int64
    assert found.text.startswith("6 windows of 64 tokens of the training corpus (stdlib), sha256 ")
    again = calibration_windows(tiny, tokenizer, windows=6, length=64)
    assert found.sha256 == again.sha256
    held = "\n".join(heldout().texts())
    pieces = [tokenizer.decode([int(i) for i in row]) for row in found.tokens]
    assert not any(piece.strip() in held for piece in pieces)


def test_held_out_text_given_as_calibration_is_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "held.py"
    file.write_text(heldout().texts()[0], "utf-8")
    with pytest.raises(InputError) as caught:
        calibration_windows(load_spec("tiny"), tokenizer, file)
    assert "the calibration text (held.py) has " in caught.value.message


def test_saved_windows_know_their_tokenizer_and_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tiny = load_spec("tiny")
    found = calibration_windows(tiny, tokenizer, windows=2, length=16)
    save_calibration(found, tmp_path / "c.safetensors", tokenizer, tiny.vocab.size)
    back = calibration_windows(tiny, tokenizer, tmp_path / "c.safetensors")
    assert back.sha256 == found.sha256 and back.text == found.text
    other = parse_spec(SPEC, file="small.yaml")
    with pytest.raises(InputError) as caught:
        calibration_windows(other, None, tmp_path / "c.safetensors")
    assert caught.value.message.endswith(
        f"was tokenised with the tokenizer {tokenizer.sha256[:12]}, small has no tokenizer"
    )
    save_calibration(found, tmp_path / "d.safetensors", None, 4096)
    with pytest.raises(InputError, match="is of a model with a vocabulary of 4096"):
        calibration_windows(other, None, tmp_path / "d.safetensors")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", None, "calibration file .*a.txt does not exist"),
    ("a.txt", b"too short", "has [0-9]+ tokens, one window has 256"),
    ("a.txt", b"\xff\xfe", "a.txt is not UTF-8 text .byte 0."),
    ("a.safetensors", None, "calibration file .*a.safetensors does not exist"),
    ("a.safetensors", b"junk", "a.safetensors is not a calibration file"),
])
def test_calibration_files_that_cannot_be_used(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        calibration_windows(load_spec("tiny"), tokenizer, tmp_path / name)


def test_the_context_of_a_compile(tmp_path: Path, spec: Spec) -> None:
    module = build(spec)
    store = WeightStore.random(module, 0)
    context = pass_context(spec, store, "seed 0", None, ResultStore(tmp_path))
    assert context.need_weights("x") is store and context.weights_key == "seed 0"
    assert context.need_results("x").folder == tmp_path
    with pytest.raises(InputError, match="pass 'x' needs text to calibrate on, and there is none"):
        context.need_calibration("x")
    logits = context.need_executor("x")(module, store).forward(np.asarray([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 300)
    given = pass_context(spec, store, "seed 0", None, ResultStore(tmp_path), CalibrationSource(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="small has no tokenizer to read calibration text with"):
        given.need_calibration("x")


def test_results_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert results_folder() == tmp_path / "omnic" / "results"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert results_folder() == Path.home() / ".cache" / "omnic" / "results"
