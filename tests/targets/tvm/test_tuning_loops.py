"""Generated loops in other orders: the same bits, records by TIR, version, platform and processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.text import parse_module
from omnic.ir.weights import WeightStore
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import processor
from omnic.targets.base import TuneRequest
from omnic.targets.tvm.emit import plans_of
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.options import parse_options
from omnic.targets.tvm.tail.build import function_of
from omnic.targets.tvm.tail.loops import Loop
from omnic.targets.tvm.tail.schedules import loop_hash, scheduled, traces
from omnic.targets.tvm.tuning.loops import LoopTimer, orders, version
from omnic.targets.tvm.tuning.records import LoopRecord, read_records
from omnic.targets.tvm.tuning.tune import tune
from tests.targets.tvm.helpers import emitted, session_of

TEXT = """module @m {
  meta capacity = 64
  dim B in 1..2
  dim T in 1..8
  dim R in 1..8
  weight @e : f32[32, 16] = normal(std = 1.0)
  func @forward(%tokens: i64[B, T], %positions: i64[B, T], %start: i64[B], %length: i64[B], %rows: i64[B, R]) -> (%logits: f32[B, R, 32]) {
    %x = embedding(@e, %tokens) : f32[B, T, 16]
    %g = sigmoid(%x) : f32[B, T, 16]
    %p = mul(%g, %x) : f32[B, T, 16]
    %c = cumsum(%p) {axis = 2} : f32[B, T, 16]
    %s = matmul(%c, %x) {tb = true} : f32[B, T, T]
    %y = matmul(%s, %p) : f32[B, T, 16]
    %logits = lm_head(%y, @e, %rows) : f32[B, R, 32]
    return logits = %logits
  }
}
"""  # noqa: E501


def model() -> Module:
    return parse_module(TEXT)


def loops() -> dict[str, Loop]:
    module = legalise(model(), parse_options({}))
    matrices = Matrices(module)
    plans_of(module, matrices)
    return {str(loop): loop for loop in matrices.loops.values()}


def test_each_order_gives_the_bits_of_the_first() -> None:
    found = loops()
    module = model()
    for what in ("loop cumsum -> f32[B, T, 16]", "loop matmul -> f32[B, T, 16]"):
        loop = found[what]
        others = orders(loop, host_triple())
        timer = LoopTimer([loop, *others], host_triple(), module.dims)
        assert timer.same == others, loop.root.op
        assert timer(loop.name) > 0
    assert len(orders(found["loop matmul -> f32[B, T, 16]"], host_triple())) == 3
    assert orders(found["loop matmul -> f32[B, T, T]"], host_triple()) == []


def test_the_hash_of_a_loop_is_of_what_it_computes_and_not_of_its_name() -> None:
    first, second = list(loops().values())[:2]
    assert loop_hash(function_of(first)) == loop_hash(function_of(first))
    assert loop_hash(function_of(first)) != loop_hash(function_of(second))


def test_a_trace_of_another_loop_is_refused() -> None:
    function = function_of(next(iter(loops().values())))
    with pytest.raises(InputError) as caught:
        scheduled(function, [[["GetSBlock", [], ["z", "main"], ["b0"]]], []])
    assert caught.value.message.startswith("a record of a loop holds a trace that TVM does not take: ")
    assert caught.value.hint == "delete the record, or measure again: omnic tune MODEL --op loop"


def test_a_record_is_applied_and_the_bits_stay(tmp_path: Path) -> None:
    module = model()
    store = WeightStore.random(module, 3)
    path = tmp_path / "loops.jsonl"
    lines: list[str] = []
    for loop in loops().values():
        function = function_of(loop)
        for trace in list(traces(function))[-1:]:
            lines.append(json.dumps({
                "schema_version": 1, "triple": host_triple(), "cpu": processor(), "level": "generic", "threads": 1,
                "kernels": version(), "gain": 2.0, "interval": [1.9, 2.1], "measured_at": "2026-01-01T00:00:00+00:00",
                "op": "loop", "loop": loop_hash(function), "trace": trace}))  # fmt: skip
    path.write_text("\n".join([*lines, lines[0].replace(version(), "tvm 0.1").replace('"threads": 1', '"threads": 2')]))
    assert len(lines) >= 2
    plain, ordered = tmp_path / "plain", tmp_path / "ordered"
    emitted(module, plain, weights=store, tuning="off")
    made = emitted(module, ordered, weights=store, tuning=str(path))
    assert made.remarks[-1] == f"tuned by {len(lines)} records of {processor()} on {host_triple()} ({path})"
    assert (plain / "program.so").read_bytes() != (ordered / "program.so").read_bytes()
    ids = np.random.default_rng(5).integers(0, 32, (2, 8))
    first, second = (session_of(folder) for folder in (plain, ordered))
    for session in (first, second):
        session.reset(2)
    assert np.array_equal(first.forward(ids).logits, second.forward(ids).logits)


def test_tuning_measures_loops_and_keeps_what_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    options = parse_options({"level": "generic"})
    request = TuneRequest(model(), options, 3.0, 1, path, ("loop",), lambda what, share: None)
    found = list(tune(request))
    assert {f.what for f in found} == set(loops()) and any(f.seconds for f in found)
    kept = [r for r in read_records(path) if isinstance(r, LoopRecord)] if path.exists() else []
    assert len(kept) == sum(f.won for f in found)
    assert all(r.kernels == version() and r.interval[0] > 1.0 for r in kept)
