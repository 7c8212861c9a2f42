"""The bars: what each method must reach, over the rows of one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.common import row
from bench.compression.rows import LLAMA_ROWS, Row
from bench.compression.scoring import Score, kl_ratio

__all__ = ["Measured", "curve", "judge", "steps"]


@dataclass(frozen=True)
class Measured:
    """A row with its figures.

    Attributes:
        row: what it is.
        weight_bytes: of the weights that ``forward`` reads.
        bits: a weight, on average over those.
        kv_bytes: of the states, a token at capacity.
        score: against the f32 model.
    """

    row: Row
    weight_bytes: int
    bits: float
    kv_bytes: float
    score: Score


Found = Mapping[str, Measured]


def judge(model: str, found: Found) -> list[dict[str, Any]]:
    """Return a row for every bar whose models were measured; a bar that lacks one is left out."""
    rows: list[dict[str, Any]] = []
    for bar in BARS:
        made = bar(found)
        if made is not None:
            what, figure, text, met = made
            rows.append(row(f"{model}: {what}", figure, text, met))
    return rows + curve(model, found)


Verdict = tuple[str, str, str, bool] | None


def _worse(m: Measured) -> str:
    return f"{m.score.percent:+.3f} ± {m.score.percent_error:.3f} %, KL {m.score.mean_kl:.2e}"


def _least(name: str, what: str, percent: float, kl: float | None = None) -> Callable[[Found], Verdict]:
    """Return the bar that a row costs at most ``percent`` of bits per byte, and at most ``kl`` nats a token."""

    def bar(found: Found) -> Verdict:
        if name not in found:
            return None
        m = found[name]
        text = f"<= +{percent} %" + (f", KL <= {kl:g}" if kl else "")
        met = m.score.percent <= percent and (kl is None or m.score.mean_kl <= kl)
        return f"{what} ({name})", _worse(m), text, met

    return bar


def _ratio(name: str, over: str, most: float) -> Callable[[Found], Verdict]:
    """Return the bar that the KL of a row is at most ``most`` times that of another, at no more bytes."""

    def bar(found: Found) -> Verdict:
        if name not in found or over not in found:
            return None
        a, b = found[name], found[over]
        value, error = kl_ratio(a.score, b.score)
        more = a.weight_bytes - b.weight_bytes
        text = f"{value:.3f} ± {error:.3f}" + (f" ({more:+,} bytes)" if more else "")
        return f"KL of {name} over {over}", text, f"<= {most}x", value <= most and more <= 0

    return bar


def _best(names: Sequence[str], what: str, percent: float) -> Callable[[Found], Verdict]:
    """Return the bar that the best of some rows costs at most ``percent`` of bits per byte."""

    def bar(found: Found) -> Verdict:
        have = [found[n] for n in names if n in found]
        if not have:
            return None
        m = min(have, key=lambda m: m.score.mean_kl)
        return f"{what}: {m.row.name}", _worse(m), f"<= +{percent} %", m.score.percent <= percent

    return bar


def _recovered(trained: str, rounded: str, share: float) -> Callable[[Found], Verdict]:
    """Return the bar that training recovers a share of what rounding lost in bits per byte."""

    def bar(found: Found) -> Verdict:
        if trained not in found or rounded not in found:
            return None
        lost, left = found[rounded].score.percent, found[trained].score.percent
        back = 1 - left / lost
        return f"loss of {rounded} recovered by {trained}", f"{back:.1%}", f">= {share:.0%}", back >= share

    return bar


def _closed(mixed: str, low: str, high: str, share: float) -> Callable[[Found], Verdict]:
    """Return the bar that a mixed model closes a share of the gap in KL between two uniform ones."""

    def bar(found: Found) -> Verdict:
        if not {mixed, low, high} <= set(found):
            return None
        closed = gap_closed(found, mixed, low, high)
        return f"gap in KL from {low} to {high} closed by {mixed}", f"{closed:.1%}", f">= {share:.0%}", closed >= share

    return bar


def gap_closed(found: Found, mixed: str, low: str, high: str) -> float:
    """Return the share of the gap in KL between ``low`` and ``high`` that ``mixed`` closes."""
    bottom, top, at = (found[n].score.mean_kl for n in (low, high, mixed))
    return (bottom - at) / (bottom - top)


def _times(mixed: str, reversed_: str, low: str, high: str, least: float) -> Callable[[Found], Verdict]:
    """Return the bar that the order by sensitivity closes a multiple of what the reversed order closes."""

    def bar(found: Found) -> Verdict:
        if not {mixed, reversed_, low, high} <= set(found):
            return None
        ahead, behind = gap_closed(found, mixed, low, high), gap_closed(found, reversed_, low, high)
        times = ahead / behind if behind > 0 else math.inf
        text = f"{times:.2f}x ({ahead:.1%} against {behind:.1%})"
        return f"gap closed by {mixed} over {reversed_}", text, f">= {least}x", times >= least

    return bar


def steps(found: Found, families: Sequence[str] | None = None) -> list[Measured]:
    """Return our rows that no other one of ours beats in bytes and KL, from few bytes to many."""
    ours = [m for m in found.values() if m.row.family != "llama.cpp" and m.row.weights and m.row.curve]
    if families is not None:
        ours = [m for m in ours if m.row.family in families]
    best, kept = math.inf, list[Measured]()
    for m in sorted(ours, key=lambda m: (m.weight_bytes, m.score.mean_kl)):
        if m.score.mean_kl < best:
            best = m.score.mean_kl
            kept.append(m)
    return kept


def curve(model: str, found: Found) -> list[dict[str, Any]]:
    """Compare every format of llama.cpp with our best row of no more bytes: a measured model, nothing interpolated."""
    rows: list[dict[str, Any]] = []
    frontier = steps(found)
    for theirs in (found[r.name] for r in LLAMA_ROWS if r.name in found):
        fitting = [m for m in frontier if m.weight_bytes <= theirs.weight_bytes]
        what = f"{model}: {theirs.row.name}, {theirs.weight_bytes:,} bytes, KL {theirs.score.mean_kl:.2e}"
        if not fitting:
            rows.append(row(what, "nothing of ours is as small", "KL at or below, no more bytes", False))
            continue
        ours = min(fitting, key=lambda m: m.score.mean_kl)
        value, error = kl_ratio(ours.score, theirs.score)
        figure = f"{value:.3f} ± {error:.3f} of its KL by {ours.row.name}, {ours.weight_bytes:,} bytes"
        rows.append(row(what, figure, "KL at or below, no more bytes", value <= 1, ratio=value))
    return rows


I4 = "i4<g64, asym>"
BARS: tuple[Callable[[Found], Verdict], ...] = (
    _least("rtn i8<g64>", "i8", 0.05, 5e-4),
    _ratio(f"gptq {I4}", f"rtn {I4}", 0.55),
    _ratio(f"awq {I4}", f"rtn {I4}", 0.92),
    _ratio(f"hqq {I4}", f"rtn {I4}", 1.0),
    _best([f"{m} {I4}" for m in ("gptq", "awq", "hqq")], "the best of i4 g64", 0.3),
    _ratio("rtn i4<g32, s4>", "rtn i4<g32>", 1.0),
    _ratio("gptq i4<g32, s4>", "gptq i4<g32>", 1.0),
    _ratio("gptq i3<g64, asym>", "rtn i3<g64, asym>", 0.6),
    _ratio("gptq i2<g32, asym>", "rtn i2<g32, asym>", 0.6),
    _ratio("gptq t2<g64>", "rtn t2<g64>", 0.6),
    _least("qat t2<g64>", "ternary after 2 CPU-minutes of training", 4.0),
    _recovered("qat t2<g64>", "rtn t2<g64>", 0.7),
    _closed("mixed 3.5 bits", "gptq i3<g64, asym>", f"gptq {I4}", 0.65),
    _times("mixed 3.5 bits", "reversed 3.5 bits", "gptq i3<g64, asym>", f"gptq {I4}", 3.0),
)
