"""Where the reference's routers are undecided: between experts, and between the groups of a group gate."""

from __future__ import annotations

import numpy as np
import pytest

from omnic.compiler.routing import RouterWatch
from omnic.ir.numeric import find_class
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import parse_spec
from tests.models.variants import MHA, MOE, model


@pytest.mark.parametrize(("spread", "undecided"), [(1.0, False), (1e-7, True)])
def test_a_group_gate_near_a_tie_is_seen(spread: float, undecided: bool) -> None:
    ffn = f"{MOE}, groups: [3, 3], group_gate: true, activation: gelu"
    module = build(parse_spec(model(MHA, ffn), "gated.yaml"))
    store = WeightStore.random(module, 3)
    weights = {name: np.array(store.array(name), np.float64) for name in module.weights}
    # One direction that all tokens have in common decides: the first group leads by ``spread`` of its size.
    weights["embed"][:, 0] = 1.0
    gate = np.zeros((2, 32))
    gate[:, 0] = 1.0, 1.0 - spread
    weights["blocks.0.ffn.group_router"] = gate
    weights["blocks.0.ffn.router"] = np.zeros((6, 32))
    weights["blocks.0.ffn.router"][:, 0] = np.arange(6)
    watch = RouterWatch(module, find_class("f32"))
    watch.begin(1, 12)
    steps = np.arange(12)[None]
    inputs = {"tokens": steps, "positions": steps, "start": [0], "length": [12], "rows": steps}
    Interpreter(module, weights).run(inputs, observe=watch)
    assert watch.undecided().all() == watch.undecided().any() == undecided
