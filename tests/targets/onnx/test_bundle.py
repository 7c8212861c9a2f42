"""What a compile leaves: options, files, weights read back, tied once, and the look inside a saved program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.compiler.parts import empty_states_of, parts_of
from omnic.errors import BundleError, InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Recipe, State
from omnic.ir.reference import Interpreter
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import parse_spec
from omnic.targets.onnx.target import TARGET
from omnic.targets.onnx.tensors import ALIGNMENT, Layout, Piece, ProgramSource, TensorTable
from tests.targets.onnx.helpers import MLA, emitted, model, spec_text

MOE = "{kind: moe, hidden: 24, experts: 5, top_k: 2, shared: 1, activation: swiglu}"
ODD = "tie: true\ndtype: bf16\nbias: true\nheads: {mtp: {kind: block, depth: 1}}\n"


def test_options_have_defaults_and_are_checked() -> None:
    assert TARGET.options({}) == {"profile": "fused", "ep": "cpu", "accuracy_level": 4, "prepacked": False}
    assert TARGET.options({"accuracy_level": "0"})["accuracy_level"] == 0
    with pytest.raises(InputError, match="target onnx: accuracy_level must be one of 4, 0, not '3'"):
        TARGET.options({"accuracy_level": 3})
    assert TARGET.options({"profile": "plain"})["profile"] == "plain"
    with pytest.raises(InputError, match="target onnx has no option 'profil'") as error:
        TARGET.options({"profil": "plain"})
    assert error.value.hint == "did you mean 'profile'?"
    with pytest.raises(InputError, match="target onnx: profile must be one of fused, plain, not 'fast'"):
        TARGET.options({"profile": "fast"})


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize("text", [spec_text(extra=ODD), spec_text(MLA, MOE)], ids=["dense", "experts"])
def test_weights_come_back_as_they_went_in(text: str, profile: str, tmp_path: Path) -> None:
    module, weights = model(text)
    emitted(module, weights, tmp_path, profile)
    back = WeightStore.loaded(module, TARGET.weights(tmp_path))
    for name in module.weights:
        assert np.array_equal(back.array(name), weights.array(name)), name
    name = next(iter(module.weights))
    assert np.array_equal(back.array(name, (3, 7)), weights.array(name, (3, 7)))


@pytest.mark.parametrize("profile", ["fused", "plain"])
def test_a_tied_table_and_every_other_weight_lies_once(profile: str, tmp_path: Path) -> None:
    module, weights = model(spec_text(extra=ODD))
    made = emitted(module, weights, tmp_path, profile)
    assert not [r for r in made.remarks if "lies" in r]
    assert set(made.programs) == {"forward", "mtp"}
    numbers = sum(-(-4 * weights.array(n).size // ALIGNMENT) * ALIGNMENT for n in module.weights)
    tables = 2 * 2 * ALIGNMENT  # cos and sin of each program
    assert (tmp_path / "weights.bin").stat().st_size <= numbers + tables


def values_of(module: Module, weights: WeightStore, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {name: np.asarray(a) for name, a in inputs.items()}

    def keep(node: object, results: tuple[np.ndarray, ...]) -> None:
        found.update({v.name: np.asarray(r) for v, r in zip(node.results, results, strict=True)})  # type: ignore[attr-defined]

    Interpreter(module, weights).run(inputs, trace=keep)
    states = empty_states_of(module, module.function())
    return {**found, **{p.value.name: states[p.state] for p in module.function().params if p.state}}


def inputs_of(count: int) -> dict[str, np.ndarray]:
    steps = np.arange(count)[None]
    ids = np.random.default_rng(0).integers(0, 96, (1, count))
    return {
        "tokens": ids,
        "positions": steps,
        "start": np.zeros(1, np.int64),
        "length": np.full(1, count),
        "rows": steps,
    }


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize("text", [spec_text(extra=ODD), spec_text(MLA, MOE)], ids=["dense", "experts"])
def test_every_value_it_shows_is_the_references(text: str, profile: str, tmp_path: Path) -> None:
    module, weights = model(text)
    emitted(module, weights, tmp_path, profile)
    shown = TARGET.preserved(tmp_path)
    assert {"x", "x.1", "x.2", "logits", "merged"} <= set(shown)
    assert ("route_indices" in shown) == (text != spec_text(extra=ODD))
    wanted = values_of(module, weights, inputs_of(9))
    states = {p.value.name for p in module.function().params if p.state}
    found = TARGET.capture(tmp_path, inputs_of(9), [n for n in shown if n not in states])
    for name, numbers in found.items():
        assert np.abs(numbers - wanted[name]).max() <= 1e-4 * max(1.0, np.abs(wanted[name]).max()), name


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize("text", [spec_text(extra=ODD), spec_text(MLA, MOE)], ids=["dense", "experts"])
def test_every_part_runs_alone(text: str, profile: str, tmp_path: Path) -> None:
    """Also a layer whose skip norm adds what the layer before it made."""
    module, weights = model(text)
    emitted(module, weights, tmp_path, profile)
    values = values_of(module, weights, inputs_of(8))
    parts = [p for p in parts_of(module.function()) if p.name != "index"]
    assert [p.name for p in parts] == ["embed", "blocks.0", "blocks.1", "final_norm", "head"]
    for part in parts:
        given = {v.name: values[v.name] for v in part.inputs}
        found = TARGET.capture_part(tmp_path, given, [v.name for v in part.outputs])
        for name, numbers in found.items():
            assert np.abs(numbers - values[name]).max() <= 1e-5 * max(1.0, np.abs(values[name]).max()), name


def test_a_part_that_lacks_a_value_names_it(tmp_path: Path) -> None:
    module, weights = model(spec_text())
    emitted(module, weights, tmp_path, "fused")
    with pytest.raises(InputError, match="to show logits of @forward the values rows are needed too"):
        TARGET.capture_part(tmp_path, {"normed.4": np.zeros((1, 2, 32))}, ["logits"])
    with pytest.raises(InputError, match="the program @forward does not show the value 'logit'") as error:
        TARGET.capture(tmp_path, inputs_of(2), ["logit"])
    assert error.value.hint == "did you mean 'logits'?"


def test_missing_and_short_files_are_bundle_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the bundle has no file 'weights.json'"):
        TARGET.weights(tmp_path)
    with pytest.raises(BundleError, match="the bundle has no program 'forward'"):
        TARGET.preserved(tmp_path)
    module, weights = model(spec_text())
    emitted(module, weights, tmp_path, "fused")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"weights.bin is truncated: its tensors end at byte \d+, the file has 5000"):
        TARGET.weights(tmp_path)
    (tmp_path / "forward.onnx").write_bytes(b"not a program")
    with pytest.raises(BundleError, match=r"forward.onnx: not a"):
        TARGET.preserved(tmp_path)


def test_a_state_of_another_kind_is_refused(tmp_path: Path) -> None:
    module = build(parse_spec(spec_text(extra="kv_dtype: bf16\n"), "small.yaml"))
    with pytest.raises(
        InputError, match=r"onnx cannot keep state kv.0.k of @forward \(small.yaml:\d+:5\) as bf16"
    ) as error:
        emitted(module, WeightStore.random(module, 0), tmp_path, "fused")
    assert error.value.hint == "set kv_dtype to f32 or f16"
    builder = ModuleBuilder("recurrent", {"B": DimRange(1, 4)})
    kind = TensorType(DType.F32, (symbol("B"), 2, 8))
    builder.state(State("conv.0", kind, "conv", 0, rollback="snapshot", snapshots=4))
    f = builder.function("forward")
    before = f.param("conv.0", kind, state="conv.0")
    f.result("conv.0", f.op("neg", before), state="conv.0")
    with pytest.raises(
        InputError, match=r"onnx cannot update state conv.0 of @forward in place: it is not written token by token"
    ):
        emitted(builder.build(), WeightStore.random(builder.build(), 0), tmp_path, "fused")


@pytest.mark.parametrize("limit", [64, 400, 1 << 20])
def test_any_layout_is_written_in_any_slices(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, turned, packed, stacked, interleaved, and one expert alone, however few rows are in memory at a time."""
    monkeypatch.setattr("omnic.targets.onnx.tensors.SLICE_BYTES", limit)
    shapes = {"a": (7, 10), "b": (3, 10), "e": (4, 6, 5), "g": (4, 6, 5), "v": (9,)}
    builder = ModuleBuilder("weights", {})
    for name, shape in shapes.items():
        builder.weight(name, TensorType(DType.F32, shape), Recipe("normal", {"std": 1.0}))
    store = WeightStore.random(builder.build(), 3)
    of = {name: store.array(name) for name in shapes}
    wanted = {
        "plain": (of["e"], (Piece("e", shapes["e"]),)),
        "turned": (of["a"].T, (Piece("a", shapes["a"], swap=True, axis=1),)),
        "packed": (
            np.concatenate([of["a"].T, of["b"].T], 1),
            (Piece("a", shapes["a"], swap=True, axis=1), Piece("b", shapes["b"], swap=True, axis=1, offset=7)),
        ),
        "stack": (np.swapaxes(of["e"], 1, 2), (Piece("e", shapes["e"], swap=True, axis=2),)),
        "interleaved": (
            np.stack([of["g"], of["e"]], 2).reshape(4, 12, 5),
            (Piece("g", shapes["g"], axis=1, stride=2), Piece("e", shapes["e"], axis=1, offset=1, stride=2)),
        ),
        "expert": (of["e"][2].T, (Piece("e", shapes["e"], expert=2, swap=True),)),
        "vector": (of["v"], (Piece("v", shapes["v"]),)),
    }
    table = TensorTable()
    for name, (numbers, pieces) in wanted.items():
        assert table.add(Layout(name, numbers.shape, pieces)) % ALIGNMENT == 0
    table.add(Layout("numbers", (3,), numbers=np.arange(3.0)))
    table.write(tmp_path / "weights.bin", store, lambda what, share: None)
    for name, (numbers, _) in wanted.items():
        found = np.memmap(tmp_path / "weights.bin", np.float32, "r", table.offsets[name], numbers.shape)
        assert np.array_equal(found, numbers), name
    assert table.copies() == {"a": 2, "e": 3}
    source = ProgramSource(tmp_path, table.record())
    for name in shapes:
        box = tuple((1, d - 1) for d in shapes[name])
        assert np.array_equal(source.read(name, box), of[name][tuple(slice(*b) for b in box)]), name
