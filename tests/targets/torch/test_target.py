"""The torch target as the compiler sees it: files of a bundle, capture, options, loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.ir.reference import Interpreter
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.targets import get_target, target_names
from omnic.targets.base import EmitRequest
from omnic.targets.torch.session import WEIGHTS_FILE
from tests.models.variants import variant


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, WeightStore]:
    folder = tmp_path_factory.mktemp("torch")
    module = variant("tiny_moe")
    store = WeightStore.random(module, 3)
    made = get_target("torch").emit(EmitRequest(module, store, folder, {}, lambda what, share: None))
    (folder / "module.ir").write_text(print_module(made.module))
    assert made.kind == "torch" and made.programs == {"forward": "inference.py", "training": "model.py"}
    return folder, made.module, store


def arguments(tokens: int = 8) -> dict[str, Any]:
    steps = np.arange(tokens)[None]
    return {
        "tokens": np.random.default_rng(0).integers(0, 512, (1, tokens)),
        "positions": steps,
        "rows": steps,
        "start": np.zeros(1, np.int64),
        "length": np.full(1, tokens),
    }


def test_both_python_files_run_as_they_are(emitted: tuple[Path, Any, WeightStore]) -> None:
    folder, _, _ = emitted
    code = "import model, inference; assert model.Model and inference.forward and inference.mtp"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_the_weights_are_those_of_the_module_in_the_specs_dtype(emitted: tuple[Path, Any, WeightStore]) -> None:
    folder, module, store = emitted
    again = WeightStore.load(module, folder / WEIGHTS_FILE)
    for name in module.weights:
        assert np.array_equal(again.array(name), store.array(name)), name
    stored = sum(w.type.bytes() for w in module.weights.values())
    assert 0 <= (folder / WEIGHTS_FILE).stat().st_size - stored < 8192
    assert set(get_target("torch").weights(folder).names()) == set(module.weights)


def test_capture_shows_every_value_it_says_it_can(emitted: tuple[Path, Any, WeightStore]) -> None:
    folder, module, store = emitted
    target = get_target("torch")
    names = target.preserved(folder)
    assert len(names) > 20
    wanted: dict[str, Any] = {}
    Interpreter(module, store).run(
        arguments(),
        trace=lambda node, results: wanted.update(zip((v.name for v in node.results), results, strict=True)),
    )
    found = target.capture(folder, arguments(), names)
    for name in names:
        scale = max(float(np.sqrt(np.mean(np.square(wanted[name])))), 1e-6)
        assert np.abs(found[name] - wanted[name]).max() <= 2e-5 * scale, name


def test_a_part_runs_from_the_values_that_determine_it(emitted: tuple[Path, Any, WeightStore]) -> None:
    folder, module, store = emitted
    target = get_target("torch")
    node = next(n for n in module.function().nodes if n.op == "mla")
    known: dict[str, Any] = {**arguments()}
    Interpreter(module, store).run(
        arguments(), trace=lambda node, results: known.update(zip((v.name for v in node.results), results, strict=True))
    )
    inputs = {v.name: known[v.name] for v in node.inputs() if not v.weight}
    found = target.capture_part(folder, inputs, [node.result.name])[node.result.name]
    assert np.allclose(found, known[node.result.name], atol=1e-6)
    with pytest.raises(InputError) as caught:
        target.capture_part(folder, {}, [node.result.name])
    assert caught.value.message.endswith("is needed and is not among the inputs")
    with pytest.raises(InputError) as caught:
        target.capture_part(folder, arguments(), ["logit"])
    assert caught.value.render() == "error: @forward has no value %logit\n  did you mean '%logits'?"


def test_a_truncated_weight_file_is_named(emitted: tuple[Path, Any, WeightStore], tmp_path: Path) -> None:
    folder, module, _ = emitted
    cut = tmp_path / WEIGHTS_FILE
    cut.write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1000])
    with pytest.raises(BundleError) as caught:
        WeightStore.load(module, cut)
    assert str(cut) in caught.value.message


def test_an_option_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        get_target("torch").options({"compute": "ane"})
    assert caught.value.render() == "error: the target torch has no option 'compute'\n  it takes none: remove the key"


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    assert {"onnx", "torch"} <= set(target_names())
    with pytest.raises(InputError) as caught:
        get_target("torhc")
    assert caught.value.render() == "error: unknown target 'torhc'\n  did you mean 'torch'?"


def test_the_registry_imports_no_backend() -> None:
    code = "import sys, omnic.targets as t; t.target_names(); assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_state_read_after_it_was_overwritten_is_refused() -> None:
    from omnic.errors import InternalError
    from omnic.ir.builder import ModuleBuilder
    from omnic.ir.dims import DimRange, symbol
    from omnic.ir.graph import State
    from omnic.ir.types import DType, TensorType
    from omnic.targets.torch.text.inference import emit_inference

    builder = ModuleBuilder("one", {"B": DimRange(1, 4), "T": DimRange(1, 8)})
    f = builder.function("forward")
    rows, index = symbol("B"), TensorType(DType.I64, (symbol("B"),))
    state = builder.state(State("kv", TensorType(DType.F32, (rows, 32, 4)), "latent", 0))
    before = f.param("kv", state.type, state="kv")
    x = f.param("x", TensorType(DType.F32, (rows, symbol("T"), 4)))
    start, length = f.param("start", index), f.param("length", index)
    after = f.op("cache_write", before, x, start, length)
    f.result("old", f.emit("cache_read", before, start, length)[0])
    f.result("kv", after, state="kv")
    with pytest.raises(InternalError) as caught:
        emit_inference(builder.build())
    assert "is read by state_values in @forward after it was overwritten" in caught.value.message
