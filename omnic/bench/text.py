"""The measurement as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnic.bench.measure import Measurement
from omnic.bench.thresholds import Verdict
from omnic.runtime.files import human_bytes

__all__ = ["lines"]

#: kinds of operators that are shown one by one
SHOWN = 12
Columns = Callable[[Sequence[tuple[str, ...]], tuple[bool, ...]], list[str]]


def lines(measured: Measurement, verdicts: Sequence[Verdict], columns: Columns) -> list[str]:
    """Return what was measured; ``columns`` lines up rows, with those flush right that are True."""
    plan = measured.plan
    found = [
        f"{measured.model} on {measured.machine['processor']}, {plan.threads} thread{'s' * (plan.threads > 1)},"
        f" {plan.rounds} rounds in turns, weights {measured.conditions['weights']}",
        f"the machine reads {measured.limits.read / 1e9:.1f} GB/s ({measured.limits.how}) and multiplies at"
        f" {measured.limits.flops / 1e9:.0f} GFLOP/s (f32) in this run",
        "",
    ]
    rows: list[tuple[str, ...]] = [("engine", "phase", "tokens", "p50 ms", "p95 ms", "tokens/s", "of limit",
                                    "omnic's speed over it")]  # fmt: skip
    for f in measured.figures:
        gain = f"{f.speedup.median:.2f}x [{f.speedup.low:.2f}, {f.speedup.high:.2f}]" if f.speedup else ""
        rows.append((f.contestant, f.phase, f"{f.tokens:,}", f"{1e3 * f.p50:.2f}", f"{1e3 * f.p95:.2f}",
                     f"{f.per_second:,.1f}", "" if f.share is None else f"{f.share.median:.0%}", gain))
    found += columns(rows, (False, False, True, True, True, True, True, False))
    peaks = [(name, human_bytes(size), human_bytes(measured.empty[name]), f"{measured.loads[name]:.2f} s")
             for name, size in measured.peaks.items()]  # fmt: skip
    found += ["", *columns([("engine", "peak memory", "of it before it opened", "opened in"), *peaks],
                           (False, True, True, True))]
    found += _memory(measured, columns)
    if measured.ran:
        found += ["", *_ran(measured, columns)]
    if "canary" in measured.conditions:
        found += ["", f"canary: {measured.conditions['canary']}"]
    found += [f"{name}: not measured: {why}" for name, why in measured.absent.items()]
    return found + [verdict_line(v) for v in verdicts]


def verdict_line(v: Verdict) -> str:
    """Return one bound and what became of it."""
    t = v.threshold
    bound = f">= {t.min:g}" if t.min is not None else f"<= {t.max:g}"
    ep = "any provider" if t.ep == "*" else t.ep
    place = "" if t.op else f" at {'any context' if t.ctx is None else t.ctx}, {ep}"
    return (f"{t.what}{place}: {'not measured' if v.found is None else f'{v.found:.4g}'}, bound {bound}:"
            f" {({True: 'met', False: 'MISSED', None: 'not measured'})[v.ok]}")


def _memory(measured: Measurement, columns: Columns) -> list[str]:
    need = measured.memory
    if need is None:
        return []
    ours = measured.contestants[0].name
    parts = (("weights", need.weights), (f"states of {need.tokens:,} tokens", need.states),
             ("values", need.values), ("the engine", need.engine))
    return ["", *columns([("estimated for", *(name for name, _ in parts), "together", "measured"),
                          (ours, *(human_bytes(size) for _, size in parts), human_bytes(need.total),
                           f"{measured.peaks[ours] / need.total:.2f} of it")], (False, *[True] * 6))]


def _ran(measured: Measurement, columns: Columns) -> list[str]:
    rows: list[tuple[str, ...]] = [("ran for a token", "by", "calls", "us")]
    for r in measured.ran[:SHOWN]:
        rows.append((r.op, r.provider, str(r.count), "" if r.seconds is None else f"{1e6 * r.seconds:.0f}"))
    rest = measured.ran[SHOWN:]
    if rest:
        timed = sum(r.seconds or 0.0 for r in rest)
        rows.append((f"{len(rest)} other kinds", "", str(sum(r.count for r in rest)),
                     f"{1e6 * timed:.0f}" if timed else ""))
    return columns(rows, (False, False, True, True))
