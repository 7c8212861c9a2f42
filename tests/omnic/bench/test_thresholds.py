"""Thresholds: the schema, the maps of before, verdicts, and bounds that rise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from omnic.bench.limits import Limits
from omnic.bench.measure import Figure, Measurement, Plan, Ratio
from omnic.bench.runners import Contestant
from omnic.bench.thresholds import (
    AcceptanceThresholds,
    ProviderThresholds,
    Threshold,
    accepted,
    failures,
    judge,
    load_acceptance,
    load_thresholds,
    old_thresholds,
    raised,
    required,
    save_thresholds,
    schemas,
)
from omnic.errors import InputError
from omnic.targets.base import Ran


def measurement(per_token: float = 0.1, speedup: float | None = 1.3) -> Measurement:
    figures = [Figure("ours", "prefill", 64, (0.5,), 0.5, 0.6),
               Figure("ours", "decode", 64, (per_token,), per_token, 2 * per_token),
               Figure("ours", "decode", 256, (2 * per_token,), 2 * per_token, 3 * per_token)]
    if speedup:
        figures.append(Figure("peer", "decode", 64, (1.0,), 1.0, 1.0, None, Ratio(speedup, speedup, speedup)))
    return Measurement("tiny", Plan(), {"processor": "cpu x", "system": "s"}, "2026-01-01T00:00:00+00:00",
                       (Contestant("ours", "", {}),), tuple(figures), {"ours": 1000, "peer": 1}, {"ours": 0.1},
                       Limits(1e9, 1e9, "64 MB of memory, read by C"), empty={"ours": 300, "peer": 1})


def rows(*given: dict[str, object]) -> ProviderThresholds:
    return ProviderThresholds.model_validate({"schema_version": 1, "rows": given})


def test_a_bound_is_held_against_the_worst_figure_it_covers() -> None:
    found = judge(rows({"metric": "decode_tokens_per_second", "min": 6.0},
                       {"metric": "decode_tokens_per_second", "ctx": 64, "min": 6.0},
                       {"metric": "decode_p95_ms", "max": 250.0}), measurement())
    assert [(v.found, v.ok) for v in found] == [(5.0, False), (10.0, True), (pytest.approx(300.0), False)]
    assert failures(found) == 2


def test_bounds_of_others_are_left_out_and_what_was_not_measured_is_said() -> None:
    found = judge(rows({"device": "phone", "metric": "decode_tokens_per_second", "min": 1e9},
                       {"ep": "NNAPI", "metric": "decode_tokens_per_second", "min": 1e9},
                       {"preset": "mobile_4gb", "metric": "decode_tokens_per_second", "min": 1e9},
                       {"ctx": 9999, "metric": "decode_tokens_per_second", "min": 1e9}), measurement())
    # NNAPI is not what ran here, and 9999 tokens were not measured.
    assert [(v.threshold.ep, v.threshold.ctx, v.found, v.ok) for v in found] == [
        ("NNAPI", None, None, None), ("*", 9999, None, None)]
    assert failures(found) == 0


def test_the_speedup_over_one_of_the_others() -> None:
    found = judge(rows({"metric": "speedup", "over": "peer", "min": 1.25},
                       {"metric": "speedup", "over": "who", "min": 1.25}), measurement(speedup=1.3))
    assert [(v.threshold.what, v.found, v.ok) for v in found] == [
        ("speedup over peer", 1.3, True), ("speedup over who", None, None)]


def test_operators_that_must_run_are_counted() -> None:
    measured = replace(measurement(), ran=(Ran("GroupQueryAttention", "CPU", 12), Ran("MatMul", "CPU", 3),
                                           Ran("MatMul", "XNNPACK", 2)))
    bounds = ProviderThresholds(rows=tuple(required("GroupQueryAttention=12, MatMul=6,QMoE")))
    found = judge(bounds, measured)
    assert [(v.threshold.what, v.found, v.ok) for v in found] == [
        ("calls of GroupQueryAttention for a token", 12.0, True), ("calls of MatMul for a token", 5.0, False),
        ("calls of QMoE for a token", 0.0, False)]
    assert [v.ok for v in judge(bounds, measurement())] == [None] * 3
    with pytest.raises(InputError, match="--require QMoE=x: 'x' is no number of calls"):
        required("QMoE=x")


def test_the_speedup_is_over_the_best_peer() -> None:
    found = judge(rows({"metric": "speedup", "min": 1.25}), measurement(speedup=1.3))
    assert found[0].ok and judge(rows({"metric": "speedup", "min": 1.25}), measurement(speedup=1.2))[0].ok is False
    assert judge(rows({"metric": "speedup", "min": 1.25}), measurement(speedup=None))[0].ok is None


def test_the_maps_of_before_are_rows(tmp_path: Path) -> None:
    flat, both = tmp_path / "flat.json", tmp_path / "both.json"
    flat.write_text('{"CPU": 2, "DML": 15}')
    both.write_text('{"tokens_per_second": {"CPU": 2}, "speedup": {"DML": 1.5}}')
    assert load_thresholds(flat).rows == (Threshold(ep="CPU", metric="decode_tokens_per_second", min=2.0),
                                          Threshold(ep="DML", metric="decode_tokens_per_second", min=15.0))
    assert load_thresholds(both).rows[1] == Threshold(ep="DML", metric="speedup", min=1.5)
    known = {(r.ep, r.metric): r.min for r in old_thresholds().rows}
    assert known["CPU", "decode_tokens_per_second"] == 2 and known["NNAPI", "decode_tokens_per_second"] == 15
    assert known["DML", "speedup"] == 1.5 and known["CoreML", "speedup"] == 1.25


def test_bounds_rise_and_never_fall(tmp_path: Path) -> None:
    first = raised(None, measurement(0.1))
    by = {(r.metric, r.ctx): r for r in first.rows}
    assert by["decode_tokens_per_second", 64].min == 9.5 and by["decode_p95_ms", 64].max == 210.5
    assert by["decode_tokens_per_second", 64].measured_at == "2026-01-01T00:00:00+00:00"
    slower = {(r.metric, r.ctx): r for r in raised(first, measurement(0.2)).rows}
    faster = {(r.metric, r.ctx): r for r in raised(first, measurement(0.05)).rows}
    assert slower["decode_tokens_per_second", 64].min == 9.5
    assert faster["decode_tokens_per_second", 64].min == 19.0 and faster["decode_p95_ms", 64].max == 105.3
    path = tmp_path / "t.json"
    save_thresholds(path, first)
    assert load_thresholds(path) == first
    assert failures(judge(first, measurement(0.1))) == 0 and failures(judge(first, measurement(0.2))) > 0


def test_acceptance_keeps_what_it_does_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema_version": 1, "rows": [
        {"preset": "tiny", "verifier_threshold": 0.7, "min_tokens_per_second": 1.0}, {"preset": "other"}]}))
    found = accepted(load_acceptance(path), measurement(0.1))
    tiny = next(r for r in found.rows if r.preset == "tiny")
    assert tiny.min_tokens_per_second == 4.75 and tiny.verifier_threshold == 0.7 and len(found.rows) == 2
    assert accepted(None, measurement(0.1)).rows[0].preset == "tiny"
    assert accepted(AcceptanceThresholds(rows=(tiny,)), measurement(1.0)).rows[0].min_tokens_per_second == 4.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"schema_version": 2, "rows": []}', "schema_version: Input should be 1"),
        ('{"schema_version": 1, "rows": [{"metric": "speed", "min": 1}]}', "rows.0.metric: Input should be"),
        ('{"schema_version": 1, "rows": [{"metric": "speedup"}]}', "give min or max, one of the two"),
        ('{"schema_version": 1, "rows": [{"metric": "ttft_ms", "min": 1}]}', "ttft_ms is bounded by max"),
        ('{"schema_version": 1, "rows": [{"metric": "ran", "min": 1}]}', "give op with the metric ran"),
        ('{"schema_version": 1, "rows": [{"metric": "ttft_ms", "max": 1, "over": "x"}]}', "over belongs to the metric"),
        ('{"CPU": "fast"}', "CPU: 'fast' is not a number"),
        ('{"latency": {"CPU": 1}}', "'latency' is neither a schema_version nor one of tokens_per_second, speedup"),
        ("[]", "the file: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_thresholds(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_thresholds(tmp_path / "none.json")


def test_the_schemas_are_json_schemas() -> None:
    assert set(schemas()) == {"thresholds", "acceptance"}
    assert "metric" in schemas()["thresholds"]["$defs"]["Threshold"]["properties"]
