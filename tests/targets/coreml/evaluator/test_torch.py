"""The evaluator against torch, on programs that coremltools' own torch front end converted."""

from __future__ import annotations

import logging
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.mil import coremltools as ct
from tests.targets.coreml.evaluator.cases import DIFFERENT, GROUPS, INPUTS, Case, Packed

PRECISIONS = ("f32", "f16")


def converted(cases: dict[str, Case], precision: str, path: Path) -> Path:
    """Write the package of ``cases``, each an output, and return where."""
    module = Packed(cases, tuple(INPUTS)).eval()
    inputs = [ct.TensorType(name=n, shape=tuple(v.shape), dtype=np.float32 if v.is_floating_point() else np.int32)
              for n, v in INPUTS.items()]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, tuple(INPUTS.values()), check_trace=False)
        made = ct.convert(
            traced, inputs=inputs, outputs=[ct.TensorType(name=f"o_{n}") for n in cases], skip_model_load=True,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16 if precision == "f16" else ct.precision.FLOAT32,
        )
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, made = tmp_path_factory.mktemp("torch"), {}
    logging.disable(logging.WARNING)

    def get(group: str, precision: str) -> Path:
        key = (group, precision)
        if key not in made:
            made[key] = converted(GROUPS[group], precision, folder / f"{group}_{precision}.mlpackage")
        return made[key]

    yield get
    logging.disable(logging.NOTSET)


def reference(name: str, case: Case, half: bool) -> np.ndarray[Any, Any]:
    """Return what torch computes, on the inputs as the program takes them."""
    with torch.no_grad():
        return DIFFERENT.get(name, case)(INPUTS).numpy()


def given(function: Any) -> dict[str, Any]:
    return {n: v.numpy() for n, v in INPUTS.items() if n in function.inputs}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("group", GROUPS)
def test_reproduces_torch(packages: Any, group: str, precision: str) -> None:
    function = Program.open(packages(group, precision)).function()
    kept = {"as_typed": np.float32, "exact": np.float64}
    found = {rounding: function.run(given(function), rounding=rounding) for rounding in kept}
    wrong: list[str] = []
    for (name, case), rounding in product(GROUPS[group].items(), kept):
        want, got = reference(name, case, precision == "f16"), found[rounding][f"o_{name}"]
        assert got.shape == want.shape, name
        if want.dtype.kind != "f":
            if not np.array_equal(got, want):
                wrong.append(f"{name}: {got} is not {want}")
            continue
        assert got.dtype == (np.float16 if precision == "f16" else kept[rounding]), name
        # A few roundings of the largest number that takes part; inputs are fp16 numbers.
        bound = 2e-6 if precision == "f32" else 2e-3
        error = float(np.abs(got.astype(np.float64) - want).max()) / max(1.0, float(np.abs(want).max()))
        if not error <= bound:
            wrong.append(f"{name}, {rounding}: {error:.1e}")
    assert not wrong


#: op of MIL in fp16 -> the same in torch's own fp16 arithmetic, which sums in f32 and rounds after each operation
HALF = ("add", "sub", "mul", "div", "maximum", "minimum", "sqrt", "abs", "neg", "relu", "clamp", "square")


def test_fp16_is_rounded_after_each_operation_as_torch_does(packages: Any) -> None:
    function = Program.open(packages("elementwise", "f16")).function()
    names = [f"o_{n}" for n in HALF]
    found = function.run(given(function), until=names)
    halves = {n: v.half() if v.is_floating_point() else v for n, v in INPUTS.items()}
    for name in HALF:
        want = GROUPS["elementwise"][name](halves).numpy()
        np.testing.assert_array_equal(found[f"o_{name}"], want, err_msg=name)


def test_unrounded_fp16_programs_are_f32_programs_of_fp16_constants(packages: Any) -> None:
    function = Program.open(packages("programs", "f16")).function()
    want = reference("mlp", GROUPS["programs"]["mlp"], True)
    exact = function.run(given(function), until=["o_mlp"], rounding="none")["o_mlp"]
    rounded = function.run(given(function), until=["o_mlp"])["o_mlp"]
    assert exact.dtype == np.float32 and rounded.dtype == np.float16
    assert np.abs(exact - want).max() < 1e-6 < np.abs(rounded - want).max()


def test_at_least_150_programs() -> None:
    assert sum(map(len, GROUPS.values())) >= 200


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS only")
@pytest.mark.parametrize("group", GROUPS)
def test_core_ml_predicts_the_same(packages: Any, group: str) -> None:
    path = packages(group, "f32")
    function = Program.open(path).function()
    inputs = given(function)
    predicted = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY).predict(inputs)
    for name, got in function.run(inputs).items():
        np.testing.assert_allclose(predicted[name], got, rtol=1e-3, atol=1e-3, err_msg=name)
