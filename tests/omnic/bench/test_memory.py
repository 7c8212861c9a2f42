"""What a model should hold in memory."""

from __future__ import annotations

from omnic.bench.measure import Plan
from omnic.bench.memory import estimate, values
from omnic.ir.text import parse_module
from omnic.models import build
from omnic.models.summary import summarise
from omnic.spec import load_spec, scale

TEXT = """module @chain {
  meta vocab = 8
  dim B in 1..1
  dim T in 1..64
  func @forward(%x: f32[B, T, 8]) -> (%y: f32[B, T, 8]) {
    %a = exp(%x) : f32[B, T, 8]
    %shown = reshape(%a) {shape = [B, T * 8]} : f32[B, T * 8]
    %b = exp(%a) : f32[B, T, 8]
    %c = neg(%shown) : f32[B, T * 8]
    %y = exp(%b) : f32[B, T, 8]
    return
      y = %y
  }
}
"""


def test_values_live_from_their_node_to_the_last_that_reads_them() -> None:
    one = 10 * 8 * 4
    # a, b and c together: a is still read through the view of it; the view itself takes nothing.
    assert values(parse_module(TEXT).function(), 10) == 3 * one


def test_an_estimate_is_weights_states_values_and_the_engine() -> None:
    module = build(scale(load_spec("tiny")))
    plan = Plan((8,), (16,), new=4, rounds=3, warmup=2)
    found = estimate(module, plan, 1000)
    assert found.tokens == 16 + 2 + 12 and found.weights == summarise(module).weight_bytes
    assert found.total == found.weights + found.states + found.values + 1000
    longer = estimate(module, Plan((8,), (32,), new=4, rounds=3, warmup=2), 1000)
    assert longer.states - found.states == 16 * summarise(module).kv_bytes_per_token
    assert longer.values > found.values
