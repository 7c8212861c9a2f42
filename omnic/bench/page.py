"""The measurement as a page: what was reached, how far from the limits, and how it went before."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from omnic.bench.measure import Figure, Measurement
from omnic.bench.thresholds import Verdict
from omnic.report.html import page, table
from omnic.report.plots import plot
from omnic.runtime.files import human_bytes

__all__ = ["render"]

Earlier = Sequence[tuple[str, str, int, float]]


def render(measured: Measurement, verdicts: Sequence[Verdict] = (), earlier: Earlier = ()) -> str:
    """Return the page; ``earlier`` is (at, phase, tokens, tokens a second) of earlier runs, oldest first."""
    plan = measured.plan
    threads = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    at = measured.at.replace("T", " ").replace("+00:00", " UTC")
    parts = [
        f"<h1>{escape(measured.model)}</h1><p class=lead>measured {escape(at)} on"
        f" {escape(measured.machine['processor'])}, {threads}, {plan.rounds} rounds in turns,"
        f" {plan.new} tokens a turn</p>"
    ]
    for phase, title in (("decode", "Decoding: milliseconds a token"), ("prefill", "Prompts: tokens a second")):
        found = [f for f in measured.figures if f.phase == phase]
        if found:
            parts += [f"<h2>{title}</h2>", _picture(found, phase), _figures(found)]
    parts += [_limits(measured), _memory(measured)]
    if measured.ran:
        parts.append(_ran(measured))
    if verdicts:
        parts.append(_verdicts(verdicts))
    parts += [_history(measured, phase, earlier) for phase in ("decode", "prefill")]
    if measured.absent:
        parts.append("<h2>Not measured</h2>" + table(("engine", "why"), list(measured.absent.items())))
    parts.append("<h2>Conditions</h2>" + table(("", ""), [(k, str(v)) for k, v in _conditions(measured)]))
    return page(f"{measured.model}, measured", "".join(parts))


def _picture(found: Sequence[Figure], phase: str) -> str:
    names = list(dict.fromkeys(f.contestant for f in found))
    lines = {n: [(f.tokens, 1e3 * f.p50 if phase == "decode" else f.per_second) for f in found if f.contestant == n]
             for n in names}  # fmt: skip
    unit = "ms a token" if phase == "decode" else "tokens a second"
    return plot(lines, "tokens in the caches" if phase == "decode" else "tokens of the prompt", unit)


def _figures(found: Sequence[Figure]) -> str:
    decode = found[0].phase == "decode"
    head = ("engine", "context" if decode else "prompt", "p50 ms", "p95 ms", "tokens/s", "of the limit",
            "omnic's speed over it")
    rows: list[tuple[str, ...]] = []
    for f in found:
        gain = f"{f.speedup.median:.2f}x [{f.speedup.low:.2f}, {f.speedup.high:.2f}]" if f.speedup else ""
        rows.append((f.contestant, f"{f.tokens:,}", f"{1e3 * f.p50:.2f}", f"{1e3 * f.p95:.2f}", f"{f.per_second:,.1f}",
                     "" if f.share is None else f"{f.share.median:.0%}", gain))
    return table(head, rows, numbers=range(1, 7))


def _limits(measured: Measurement) -> str:
    limits = measured.limits
    return "<h2>What the machine can do</h2>" + table(
        ("limit", "in this run"),
        [(f"bytes read: {limits.how}", f"{limits.read / 1e9:.1f} GB/s"),
         ("f32 products", f"{limits.flops / 1e9:.1f} GFLOP/s")],
    )


def _memory(measured: Measurement) -> str:
    rows = [(name, human_bytes(size), human_bytes(measured.empty.get(name, 0)), f"{measured.loads[name]:.2f} s")
            for name, size in measured.peaks.items()]  # fmt: skip
    found = "<h2>Memory</h2>" + table(("engine", "peak of its process", "of it before it opened", "opened in"), rows,
                                      numbers=(1, 2, 3))
    need = measured.memory
    if need is None:
        return found
    ours = measured.contestants[0].name
    parts = [("weights", need.weights), (f"states of {need.tokens:,} tokens", need.states),
             ("values between nodes", need.values), ("the engine itself", need.engine), ("estimated", need.total),
             (f"measured, {measured.peaks[ours] / need.total:.2f} of it", measured.peaks[ours])]
    return found + f"<h3>{escape(ours)}</h3>" + table(
        ("part", "bytes"), [(name, human_bytes(size)) for name, size in parts], numbers=(1,))


def _ran(measured: Measurement) -> str:
    rows = [(r.op, r.provider, str(r.count), "" if r.seconds is None else f"{1e6 * r.seconds:.0f}")
            for r in measured.ran]  # fmt: skip
    return "<h2>What ran for a token</h2>" + table(("operator or kernel", "by", "calls", "microseconds"), rows,
                                                   numbers=(2, 3))


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows: list[tuple[str, ...]] = []
    for v in verdicts:
        t = v.threshold
        bound = f"at least {t.min:g}" if t.min is not None else f"at most {t.max:g}"
        rows.append((t.what, *("any" if name == "*" else name for name in (t.ep, t.preset)),
                     "any" if t.ctx is None else str(t.ctx), bound,
                     "not measured" if v.found is None else f"{v.found:.4g}",
                     {True: "met", False: "missed", None: "not measured"}[v.ok]))
    return "<h2>Thresholds</h2>" + table(("metric", "provider", "model", "context", "bound", "found", ""), rows)


def _history(measured: Measurement, phase: str, earlier: Earlier) -> str:
    runs = {at: float(number) for number, at in enumerate(dict.fromkeys(at for at, *_ in earlier), 1)}
    lengths = sorted({tokens for _, kind, tokens, _ in earlier if kind == phase})
    lines = {f"{phase} {length}": [(runs[at], speed) for at, kind, tokens, speed in earlier
                                   if (kind, tokens) == (phase, length)] for length in lengths}  # fmt: skip
    if not any(len(line) > 1 for line in lines.values()):
        return ""
    return f"<h2>Earlier runs: {phase}</h2>" + plot(lines, "run", "tokens a second")


def _conditions(measured: Measurement) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [*measured.machine.items(), *measured.conditions.items()]
    for contestant in measured.contestants:
        rows.append((contestant.name, ", ".join(f"{k} {v}" for k, v in contestant.about.items())))
    return rows
