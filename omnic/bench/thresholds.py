"""Thresholds: what a device must reach, as a versioned file, checked against a measurement and written back by one.

Two files, one schema each (``omnic bench --schema thresholds|acceptance``):

* *provider thresholds*: rows of a device, an execution provider, a preset, a context and a metric with a bound;
* *acceptance thresholds*: for each preset the least tokens a second that an app accepts, and the confidence at which
  a verifier head accepts a drafted token.

The flat maps that were used before (``{"CPU": 2, "DML": 15}``, tokens a second or a speed-up by provider) are read as
rows that hold for every device, preset and context.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from omnic.bench.measure import Measurement
from omnic.errors import InputError
from omnic.runtime.files import write_atomic

__all__ = ["ANY", "OLD_SPEEDS", "OLD_SPEEDUPS", "AcceptanceThresholds", "ProviderThresholds", "Threshold", "Verdict",
           "judge", "load_thresholds", "metrics_of", "raised", "required", "save_thresholds"]

ANY = "*"
Metric = Literal["decode_tokens_per_second", "prefill_tokens_per_second", "ttft_ms", "decode_p95_ms", "peak_bytes",
                 "speedup", "ran"]
#: metrics whose bound is a ``max``
_COSTS = ("ttft_ms", "decode_p95_ms", "peak_bytes")
#: the maps of before: tokens a second, and speed-ups, by execution provider
OLD_SPEEDS: Mapping[str, float] = {"CPU": 2.0, "DML": 15.0, "CoreML": 8.0, "NNAPI": 15.0}
OLD_SPEEDUPS: Mapping[str, float] = {"DML": 1.5, "CPU": 1.25, "CoreML": 1.25, "NNAPI": 1.25}
RAISE = 0.95


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Strict):
    """One bound."""

    device: str = Field(default=ANY, description="Name of the device (of the processor, here); * = any.")
    ep: str = Field(default=ANY, description="Execution provider: CPU, DML, CoreML, NNAPI; * = any.")
    preset: str = Field(default=ANY, description="Name of the model; * = any.")
    ctx: int | None = Field(default=None, ge=0, description="Tokens of the prompt or in the caches; absent = any.")
    metric: Metric
    over: str | None = Field(default=None, description="speedup: over this engine or bundle; absent = the best other.")
    op: str | None = Field(default=None, description="ran: the operator or kernel whose calls for a token are counted.")
    min: float | None = None
    max: float | None = None
    measured_at: str | None = Field(default=None, description="When the figure that it rests on was measured.")

    @model_validator(mode="after")
    def _one_bound(self) -> Threshold:
        if (self.min is None) == (self.max is None):
            raise ValueError("give min or max, one of the two")
        if (self.max is not None) != (self.metric in _COSTS):
            raise ValueError(f"{self.metric} is bounded by {'max' if self.metric in _COSTS else 'min'}")
        if (self.op is not None) != (self.metric == "ran"):
            raise ValueError("give op with the metric ran, and with no other")
        if self.over is not None and self.metric != "speedup":
            raise ValueError("over belongs to the metric speedup")
        return self

    @property
    def what(self) -> str:
        """The metric in words, with what it is over or of."""
        if self.op is not None:
            return f"calls of {self.op} for a token"
        return self.metric if self.over is None else f"{self.metric} over {self.over}"


class ProviderThresholds(_Strict):
    """The file of provider thresholds."""

    schema_version: Literal[1] = 1
    rows: tuple[Threshold, ...]


class Acceptance(_Strict):
    """What one preset must reach to be accepted."""

    preset: str
    min_tokens_per_second: float | None = Field(default=None, ge=0)
    verifier_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Confidence of the verifier head from which a drafted token is accepted."
    )
    measured_at: str | None = None


class AcceptanceThresholds(_Strict):
    """The file of acceptance thresholds."""

    schema_version: Literal[1] = 1
    rows: tuple[Acceptance, ...]


@dataclass(frozen=True)
class Verdict:
    """One bound and what was found.

    Attributes:
        threshold: the bound.
        found: the figure; None when nothing of the kind was measured.
        ok: whether the bound holds; None when not measured.
    """

    threshold: Threshold
    found: float | None
    ok: bool | None


def load_thresholds(path: Path) -> ProviderThresholds:
    """Read a file of provider thresholds, or one of the flat maps of before.

    Raises:
        InputError: it is not there, not JSON, or does not follow the schema.
    """
    value = _json(path)
    if isinstance(value, dict) and "schema_version" not in value:
        return _old_map(path, value)
    try:
        return ProviderThresholds.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise InputError(f"{path}: {place}: {first['msg']}", "see: omnic bench --schema thresholds") from error


def load_acceptance(path: Path) -> AcceptanceThresholds:
    """Read a file of acceptance thresholds.

    Raises:
        InputError: as :func:`load_thresholds`.
    """
    try:
        return AcceptanceThresholds.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise InputError(f"{path}: {place}: {first['msg']}", "see: omnic bench --schema acceptance") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def _old_map(path: Path, value: Mapping[str, Any]) -> ProviderThresholds:
    """Return the rows of ``{"CPU": 2}``, or of ``{"tokens_per_second": {...}, "speedup": {...}}``."""
    parts = value if any(isinstance(v, dict) for v in value.values()) else {"tokens_per_second": value}
    metrics: Mapping[str, Metric] = {"tokens_per_second": "decode_tokens_per_second", "speedup": "speedup"}
    rows: list[Threshold] = []
    for name, entries in parts.items():
        if name not in metrics or not isinstance(entries, dict):
            raise InputError(f"{path}: '{name}' is neither a schema_version nor one of {', '.join(metrics)}",
                             "see: omnic bench --schema thresholds")
        for ep, least in entries.items():
            if not isinstance(least, (int, float)) or isinstance(least, bool):
                raise InputError(f"{path}: {ep}: '{least}' is not a number")
            rows.append(Threshold(ep=ep, metric=metrics[name], min=float(least)))
    return ProviderThresholds(rows=tuple(rows))


def old_thresholds() -> ProviderThresholds:
    """Return the maps of before as rows."""
    rows = [Threshold(ep=ep, metric="decode_tokens_per_second", min=v) for ep, v in OLD_SPEEDS.items()]
    rows += [Threshold(ep=ep, metric="speedup", min=v) for ep, v in OLD_SPEEDUPS.items()]
    return ProviderThresholds(rows=tuple(rows))


def metrics_of(measured: Measurement) -> list[tuple[Metric, int, float]]:
    """Return (metric, context, figure) of the first contestant; a speed-up is over the best of the others."""
    ours = measured.contestants[0].name
    found: list[tuple[Metric, int, float]] = []
    for figure in (f for f in measured.figures if f.contestant == ours):
        if figure.phase == "prefill":
            found.append(("prefill_tokens_per_second", figure.tokens, figure.per_second))
            found.append(("ttft_ms", figure.tokens, 1e3 * figure.p50))
        else:
            found.append(("decode_tokens_per_second", figure.tokens, figure.per_second))
            found.append(("decode_p95_ms", figure.tokens, 1e3 * figure.p95))
            others = [f.speedup.median for f in measured.figures
                      if f.phase == "decode" and f.tokens == figure.tokens and f.speedup is not None]
            if others:
                found.append(("speedup", figure.tokens, min(others)))
    found.append(("peak_bytes", 0, float(measured.peaks[ours])))
    return found


def judge(thresholds: ProviderThresholds, measured: Measurement) -> list[Verdict]:
    """Compare every bound that speaks of this device and model with the worst figure that it covers.

    A bound of a provider that did not run is not measured.
    """
    device, ep = measured.machine["processor"], measured.contestants[0].provider
    verdicts: list[Verdict] = []
    for row in thresholds.rows:
        if row.device not in (ANY, device) or row.preset not in (ANY, measured.model):
            continue
        figures = _covered(row, measured) if row.ep in (ANY, ep) else []
        if not figures:
            verdicts.append(Verdict(row, None, None))
            continue
        worst = max(figures) if row.max is not None else min(figures)
        ok = worst <= row.max if row.max is not None else row.min is not None and worst >= row.min
        verdicts.append(Verdict(row, worst, ok))
    return verdicts


def _covered(row: Threshold, measured: Measurement) -> list[float]:
    """Return the figures that a bound speaks of."""
    if row.op is not None:
        if not measured.ran:
            return []
        return [float(sum(r.count for r in measured.ran if r.op == row.op))]
    if row.over is not None:
        return [f.speedup.median for f in measured.figures
                if f.contestant == row.over and f.phase == "decode" and row.ctx in (None, f.tokens) and f.speedup]
    return [v for metric, ctx, v in metrics_of(measured) if metric == row.metric and row.ctx in (None, ctx)]


def required(text: str) -> list[Threshold]:
    """Return the bounds of ``NAME,NAME=COUNT``: operators that must run for a token, once or so many times.

    Raises:
        InputError: a count is no number.
    """
    rows: list[Threshold] = []
    for word in (w.strip() for w in text.split(",") if w.strip()):
        op, _, count = word.partition("=")
        if count and not count.isdigit():
            raise InputError(f"--require {word}: '{count}' is no number of calls", "write --require MatMulNBits=61")
        rows.append(Threshold(metric="ran", op=op, min=float(count or 1)))
    return rows


def raised(known: ProviderThresholds | None, measured: Measurement) -> ProviderThresholds:
    """Return ``known`` with a bound for every figure of this measurement: 0.95 of a speed, a cost divided by that.

    A bound that is stricter already stays.
    """
    device, ep = measured.machine["processor"], measured.contestants[0].provider
    rows = {_key(row): row for row in (known.rows if known else ())}
    for metric, ctx, value in metrics_of(measured):
        cost = metric in _COSTS
        row = Threshold(
            device=device, ep=ep, preset=measured.model, ctx=ctx or None, metric=metric, measured_at=measured.at,
            max=_short(value / RAISE) if cost else None, min=None if cost else _short(value * RAISE),
        )  # fmt: skip
        old = rows.get(_key(row))
        if old is None or _stricter(row, old):
            rows[_key(row)] = row
    return ProviderThresholds(rows=tuple(rows.values()))


def accepted(known: AcceptanceThresholds | None, measured: Measurement) -> AcceptanceThresholds:
    """Return ``known`` with the least tokens a second of this measurement's model, 0.95 of what was found."""
    slowest = min((v for metric, _, v in metrics_of(measured) if metric == "decode_tokens_per_second"), default=None)
    rows = {row.preset: row for row in (known.rows if known else ())}
    old = rows.get(measured.model, Acceptance(preset=measured.model))
    if slowest is not None:
        least = max(_short(slowest * RAISE), old.min_tokens_per_second or 0.0)
        rows[measured.model] = old.model_copy(update={"min_tokens_per_second": least, "measured_at": measured.at})
    return AcceptanceThresholds(rows=tuple(rows.values()))


def save_thresholds(path: Path, thresholds: ProviderThresholds | AcceptanceThresholds) -> None:
    """Write the file, whole or not at all."""
    text = json.dumps(thresholds.model_dump(exclude_none=True, mode="json"), indent=2)
    write_atomic(path, (text + "\n").encode())


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each file."""
    return {"thresholds": ProviderThresholds.model_json_schema(),
            "acceptance": AcceptanceThresholds.model_json_schema()}


def _key(row: Threshold) -> tuple[Any, ...]:
    return row.device, row.ep, row.preset, row.ctx, row.metric, row.over, row.op


def _stricter(new: Threshold, old: Threshold) -> bool:
    if new.max is not None and old.max is not None:
        return new.max < old.max
    return new.min is not None and old.min is not None and new.min > old.min


def _short(value: float) -> float:
    """Return the number with four significant digits."""
    return float(f"{value:.4g}")


def failures(verdicts: Iterable[Verdict]) -> int:
    """Return how many bounds do not hold."""
    return sum(v.ok is False for v in verdicts)
