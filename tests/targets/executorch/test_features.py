"""Lengths of verification, weights beside the program, delegates of other devices, times by node: without lowering."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnic.compiler.profiling import lines_of
from omnic.compiler.summary import print_summary
from omnic.errors import BundleError, InputError, MissingDeviceError
from omnic.models import build
from omnic.spec import load_spec, scale
from omnic.targets.executorch import delegates
from omnic.targets.executorch.emit import with_verify
from omnic.targets.executorch.methods import methods_of
from omnic.targets.executorch.profile import Event, seconds_of, shared_out
from omnic.targets.executorch.program import Program, open_program
from omnic.targets.executorch.stored import Held, ProgramSource, find_weights
from omnic.targets.executorch.target import TARGET


@pytest.mark.parametrize(
    ("given", "lengths"), [("none", ()), (16, (16,)), ("16, 4,4", (4, 16)), ([8, 2], (2, 8)), ((), ())]
)
def test_lengths_of_verification_are_whole_numbers(given: object, lengths: tuple[int, ...]) -> None:
    assert TARGET.options({"verify": given})["verify"] == lengths


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        (
            {"verify": "a"},
            "target executorch: verify are whole numbers above 0, not 'a'",
            "write verify=16,64",
        ),
        ({"verify": 0}, "target executorch: verify are whole numbers above 0, not '0'", "write verify=16,64"),
        ({"verify": [1, 4]}, "target executorch: verify=1 is what session_decode does", "leave it out"),
        (
            {"weights": "outside"},
            "target executorch: weights must be one of inside, ptd, not 'outside'",
            None,
        ),
        (
            {"weights": "ptd", "delegate": "coreml"},
            "target executorch: weights=ptd cannot be had with delegate=coreml, which keeps the weights in a form of "
            "its own inside the program",
            "leave out weights, or choose one of these delegates: xnnpack, portable",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_said_word_for_word(given: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        TARGET.options(given)
    assert (str(error.value), error.value.hint) == (message, hint)


@pytest.mark.parametrize("given", ["none", None, [], ""])
def test_no_length_is_no_method_that_verifies(given: object) -> None:
    # A spec reads none as null.
    assert TARGET.options({"verify": given})["verify"] == ()


def test_a_length_beyond_a_call_is_refused_before_anything_is_lowered() -> None:
    module = build(scale(load_spec("tiny")))
    assert module.dims["T"].high == 64
    assert with_verify(TARGET.options({}), module)["verify"] == (16,)
    with pytest.raises(InputError) as error:
        with_verify(TARGET.options({"verify": 65}), module)
    assert str(error.value) == (
        "target executorch: verify=65, and a call of this model takes at most 64 tokens (chunk)"
    )
    assert error.value.hint == "choose at most 64, or raise chunk in the spec"


def test_a_method_of_fixed_length_gives_the_logits_of_all_its_tokens() -> None:
    module = build(scale(load_spec("tiny")))
    options = with_verify(TARGET.options({"verify": "4,16"}), module)
    methods = {m.name: m for m in methods_of(module, options)}
    assert list(methods)[:4] == ["session_prefill", "session_decode", "verify_4", "verify_16"]
    function = methods["verify_4"].function
    assert function is not None
    shapes = {p.value.name: p.value.type.shape for p in function.params}
    assert (shapes["tokens"], shapes["rows"]) == ((1, 4), (1, 4))


def about(folder: Path, **more: object) -> Path:
    """Write what a session reads first."""
    folder.mkdir(exist_ok=True)
    said = {"methods": {}, "states": {}, "state": "buffers", "delegate": "xnnpack", **more}
    (folder / "program.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("delegate", "title", "needs"),
    [
        (
            "coreml",
            "Core ML",
            "it needs an iPhone or iPad with iOS 18 or a Mac with macOS 15, and an ExecuTorch with its Core ML backend",
        ),
        (
            "vulkan",
            "Vulkan",
            "it needs a device with a GPU for Vulkan 1.1, such as an Android phone, and an ExecuTorch with its Vulkan "
            "backend",
        ),
    ],
)
def test_a_program_for_another_device_says_where_it_runs(
    tmp_path: Path, delegate: str, title: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnic.targets.executorch.runtime.backend_names", lambda: ["XnnpackBackend"])
    folder = about(tmp_path / "bundle", delegate=delegate)
    (folder / "program.pte").write_bytes(b"")
    with pytest.raises(MissingDeviceError) as error:
        Program(folder)
    assert str(error.value) == (
        f"{folder}: the program is for the {title} delegate of ExecuTorch, which does not run here"
    )
    assert error.value.hint == needs
    assert error.value.exit_code == 3
    assert needs == f"it needs {delegates.missing_device(delegate)}"


def test_what_runs_here_needs_nothing() -> None:
    assert delegates.missing_device("xnnpack") == delegates.missing_device("portable") == ""


def test_a_bundle_without_its_weights_says_which_file(tmp_path: Path) -> None:
    folder = about(tmp_path / "bundle", weights="ptd")
    (folder / "program.pte").write_bytes(b"")
    with pytest.raises(BundleError, match=r"the bundle has no file 'weights\.ptd'"):
        Program(folder)
    with pytest.raises(BundleError, match=r"the bundle has no file 'program\.pte'"):
        open_program(folder / "sub" / "program.pte")


def test_weights_are_found_in_either_file_and_read_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    inside, beside = (random.standard_normal((6, 8)).astype(np.float32) for _ in range(2))
    program, data = tmp_path / "program.pte", tmp_path / "weights.ptd"
    program.write_bytes(b"head" + inside.tobytes())
    data.write_bytes(b"PTD1....." + b"..." + beside.tobytes())
    held = {n: Held(a, "as it is", a.shape, "float32") for n, a in (("inside", inside), ("beside", beside))}
    found = find_weights(program, held, data)
    assert {n: e["file"] for n, e in found.items()} == {"inside": "program.pte", "beside": "weights.ptd"}
    table = tmp_path / "weights.json"
    table.write_text(json.dumps(found))
    source = ProgramSource(program, table)
    assert np.array_equal(source.read("beside", ((0, 6), (2, 5))), beside[:, 2:5])
    data.unlink()
    with pytest.raises(BundleError, match=r"the bundle has no file 'weights\.ptd'"):
        ProgramSource(program, table)


def test_the_seconds_of_a_delegate_go_to_the_nodes_it_computes() -> None:
    operators = [["mul", "a/rms_norm.0"], ["linear", "a/rms_norm.0"], ["linear", "a/linear.0"], ["view_copy", "a/r.0"]]
    events = [
        Event(3, "", "Square (NC) #1", 1.0),
        Event(3, "", "Fully Connected (NC, F32) GEMM #1", 2.0),
        # XNNPACK's own rounding of the activations belongs to the product behind it.
        Event(3, "", "Convert (NC, F32, QD8) #1", 4.0),
        Event(3, "", "Fully Connected (NC, QD8, F32, QB4W) GEMM #1", 8.0),
        Event(3, "", "Static Reshape (NC) #1", 16.0),
    ]
    assert shared_out(events, operators) == [
        ("a/rms_norm.0", 1.0), ("a/rms_norm.0", 2.0), ("a/linear.0", 12.0), ("a/r.0", 16.0)
    ]  # fmt: skip
    whole = [
        Event(1, "native_call_embedding.out", "", 0.5),
        Event(1, "OPERATOR_CALL", "", 0.75),
        *events,
        Event(3, "DELEGATE_CALL", "", 40.0),
        Event(9, "OPERATOR_CALL", "", 0.125),
        Event(0, "Method::execute", "", 99.0),
    ]
    found = seconds_of(whole, {"1": [["embedding", "embed/embedding.0"]], "3": operators})
    assert found == {
        "embed/embedding.0": 0.75, "a/rms_norm.0": 3.0, "a/linear.0": 12.0, "a/r.0": 16.0, "": 40.0 - 31.0 + 0.125
    }  # fmt: skip


def test_the_command_line_never_calls_a_program_for_another_device_ok(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "bundle": "b", "model": "m", "target": "executorch", "profile": "", "bytes": 1, "class": "f32", "parity": None,
        "parity_ok": None, "parity_cases": [], "fidelity": None, "prefill": None, "fallbacks": [], "needs": "a phone",
    }  # fmt: skip
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "parity    not measured here: needs a phone" in printed
    assert "ok" not in printed


def test_times_are_added_up_by_line_of_the_spec_and_op() -> None:
    module = build(scale(load_spec("tiny")))
    products = [n for n in module.function().nodes if n.op == "linear"][:3]
    found = lines_of({n.name: 2.0**i for i, n in enumerate(products)}, module)
    assert sum(row["seconds"] for row in found) == 7.0
    assert found == sorted(found, key=lambda row: -row["seconds"])
    assert {row["op"] for row in found} == {"linear"}
    place = products[0].loc
    assert place is not None
    assert (place.file, place.line) in {(row["file"], row["line"]) for row in found}


def test_a_core_ml_program_has_methods_of_fixed_length_alone() -> None:
    module = build(scale(load_spec("tiny")))
    options = with_verify(TARGET.options({"delegate": "coreml"}), module)
    methods = methods_of(module, options)
    assert [m.name for m in methods] == ["session_decode", "verify_16", "mtp", "save", "restore"]
    assert {m.fixed for m in methods if m.function is not None} == {("T", "R")}
