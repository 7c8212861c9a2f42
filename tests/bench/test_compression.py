"""The harness of lossy passes: its sums, its bars and pictures, and llama.cpp's formats."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.compression.bars import BARS, I4, Measured, curve, gap_closed, judge, steps
from bench.compression.pictures import Axis, Point, picture
from bench.compression.rows import KV_ROWS, LLAMA_ROWS, MODELS, WEIGHT_ROWS, Row, rows_of
from bench.compression.scoring import Score, Subject, divergence, kl_ratio, log_softmax, reference_logits
from omnic.passes.base import parse_pass


def score(kl: float = 0.01, percent: float = 0.1, windows: int = 8) -> Score:
    noise = np.random.default_rng(0).uniform(0.5, 1.5, windows)
    base = tuple(100 * noise)
    changed, kl_of = tuple(b * (1 + percent / 100) for b in base), tuple(50 * kl * noise / noise.mean())
    return Score((50,) * windows, base, changed, kl_of, (49,) * windows, 1000)


def measured(name: str, size: int, kl: float, percent: float = 0.1, family: str = "GPTQ") -> Measured:
    return Measured(Row(name, family), size, 4.0, 1.0, score(kl, percent))


def test_log_softmax_and_divergence_are_those_of_f64() -> None:
    rng = np.random.default_rng(0)
    p, q = (log_softmax(rng.normal(size=(7, 50)).astype(np.float32) * 3) for _ in range(2))
    wide, narrow = p.astype(np.float64), q.astype(np.float64)
    assert np.allclose(np.exp(wide).sum(-1), 1, atol=1e-6)
    assert divergence(p, q) == pytest.approx(float((np.exp(wide) * (wide - narrow)).sum()), rel=1e-5)
    assert divergence(p, p) == 0


def test_a_tiny_divergence_is_not_lost_in_rounding() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 4096)) * 3
    step = rng.normal(size=x.shape) * 1e-4
    p, q = (log_softmax(v.astype(np.float32)) for v in (x, x + step))
    exact_p, exact_q = (v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in (x, x + step))
    exact = float((np.exp(exact_p) * (exact_p - exact_q)).sum())
    assert divergence(p, q) == pytest.approx(exact, rel=0.05)


def test_figures_of_a_score() -> None:
    s = Score((2, 2), (math.log(2) * 8, math.log(2) * 8), (math.log(2) * 8, math.log(2) * 16), (0.1, 0.3), (2, 1), 3)
    assert s.base_bits == pytest.approx(16 / 3) and s.bits == pytest.approx(8)
    assert s.percent == pytest.approx(50) and s.percent_error == pytest.approx(50)
    assert s.mean_kl == pytest.approx(0.1) and s.top1 == 0.75
    assert Score.of_dict(s.to_dict()) == s


def test_equal_changes_in_every_window_have_no_error() -> None:
    s = score(percent=1.0)
    assert s.percent == pytest.approx(1.0) and s.percent_error < 1e-9


def test_ratio_of_kl_is_paired() -> None:
    one, two = score(0.01), score(0.02)
    ratio, error = kl_ratio(two, one)
    assert ratio == pytest.approx(2) and error < 1e-9, "the windows move together"


def test_windows_cover_every_token_once_and_the_reference_scores_itself_at_zero() -> None:
    subject = Subject("tiny")
    scored = np.zeros(len(subject.ids), int)
    for start, end, first in subject.cut:
        assert end - start <= 256 and first >= start
        scored[first + 1 : end + 1] += 1
    assert scored[0] == 0 and (scored[1:] == 1).all()
    logits = reference_logits(subject.front, subject.store)
    found = subject.score(logits, logits, "self", sample=2)
    assert found.mean_kl == 0 and found.percent == 0 and found.top1 == 1
    assert 0.5 < found.base_bits * len(subject.text.encode()) / sum(found.tokens) < 8


def test_the_curve_takes_a_row_of_no_more_bytes_and_misses_a_worse_one() -> None:
    theirs = replace(measured("Q4_K", 1000, 0.02), row=next(r for r in LLAMA_ROWS if r.name == "Q4_K"))
    better = measured("gptq a", 999, 0.015)
    larger = measured("gptq b", 1001, 0.001)
    row = curve("m", {m.row.name: m for m in (theirs, better, larger)})[0]
    assert row["met"] and row["ratio"] == pytest.approx(0.75) and "gptq a" in row["figure"]
    row = curve("m", {m.row.name: m for m in (theirs, larger)})[0]
    assert row["met"] is False and row["figure"] == "nothing of ours is as small"
    row = curve("m", {m.row.name: m for m in (theirs, measured("gptq c", 1000, 0.021))})[0]
    assert row["met"] is False


def test_steps_leave_out_what_is_beaten() -> None:
    rows = [measured("a", 1, 3.0), measured("b", 2, 4.0), measured("c", 3, 1.0), measured("d", 4, 2.0)]
    assert [m.row.name for m in steps({m.row.name: m for m in rows})] == ["a", "c"]


def test_bars_judge_their_rows_and_leave_out_what_was_not_measured() -> None:
    rows = [measured(f"rtn {I4}", 10, 0.04), measured(f"gptq {I4}", 10, 0.02, 0.2), measured(f"awq {I4}", 10, 0.039)]
    found = {r["what"]: r for r in judge("m", {m.row.name: m for m in rows})}
    assert found[f"m: KL of gptq {I4} over rtn {I4}"]["met"] is True
    assert found[f"m: KL of awq {I4} over rtn {I4}"]["met"] is False
    assert found[f"m: the best of i4 g64: gptq {I4}"]["met"] is True
    assert len(found) == 3
    assert judge("m", {}) == []


def test_more_bytes_do_not_pass_a_bar_at_equal_bytes() -> None:
    rows = [measured(f"rtn {I4}", 10, 0.04), measured(f"gptq {I4}", 11, 0.02)]
    found = judge("m", {m.row.name: m for m in rows})
    assert next(r for r in found if "over rtn" in r["what"])["met"] is False


def test_the_gap_closed() -> None:
    found = {n: measured(n, 1, kl) for n, kl in (("low", 0.10), ("high", 0.02), ("mixed", 0.04))}
    assert gap_closed(found, "mixed", "low", "high") == pytest.approx(0.75)


def test_every_row_has_its_own_name_and_parses() -> None:
    names = [r.name for r in (*LLAMA_ROWS, *WEIGHT_ROWS, *KV_ROWS)]
    assert len(set(names)) == len(names)
    for row in (*WEIGHT_ROWS, *KV_ROWS):
        for text in row.passes:
            parse_pass(text)
    assert {r.name for r in rows_of("tiny_moe")} < set(names)
    assert len(BARS) > 10 and MODELS == ("tiny", "tiny_moe")


def test_a_picture_draws_every_point_and_says_its_numbers() -> None:
    points = [Point(1e6 * 2**i, 0.1 / 4**i, f, f"{f} {i}", "x < y") for i in range(4) for f in ("llama.cpp", "GPTQ")]
    text = picture("t", {"a": points, "b": points[:2]}, Axis("MB", True, 1e6), Axis("KL", True))
    assert text.count("<title>") == len(points) + 2
    assert text.count('stroke-dasharray="6 4"') == 1, "llama.cpp's line; a single point has none"
    assert "x &lt; y" in text and "GPTQ 3: 8,000,000 bytes, 2e-3" in text
    assert "nan" not in text


def test_llama_cpp_formats_come_back_near_and_cost_what_they_say(tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    from bench.compression.llama_cpp import FORMATS, quantise, through_gguf
    from omnic.errors import InputError

    x = np.random.default_rng(0).normal(size=(4, 8, 64)).astype(np.float32)
    before = 0.0
    for form, bits in zip(FORMATS, (8.5, 6.5625, 5.5, 5.5, 4.5, 4.5, 3.4375, 2.625), strict=True):
        numbers, size = through_gguf({"w": x}, {"w": form}, tmp_path / "w.gguf")["w"]
        assert numbers.shape == x.shape and size * 8 == bits * x.size
        error = float(np.sqrt(np.square(numbers - x).mean()))
        assert before < error < 0.4, form
        before = error
    with pytest.raises(InputError, match="130 numbers are not rows of 256"):
        quantise(np.zeros(130, np.float32), "Q4_K")
