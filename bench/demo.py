"""``make demo``: the shipped models compiled for torch and ONNX, continuing real code, measured, on one page.

Compiles ``tiny`` and ``tiny_moe`` for both targets, continues a piece of the held-out Python text with
each, measures tokens a second, memory, bits per byte and parity, and writes ``build/demo/report.html``.
What was measured before on the same bundle is not measured again; ``--again`` measures all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from omnic.api import compile as compile_model
from omnic.api import load
from omnic.errors import OmnicError
from omnic.report.page import render_many
from omnic.runtime.bundle import Bundle
from omnic.runtime.files import human_bytes, write_atomic
from omnic.runtime.resources import cores
from omnic.runtime.score import score_text, xz_bits_per_byte
from omnic.training.heldout import heldout

MODELS = ("tiny", "tiny_moe")
TARGETS = ("torch", "onnx")
NEW_TOKENS = 64
PROMPT_LINES = 24


def prompt_text() -> str:
    """Return a piece of the held-out text that ends where the first constructor of a class begins."""
    lines = heldout().text.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if i > 40 and line.strip().startswith("def __init__(self, "))
    # Without the last newline: the tokenizer joins a newline with the indent that follows it.
    return "".join(lines[max(at - PROMPT_LINES, 0) : at + 1]).rstrip()


def measure(bundle: Bundle, text: str, say: Console) -> dict[str, Any]:
    """Return the figures of one bundle: a greedy continuation and bits per byte of the whole held-out text."""
    model = load(bundle)
    prompt = prompt_text()
    model.generate(prompt, max_new=4, greedy=True)
    answer = model.generate(prompt, max_new=NEW_TOKENS, greedy=True)
    shown = model.generate(prompt, max_new=NEW_TOKENS, temperature=0.7, top_p=0.9, seed=1)
    started = time.monotonic()
    bits = score_text(model.session, model.needed_tokenizer, text)
    say.print(
        f"  {bundle.path.name}: {len(text):,} characters scored in {time.monotonic() - started:.0f} s", style="dim"
    )
    return {
        "key": bundle.manifest.key,
        "prompt": prompt,
        "text": shown.text,
        "tokens_per_s": answer.stats.tokens_per_s,
        "ttft_s": answer.stats.ttft_s,
        "prompt_tokens": answer.stats.prompt_tokens,
        "state_bytes": answer.stats.state_bytes,
        "bits_per_byte": bits,
    }


def _still_true(known: dict[str, Any], bundle: Bundle) -> bool:
    """Whether figures measured before belong to this bundle and this prompt."""
    return known.get("key") == bundle.manifest.key and known.get("prompt") == prompt_text()


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", default="build/demo", help="folder of the bundles and the report")
    parser.add_argument("--again", action="store_true", help="measure again what was measured before")
    args = parser.parse_args()
    say, out, began = Console(highlight=False), Path(args.out), time.monotonic()
    known_file = out / "figures.json"
    known = json.loads(known_file.read_text()) if known_file.is_file() and not args.again else {}
    text, bundles, figures = heldout().text, list[Bundle](), dict[str, dict[str, Any]]()
    xz = xz_bits_per_byte(text)
    for model in MODELS:
        for target in TARGETS:
            name = f"{model}-{target}"
            say.print(f"[bold]{name}[/bold]: compile and prove")
            bundle = compile_model(model, target, out / name, force=args.again)
            bundles.append(bundle)
            fresh = known.get(name, {})
            figures[name] = fresh if _still_true(fresh, bundle) else measure(bundle, text, say)
    write_atomic(known_file, json.dumps(figures, indent=2).encode())
    prompt = prompt_text()
    for model in MODELS:
        answer = figures[f"{model}-torch"]["text"]
        say.rule(f"{model} continues a piece of the held-out text (temperature 0.7, top-p 0.9)")
        say.print(Syntax(prompt + answer, "python", theme="ansi_light", highlight_lines={prompt.count(chr(10)) + 1}))
    say.print(_table(figures, bundles, xz))
    page = out / "report.html"
    lead = (
        f"Two small models, trained on the Python standard library, compiled from one spec each for two targets. "
        f"{cores():.0f} cores. xz -9e needs {xz:.3f} bits per byte of the same text."
    )
    write_atomic(page, render_many("omnic demo", lead, _html(figures, bundles, xz, prompt), bundles).encode())
    say.print(f"report: {page}   ({time.monotonic() - began:.0f} s)")
    return 0 if all(b.parity and b.parity["ok"] for b in bundles) else 1


def _rows(figures: dict[str, dict[str, Any]], bundles: list[Bundle], xz: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for bundle in bundles:
        one, parity = figures[bundle.path.name], bundle.parity or {}
        rows.append(
            (
                bundle.path.name,
                f"{one['tokens_per_s']:,.0f}",
                f"{1e3 * one['ttft_s']:,.0f} ms",
                human_bytes(bundle.bytes()),
                human_bytes(one["state_bytes"]),
                f"{one['bits_per_byte']:.3f}",
                f"{one['bits_per_byte'] / xz:.2f}x",
                f"{parity.get('ratio', float('nan')):.1e}{' ok' if parity.get('ok') else ' MISSED'}",
            )
        )
    return rows


HEADINGS = ("bundle", "tokens/s", "first", "size", "cache", "bits/byte", "of xz", "parity")


def _table(figures: dict[str, dict[str, Any]], bundles: list[Bundle], xz: float) -> Table:
    table = Table(
        title=f"greedy, batch 1, {NEW_TOKENS} new tokens; xz -9e: {xz:.3f} bits per byte",
        padding=(0, 0),
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "bundle" else "right")
    for row in _rows(figures, bundles, xz):
        table.add_row(*row)
    return table


def _html(figures: dict[str, dict[str, Any]], bundles: list[Bundle], xz: float, prompt: str) -> str:
    head = "".join(f"<th{'' if i == 0 else ' class=n'}>{escape(h)}</th>" for i, h in enumerate(HEADINGS))
    body = "".join(
        "<tr>" + "".join(f"<td{'' if i == 0 else ' class=n'}>{escape(c)}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in _rows(figures, bundles, xz)
    )
    answers = "".join(
        f"<h2>{escape(model)} continues held-out code</h2><pre><span style='color:var(--dim)'>{escape(prompt)}</span>"
        f"<b>{escape(figures[f'{model}-torch']['text'])}</b></pre>"
        for model in MODELS
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{answers}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OmnicError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
