"""The page: verdicts first, then pictures, then the tables that hold every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omnic.report.charts import byte_bar, layer_picture, parity_picture, time_picture
from omnic.report.facts import Facts, gather
from omnic.report.html import page, table
from omnic.report.lossy import lossy_section
from omnic.runtime.bundle import Bundle
from omnic.runtime.files import human_bytes

__all__ = ["render", "render_many", "write_report"]

#: lines of the spec in the table of times
_LINES = 12


def write_report(bundle: Bundle, out: Path) -> None:
    """Write the report of ``bundle`` to ``out``."""
    out.write_text(render(bundle), encoding="utf-8")


def render(bundle: Bundle) -> str:
    """Return the page of one bundle."""
    facts = gather(bundle)
    manifest = bundle.manifest
    return page(f"{manifest.model} for {manifest.target}", _body(facts))


def render_many(title: str, lead: str, extra: str, bundles: Sequence[Bundle]) -> str:
    """Return one page of several bundles, ``extra`` (HTML) first."""
    sections = [f"<h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p>{extra}"]
    sections += [
        f"<hr style='border:0;border-top:2px solid var(--rule);margin:56px 0 32px'>{_body(gather(b))}" for b in bundles
    ]
    return page(title, "".join(sections))


def _body(facts: Facts) -> str:
    parts = [
        _heading(facts),
        _tiles(facts),
        "<h2>The model, layer by layer</h2>",
        layer_picture(facts.layers),
        "<h2>Where the bytes are</h2>",
        byte_bar(facts.kinds),
        lossy_section(facts.lossy, table),
    ]
    if facts.profile:
        phases = [(p["phase"], [(s["part"], s["seconds"]) for s in p["parts"]]) for p in facts.profile["phases"]]
        parts += [
            f"<h2>Where the time goes</h2><p class=lead>{escape(facts.profile['conditions'])}</p>",
            time_picture(phases),
            _lines(facts.profile),
        ]
    parity = facts.bundle.parity
    if parity:
        cases = [(c["name"], c["ratio"], c["ok"]) for c in parity["cases"]]
        parts += [
            "<h2>Parity: the device program against the reference</h2>",
            "<p class=lead>Largest error relative to the rms of the logits. "
            f"Reference: {escape(parity['reference'])}.</p>",
            parity_picture(cases, parity["bound"] or 1e-3),
            _cases(parity),
        ]
    parts += [_fidelity(facts), _passes(facts), _states(facts), _programs(facts), _files(facts), _spec(facts)]
    return "".join(parts)


def _lines(profile: Mapping[str, Any]) -> str:
    """Return the lines of the spec that the last phase (decode) spends most on, op by op."""
    last = profile["phases"][-1]
    lines = last.get("lines", ())[:_LINES]
    total = sum(last["scopes"].values()) or 1e-12
    rows = [
        (
            f"{line['file']}:{line['line']}" if line["line"] else "",
            line["op"],
            str(line["count"]),
            f"{1e3 * line['seconds']:.3f} ms",
            f"{100 * line['seconds'] / total:.1f} %",
        )
        for line in lines
    ]
    if not rows:
        return ""
    lead = f"<p class=lead>{escape(last['phase'])}: the lines of the spec that take longest.</p>"
    return lead + table(("line", "op", "nodes", "time", "share"), rows)


def _heading(facts: Facts) -> str:
    manifest = facts.bundle.manifest
    profile = f", {manifest.profile} profile" if manifest.profile else ""
    return (
        f"<h1>{escape(manifest.model)}</h1><p class=lead>compiled for "
        f"<b>{escape(manifest.target)}</b>{escape(profile)}, "
        f"numeric class {escape(manifest.numeric_class)}, by omnic {escape(manifest.omnic)}</p>"
    )


def _tile(value: str, label: str, css: str = "") -> str:
    return f'<div class=tile><b class="{css}">{escape(value)}</b><span>{escape(label)}</span></div>'


def _tiles(facts: Facts) -> str:
    summary, parity, fidelity = facts.summary, facts.bundle.parity, facts.bundle.fidelity
    tiles = [
        _tile(f"{summary.parameters / 1e6:,.1f} M", f"parameters, {summary.active / 1e6:,.1f} M active a token"),
        _tile(human_bytes(summary.weight_bytes), "weights, as the model stores them"),
        _tile(human_bytes(summary.state_bytes), f"cache at capacity; {summary.kv_bytes_per_token:,} bytes a token"),
    ]
    if parity:
        tiles.append(
            _tile(f"{parity['ratio']:.1e}", _bound_words(parity), "good" if parity["ok"] else "bad")
        )
    if facts.bundle.manifest.needs:
        tiles.append(_tile("not measured here", f"parity needs {facts.bundle.manifest.needs}"))
    if fidelity:
        tiles.append(
            _tile(
                f"{fidelity['delta_percent']:+.2f} %", f"fidelity: bits per {fidelity['unit']} against the spec's model"
            )
        )
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _bound_words(parity: dict[str, Any]) -> str:
    return f"parity, bound {parity['bound']:.0e}" if parity["bound"] else f"parity, class {parity['class']}"


def _cases(parity: dict[str, Any]) -> str:
    rows = [
        (
            c["name"],
            f"{c['max_abs']:.2e}",
            f"{c['logit_rms']:.3f}",
            f"{c['ratio']:.2e}",
            c["ambiguous"],
            c["positions"],
            "ok" if c["ok"] else c["problem"],
        )
        for c in parity["cases"]
    ]
    found = table(("case", "max abs", "logit rms", "ratio", "ambiguous", "positions", ""), rows, (1, 2, 3, 4, 5))
    return f"<details><summary>every figure</summary>{found}</details>"


def _fidelity(facts: Facts) -> str:
    fidelity = facts.bundle.fidelity
    if not fidelity:
        return ""
    rows = [(k.replace("_", " "), f"{v:.6g}" if isinstance(v, float) else v) for k, v in fidelity.items()]
    return "<h2>Fidelity: what the lossy passes cost</h2>" + table(("figure", "value"), rows)


def _passes(facts: Facts) -> str:
    manifest = facts.bundle.manifest
    rows = [
        (p.name, p.stage, "changed" if p.changed else "nothing to do", "; ".join(r.message for r in p.remarks))
        for p in manifest.passes
    ]
    notes = "".join(f"<li>{escape(n)}</li>" for n in manifest.fallbacks)
    found = table(("pass", "stage", "result", "remarks"), rows) if rows else "<p class=lead>No pass was asked for.</p>"
    return f"<h2>Passes and remarks</h2>{found}" + (f"<ul>{notes}</ul>" if notes else "")


def _states(facts: Facts) -> str:
    rows = [
        (s.name, s.type, s.role, s.rollback, f"ring, window {s.window}" if s.ring else "linear")
        for s in facts.bundle.manifest.states
    ]
    return "<h2>States</h2>" + table(("state", "type", "role", "rollback", "slots"), rows)


def _programs(facts: Facts) -> str:
    parts: list[str] = ["<h2>Programs</h2>"]
    for program in facts.bundle.manifest.programs:
        dims = ", ".join(f"{n} in {low}..{high}" for n, (low, high) in program.dims.items())
        parts.append(
            f"<p><b>{escape(program.function)}</b> in <span class=mono>{escape(program.file)}</span>, "
            f"{escape(dims)}</p>"
        )
        if program.nodes:
            rows = [(node, made) for node, made in program.nodes.items()]
            parts.append(
                f"<details><summary>{len(rows)} fused nodes and the ops they stand for</summary>"
                f"{table(('node', 'ops'), rows)}</details>"
            )
    ops = ", ".join(f"{n} {op}" for op, n in facts.ops.items())
    parts.append(f"<p class=lead>Ops of the module: {escape(ops)}.</p>")
    return "".join(parts)


def _files(facts: Facts) -> str:
    manifest = facts.bundle.manifest
    if not manifest.files:
        return ""
    rows = [(name, f"{entry.bytes:,}", entry.sha256[:16]) for name, entry in manifest.files.items()]
    return "<h2>Files</h2>" + table(("file", "bytes", "sha256"), rows, (1,))


def _spec(facts: Facts) -> str:
    title = "Spec" if facts.bundle.from_spec else "Imported module"
    return f"<h2>{title}</h2><pre>{escape(facts.bundle.manifest.spec.text)}</pre>"
