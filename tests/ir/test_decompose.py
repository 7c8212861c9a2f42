"""Whole models decomposed: the same logits and states, names and scopes in place."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.ir.decompose import decompose
from omnic.ir.graph import Module
from omnic.ir.op import all_ops
from omnic.ir.reference import Interpreter, empty_states
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import load_spec, scale

PRESETS = ["tiny", "tiny_moe", "mobile_4gb"]


def inputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(0, 512, (2, 5)), "positions": np.tile(np.arange(5), (2, 1)),
        "start": np.zeros(2, np.int64), "length": np.array([5, 3]), "rows": np.array([[0, 4], [2, 1]]),
    }


@pytest.fixture(scope="module", params=PRESETS)
def module(request: pytest.FixtureRequest) -> Module:
    return build(scale(load_spec(request.param)))


def test_a_decomposed_model_computes_the_same(module: Module) -> None:
    core = decompose(module)
    verify(core)
    ops = all_ops()
    assert not [n.op for n in core.function().nodes if ops[n.op].composite]
    weights = WeightStore(module, seed=1)
    whole = Interpreter(module, weights).run(inputs())
    parts = Interpreter(core, weights).run(inputs(), states=empty_states(core, 2))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        # Rows beyond a row's length hold anything finite, the same in both.
        rms = np.sqrt(np.mean(np.asarray(value, np.float64) ** 2))
        np.testing.assert_allclose(parts[name], value, rtol=0, atol=1e-9 * rms, err_msg=name)


def test_scopes_places_and_value_names_stay(module: Module) -> None:
    core = decompose(module)
    before, after = module.function(), core.function()
    assert {n.scope for n in after.nodes} <= {n.scope for n in before.nodes}
    assert {n.loc for n in after.nodes} <= {n.loc for n in before.nodes}
    names = {v.name for v in after.values()}
    assert {v.name for n in before.nodes for v in n.results} <= names
    assert len(names) == len(list(after.values()))
    assert len({n.name for n in after.nodes}) == len(after.nodes)


def test_keeping_everything_changes_nothing(module: Module) -> None:
    kept = decompose(module, lambda node: True)
    assert kept.function().nodes == module.function().nodes
