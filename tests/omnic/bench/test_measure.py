"""Contestants in processes of their own that take turns: times, ratios, memory, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.bench.limits import LimitsRunner
from omnic.bench.measure import Measurement, Plan, Ratio, measure
from omnic.bench.traffic import Traffic
from omnic.bench.worker import Worker
from omnic.errors import InputError
from omnic.ir.text import parse_module
from omnic.models import build
from omnic.passes.base import find_pass
from omnic.spec import load_spec, scale
from tests.omnic.bench.fake import fake

PLAN = Plan(prompts=(8,), contexts=(4,), new=3, rounds=3, warmup=1)
MACHINE = {"processor": "a processor", "system": "a system", "python": "3"}


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic.of(build(scale(load_spec("tiny"))))


@pytest.fixture(scope="module")
def measured(traffic: Traffic) -> Measurement:
    told: list[str] = []
    found = measure("m", [fake("ours", seconds=0.002), fake("theirs", seconds=0.006)], PLAN, 100, traffic, MACHINE,
                    lambda what, share: told.append(what), {"other": "not installed"})
    assert told[0] == "open ours" and "decode 4" in told and told[-1] == "done"
    return found


def test_every_contestant_has_every_phase(measured: Measurement) -> None:
    assert {(f.contestant, f.phase, f.tokens) for f in measured.figures} == {
        (name, *phase) for name in ("ours", "theirs") for phase in (("prefill", 8), ("decode", 4))}
    assert all(len(f.rounds) == PLAN.rounds for f in measured.figures)
    assert measured.absent == {"other": "not installed"}


def test_times_are_of_the_call(measured: Measurement) -> None:
    ours, theirs = measured.figure("ours", "decode", 4), measured.figure("theirs", "decode", 4)
    assert ours is not None and theirs is not None
    assert 0.002 <= ours.p50 <= ours.p95 and 0.006 <= theirs.p50
    assert ours.per_second == pytest.approx(1 / ours.p50)
    prompt = measured.figure("ours", "prefill", 8)
    assert prompt is not None and prompt.p50 >= 0.008 and prompt.per_second == pytest.approx(8 / prompt.p50)


def test_a_peer_says_how_much_faster_ours_is(measured: Measurement) -> None:
    ours, theirs = measured.figure("ours", "decode", 4), measured.figure("theirs", "decode", 4)
    assert ours is not None and theirs is not None
    assert ours.speedup is None and theirs.speedup is not None
    assert theirs.speedup.low <= theirs.speedup.median <= theirs.speedup.high
    assert theirs.speedup.median > 1.2


def test_only_ours_has_a_share_of_the_limits(measured: Measurement, traffic: Traffic) -> None:
    ours, theirs = measured.figure("ours", "decode", 4), measured.figure("theirs", "decode", 4)
    assert ours is not None and theirs is not None and theirs.share is None
    assert ours.share is not None and ours.share.low <= ours.share.median <= ours.share.high
    middle = 4 + PLAN.warmup + PLAN.rounds * PLAN.new // 2
    assert ours.share.median == pytest.approx(traffic.bytes(middle) / ours.p50 / measured.limits.read, rel=0.9)
    assert measured.limits.read > 1e8 and measured.limits.flops > 1e8


def test_a_child_holds_its_own_memory() -> None:
    small, large = Worker(fake("small")), Worker(fake("large", bytes=200_000_000))
    try:
        assert large.peak() - small.peak() > 150_000_000
    finally:
        small.close()
        large.close()


def test_what_opening_raises_comes_back() -> None:
    with pytest.raises(InputError, match="no such engine"):
        Worker(fake("broken", refuses="no such engine"))


def test_a_child_that_ends_is_named(traffic: Traffic) -> None:
    with pytest.raises(InputError, match="short-lived ended while it was measured"):
        measure("m", [fake("short-lived", dies=True)], PLAN, 100, traffic, MACHINE, lambda what, share: None)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(prompts=(300,)), "a prompt of 300 tokens; the model holds 256"),
        (Plan(contexts=(200,)), "decoding 114 tokens from a context of 200 needs 314 slots; the model holds 256"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan.check(256, 100)


def test_the_interval_of_a_ratio() -> None:
    found = Ratio.of([2.0, 2.0, 2.2, 1.8, 2.0], [1.0] * 5)
    assert found.median == 2.0 and 1.8 <= found.low <= 2.0 <= found.high <= 2.2


def test_bytes_of_a_token_are_weights_and_live_slots(traffic: Traffic) -> None:
    module = build(scale(load_spec("tiny")))
    states = [s for s in module.states.values() if s.name.startswith("kv.")]
    used = {p.state for p in module.function().params}
    slot = sum(4 * int(str(s.type.shape[1])) * int(str(s.type.shape[3])) for s in states if s.name in used)
    assert traffic.bytes(10) - traffic.bytes(9) == slot
    assert traffic.bytes(10**6) == traffic.bytes(2 * 10**6)


def test_int4_weights_are_fewer_bytes() -> None:
    module = build(scale(load_spec("tiny")))
    packed = find_pass("int4-packing")().run(module).module
    assert Traffic.of(packed).bytes(0) < 0.6 * Traffic.of(module).bytes(0)


def test_a_prompt_costs_one_row_of_logits(traffic: Traffic) -> None:
    one, two = traffic.flops(1), traffic.flops(2)
    head = traffic.head_flops
    assert head > 0 and one > head
    assert two - head > 2 * (one - head)  # the second token also sees the first


def test_the_limits_runner_reads_and_multiplies() -> None:
    runner = LimitsRunner(4 << 20, 2)
    assert runner.prompt(np.zeros(1)) == 0 and runner.step(7) == 7
    assert runner.about() == {"bytes": 4 << 20, "passes": 16, "how": runner.how} and runner.how in ("C", "numpy")


def test_the_limits_runner_reads_the_file_that_a_program_maps(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(range(256)) * 40_000)
    runner = LimitsRunner(10_000_000, 3, str(file))
    assert runner.about()["bytes"] == 9_999_999 and runner.step(1) == 1
    assert bytes(runner.parts[0][:256]) == bytes(range(256)) and not runner.parts[0].flags.writeable


def test_what_an_engine_mutters_while_it_opens_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    Worker(fake("quiet", says="loading\n")).close()
    assert "loading" not in capfd.readouterr().err
    with pytest.raises(InputError, match="no such engine"):
        Worker(fake("broken", says="because\n", refuses="no such engine"))
    assert "because" in capfd.readouterr().err


def test_a_module_of_text_has_traffic() -> None:
    text = """module @one {
  meta vocab = 8
  dim B in 1..1
  dim T in 1..4
  weight @w : f32[8, 4] = normal(std = 0.02)
  func @forward(%x: f32[B, T, 4]) -> (%logits: f32[B, T, 8]) {
    %logits = lm_head(%x, @w) : f32[B, T, 8]
    return
      logits = %logits
  }
}
"""
    found = Traffic.of(parse_module(text))
    assert found.bytes(100) == 8 * 4 * 4 and found.head_flops == 64
