"""Caches of the recipe for the neural engine are multiples of 32 in the package, and the logits are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.ir.reference import Interpreter
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.targets.coreml.mil import coremltools
from omnic.targets.coreml.options import parse_options
from omnic.targets.coreml.padding import pad_states
from tests.targets.coreml.helpers import emitted, held_against_reference, scaled, session_of

ANE = parse_options({"compute": "ane"})
COUNT = 60


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe", "mobile_4gb", "mobile_2gb"])
def test_wider_caches_change_no_logit(preset: str) -> None:
    module = scaled(preset)
    made = pad_states(module, ANE).module
    verify(made)
    assert print_module(parse_module(print_module(made))) == print_module(made)
    dims = [d for s in made.states.values() for d in s.type.shape[-2:]]
    assert all(int(str(d)) % 32 == 0 for d in dims)
    assert print_module(pad_states(made, ANE).module) == print_module(made)
    weights = WeightStore.random(module, 1)
    ids = np.random.default_rng(2).integers(0, 512, (1, COUNT))
    found = []
    for one in (module, made):
        states, logits = None, []
        for at in range(0, COUNT, 20):  # windows go round their rings
            steps = at + np.arange(20)[None]
            out = Interpreter(one, weights.with_module(one)).run(
                {"tokens": ids[:, at : at + 20], "positions": steps, "start": np.array([at]), "length": np.array([20]),
                 "rows": steps - at}, "forward", states)
            states = {p.state: out[p.state] for p in one.function().params if p.state}
            logits.append(np.asarray(out["logits"]))
        found.append(np.concatenate(logits, 1))
    assert np.abs(found[0] - found[1]).max() <= 1e-10 * np.abs(found[0]).max()


def test_other_recipes_keep_their_caches() -> None:
    module = scaled("tiny_moe")
    for compute in ("cpu", "gpu"):
        assert pad_states(module, parse_options({"compute": compute})).module is module


def test_the_package_holds_wider_states(tmp_path: Path) -> None:
    module = scaled("tiny_moe")
    weights = WeightStore.random(module, 1)
    made = emitted(module, weights, tmp_path, compute="ane", state="stateful", verify="none")
    ids = np.random.default_rng(5).integers(0, 512, (1, 30))
    assert held_against_reference(session_of(made, tmp_path), made, weights, ids, [20, 9, 1]) <= 2e-2
    model = coremltools.models.MLModel(str(tmp_path / "model.mlpackage"), skip_model_load=True)
    decode = model.get_spec().description.functions[0]
    shapes = {s.name: list(s.type.stateType.arrayType.shape) for s in decode.state}
    assert shapes["kv_0_latent"] == [1, 96, 64]
    assert shapes["kv_0_rope_k"] == [1, 96, 32]
