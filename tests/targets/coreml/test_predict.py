"""On a Mac, Core ML itself against the evaluator, on packages of ours: caches as inputs and as states."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.ir.weights import WeightStore
from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.mil import coremltools as ct
from tests.targets.coreml.helpers import emitted, scaled

NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32}
pytestmark = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS only")


def given(function: Any, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return inputs of a decode call behind three tokens; caches that are inputs hold numbers."""
    small = {"tokens": 5, "positions": 3, "start": 3}
    found: dict[str, np.ndarray] = {}
    for name, value in function.inputs.items():
        if name in small:
            found[name] = np.full(value.shape, small[name], np.int32)
        else:
            found[name] = random.standard_normal(value.shape).astype(NUMPY[value.word])
    return found


@pytest.mark.parametrize(("preset", "options", "bound"), [
    ("tiny", {"verify": "none"}, 1e-3),
    ("tiny_moe", {"verify": "none"}, 1e-3),
    ("tiny", {"verify": "none", "state": "stateful"}, 5e-3),
])
def test_core_ml_predicts_what_the_evaluator_computes(
    preset: str, options: dict[str, str], bound: float, tmp_path: Path
) -> None:
    module = scaled(preset)
    emitted(module, WeightStore.random(module, 1), tmp_path, **options)
    package = tmp_path / "model.mlpackage"
    function = Program.open(package).function("decode")
    inputs = given(function, np.random.default_rng(0))
    states = {name: np.zeros(value.shape, NUMPY[value.word]) for name, value in function.states.items()}
    wanted = function.run(inputs, states, until=None, rounding="as_typed")
    model = ct.models.MLModel(str(package), function_name="decode", compute_units=ct.ComputeUnit.CPU_ONLY)
    found = model.predict(inputs, state=model.make_state()) if states else model.predict(inputs)
    for name, want in wanted.items():
        assert np.abs(found[name] - want).max() <= bound * np.sqrt(np.mean(np.square(want, dtype=np.float64))), name
