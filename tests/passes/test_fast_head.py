"""The pass fast-head: bounds that hold, a greedy function that says what the logits say, when nothing changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.shortlist import holds
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify
from omnic.passes.base import PassContext, PassResult, parse_pass, run_pass
from omnic.targets.onnx.target import TARGET as ONNX
from tests.passes.heads import TOKENS, context, low, small


def run(module: Module, around: PassContext, text: str = "fast-head{dims=32}") -> PassResult:
    return run_pass(module, parse_pass(text), around)


def test_greedy_says_the_largest_logit(tmp_path: Path) -> None:
    module = small()
    around = context(module, tmp_path)
    after = run(module, around).module
    verify(after)
    assert print_module(parse_module(print_module(after))) == print_module(after)
    assert around.weights is not None
    store = around.weights.with_module(after)
    interpreter = Interpreter(after, store)
    states: dict[str, np.ndarray] = {}
    for at, token in enumerate(TOKENS[0, :12]):
        inputs = {"tokens": np.array([[token]]), "positions": np.array([[at]]), "start": np.array([at]),
                  "length": np.array([1]), "rows": np.zeros((1, 1), np.int64)}
        full = interpreter.run(inputs, "forward", states or None)
        best = interpreter.run(inputs, "greedy", states or None)
        assert best["token"][0, 0] == np.argmax(full["logits"][0, 0])
        assert best["logit"][0, 0] == np.max(full["logits"][0, 0])
        states = {p.state: best[p.state] for p in after.function("greedy").params if p.state}


def test_bounds_hold_for_the_head_as_it_is_and_not_for_another(tmp_path: Path) -> None:
    module = small()
    around = context(module, tmp_path)
    after = run(module, around).module
    assert around.weights is not None
    store = around.weights.with_module(after)
    parts = [store.array(name) for name in ("embed", "head.basis")]
    screen = packing.decode(store.quantised("head.screen"))
    assert holds(*parts, screen, store.array("head.reach"))
    assert not holds(parts[0] * 1.01, parts[1], screen, store.array("head.reach"))


def test_results_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    module = small()
    around = context(module, tmp_path)
    first = run(module, around).module
    count = len(list(tmp_path.iterdir()))
    used = replace(around, executor=None)
    again = run(module, used).module.weights
    assert {n: w.recipe for n, w in again.items()} == {n: w.recipe for n, w in first.weights.items()}
    arrays = low(module)
    arrays["embed"][0] += 0.1
    other = run(module, context(module, tmp_path, arrays)).module
    assert other.weights["head.reach"].recipe != first.weights["head.reach"].recipe
    assert len(list(tmp_path.iterdir())) == count + 3


def test_it_chooses_how_many_directions_pay(tmp_path: Path) -> None:
    module = small()
    found = run(module, context(module, tmp_path / "low"), "fast-head")
    assert found.changed
    assert str(found.remarks[0]).startswith("fast-head: 32 of 64 dims; calibrated on 4 windows: drawn")
    four = run(module, context(module, tmp_path), "int4-packing{group=32, embedding=i4<g32>, head=i4<g32>}").module
    after = run(four, context(module, tmp_path), "fast-head")
    assert not after.changed
    assert after.module is four
    assert str(after.remarks[0]).startswith("fast-head: no shortlist reads less than")


def test_targets_that_compute_all_logits_are_left_alone(tmp_path: Path) -> None:
    module = small()
    found = run(module, replace(context(module, tmp_path), caps=ONNX.caps))
    assert (found.changed, str(found.remarks[0])) == (False, "fast-head: target onnx (fused) computes all logits")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    module = small()
    around = context(module, tmp_path)
    after = run(module, around).module
    assert not run(after, around).changed


@pytest.mark.parametrize(
    ("text", "message"),
    [("fast-head{dims=40}", "pass 'fast-head': dims must be a multiple of 32 up to 64, not 40"),
     ("fast-head{dims=96}", "pass 'fast-head': dims must be a multiple of 32 up to 64, not 96")])
def test_dims_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    module = small()
    with pytest.raises(InputError) as caught:
        run(module, context(module, tmp_path), text)
    assert caught.value.message == message


def test_what_it_needs_is_asked_for(tmp_path: Path) -> None:
    module = small()
    around = context(module, tmp_path)
    for field, message in (("weights", "pass 'fast-head' reads the weights, and none were given"),
                           ("calibration", "pass 'fast-head' needs text to calibrate on, and there is none"),
                           ("results", "pass 'fast-head' stores what it finds, and no result store was given")):
        with pytest.raises(InputError) as caught:
            run(module, replace(around, **{field: None}))
        assert caught.value.message == message
