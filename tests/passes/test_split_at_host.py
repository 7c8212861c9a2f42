"""Segments between host calls: the same numbers, explicit live values, states where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Function, Module, Node, Result
from omnic.ir.reference import Interpreter
from omnic.ir.rewrite import Match, Pattern, Rule, rewrite
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.split_at_host import SplitAtHost, run_segments, segment_names
from omnic.spec import load_spec, scale

GIVEN = """
module @m {
  dim B in 1..4
  dim T in 1..8
  weight @experts : f32[5, 8] = normal(std = 1)
  func @forward(%x: f32[B, T, 8], %ids: i64[B, T]) -> (%y: f32[B, T, 8], %h: f32[B, T, 8]) {
    %h = relu(%x) : f32[B, T, 8]
    %slots = host.fetch(%ids) {kind = "expert", layer = 0} : i64[B, T]
    %rows = index_select(@experts, %slots) : f32[B, T, 8]
    %y = add(%h, %rows) : f32[B, T, 8]
    return y = %y, h = %h
  }
}
"""

RESULT = """
  func @forward.segment0(%x: f32[B, T, 8], %ids: i64[B, T]) -> (%h: f32[B, T, 8], %fetch.ids: i64[B, T]) {
    %h = relu(%x) : f32[B, T, 8]
    return h = %h, fetch.ids = %ids
  }
  func @forward.segment1(%slots: i64[B, T], %h: f32[B, T, 8]) -> (%y: f32[B, T, 8]) {
    %rows = index_select(@experts, %slots) : f32[B, T, 8]
    %y = add(%h, %rows) : f32[B, T, 8]
    return y = %y
  }
"""


def test_given_becomes_result() -> None:
    module = parse_module(GIVEN)
    result = SplitAtHost().run(module)
    verify(result.module)
    assert print_module(result.module).strip() == GIVEN.strip()[:-1].rstrip() + RESULT.rstrip() + "\n}"
    assert [str(r) for r in result.remarks] == ["split-at-host: @forward became 2 segments"]
    again = SplitAtHost().run(result.module).module
    assert print_module(again) == print_module(result.module)


def test_a_result_may_have_the_name_of_another_value() -> None:
    module = parse_module(GIVEN)
    function = module.function()
    results = (Result("h", function.params[0].value), *function.results[:1], Result("slots", function.nodes[0].result))
    module = module.with_function(Function("forward", function.params, function.nodes, results))
    split = SplitAtHost().run(module).module
    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal((1, 2, 8)), "ids": np.array([[4, 0]])}
    weights = WeightStore(module, seed=0)
    whole = Interpreter(module, weights).run(inputs)
    parts = run_segments(split, weights, inputs, lambda node, ids: ids)
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_without_a_host_call_nothing_changes() -> None:
    module = parse_module(GIVEN.replace('host.fetch(%ids) {kind = "expert", layer = 0}', "add(%ids, %ids)"))
    result = SplitAtHost().run(module)
    assert not result.changed
    assert result.module is module
    assert [str(r) for r in result.remarks] == ["split-at-host: @forward never calls the host"]
    assert segment_names(module, "forward") == ("forward",)


def fetched(module: Module) -> Module:
    """Put a host.fetch before every moe of @forward."""

    def build_fetch(b: FunctionBuilder, match: Match) -> Any:
        moe = match.nodes["moe"]
        x, indices, *rest = moe.operands
        layer = int(moe.scope.split(".")[1])
        return b.op("moe", x, b.op("host.fetch", indices, kind="expert", layer=layer), *rest, **moe.attrs)

    def is_new(match: Match) -> str | None:
        indices = match.nodes["moe"].operands[1]
        assert indices is not None
        return "fetched already" if match.uses.producer[indices].op == "host.fetch" else None

    rule = Rule("fetch", Pattern("moe", {"moe": ("moe", "x")}), build_fetch, (is_new,))
    return module.with_function(rewrite(module.function(), [rule])[0])


@pytest.mark.parametrize("preset", ["tiny_moe", "mobile_4gb"])
def test_a_paged_model_is_the_model(preset: str) -> None:
    module = build(scale(load_spec(preset)))
    paged = fetched(module)
    fetches = [n for n in paged.function().nodes if n.op == "host.fetch"]
    assert fetches
    split = SplitAtHost().run(paged).module
    verify(split)
    assert len(segment_names(split, "forward")) == len(fetches) + 1
    weights = WeightStore(module, seed=2)
    seen: list[str] = []

    def fetch(node: Node, ids: Any) -> Any:
        assert int(ids.min()) >= 0
        seen.append(node.name)
        return ids

    states = None
    for start in (0, 4):
        inputs = {
            "tokens": np.random.default_rng(start).integers(0, 512, (2, 4)), "start": np.full(2, start),
            "positions": np.tile(np.arange(4) + start, (2, 1)), "length": np.array([4, 4]),
            "rows": np.array([[3], [0]]),
        }
        whole = Interpreter(module, weights).run(inputs, states=states)
        parts = run_segments(split, weights, inputs, fetch, states=states)
        assert whole.keys() == parts.keys()
        for name in whole:
            assert np.array_equal(np.asarray(whole[name]), np.asarray(parts[name])), name
        states = {name: whole[name] for name in module.states if name in whole}
    assert seen == [n.name for n in fetches] * 2


def test_running_what_is_not_split_is_refused() -> None:
    module = parse_module(GIVEN)
    with pytest.raises(InputError, match="@forward is not split at its 1 host calls"):
        run_segments(module, {}, {"x": np.zeros((1, 1, 8)), "ids": np.zeros((1, 1), np.int64)}, lambda node, ids: ids)
