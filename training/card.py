"""The model card of a finished run: what it is, how to make it again, how it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnic.training.files import replace_file
from omnic.training.run_folder import RunFolder

__all__ = ["card_text", "write_card"]

_BARS = "▁▂▃▄▅▆▇█"


def write_card(folder: RunFolder, facts: dict[str, Any]) -> Path:
    """Write ``card.md`` beside the weights and return its path."""
    path = folder.path / "card.md"
    replace_file(path, card_text(facts, folder.curve()).encode())
    return path


def card_text(facts: dict[str, Any], curve: Sequence[dict[str, Any]]) -> str:
    """Return the card in Markdown.

    Args:
        facts: ``result.json``.
        curve: the log's entries.
    """
    figure, corpus, held = facts["bits_per_byte"], facts["corpus"], facts["heldout"]
    train, distill, found = facts["train"], facts["distill"], facts["tokens_per_pass"]
    versions, config = facts["versions"], facts["config"]
    lines = [
        f"# {facts['model']}",
        "",
        f"{facts['weights']['file']}: {facts['weights']['bytes']:,} bytes, front parameter names.",
        "",
        "## How good it is",
        "",
        "| measure | value |",
        "|---|---|",
        f"| bits per byte of the held-out text | **{figure['value']:.4f}** |",
        f"| `xz -9e` of the same text | {facts['xz_bits_per_byte']:.4f} |",
        f"| ratio | **{facts['ratio_to_xz']:.3f}** |",
    ]
    if found:
        accepted = " / ".join(f"{share:.2f}" for share in found["accepted"])
        lines += [
            f"| tokens a pass, {found['drafts']} MTP drafts | **{found['value']:.2f}** ± {found['error']:.2f} |",
            f"| prefixes with at least 1 / 2 / 3 drafts accepted | {accepted} |",
            f"| first draft = main choice, on real text | {found['agreement']:.3f} |",
        ]
    lines += [
        "",
        f"Bits per byte: sum of -log2 p over all {figure['tokens']:,} tokens / {figure['bytes']:,} UTF-8 bytes, "
        f"{figure['windows']} windows of 256 tokens with stride 128, each token scored once, on the stored weights.",
    ]
    if found:
        lines.append(
            f"Tokens a pass: greedy verification after {found['prefixes']} held-out prefixes of 192 tokens, first pass "
            "only, drafts by re-applying the MTP block."
        )
    lines += [
        "",
        "## How it was made",
        "",
        "```",
        facts["reproduce"],
        "```",
        "",
        "The same weights come out bit for bit with the same processor kind, threads, mode and versions.",
        "",
        "| | |",
        "|---|---|",
        f"| budget and time used | {_hours(facts['budget_hours'])}, {facts['seconds'] / 60:.1f} minutes of wall time, "
        f"{facts['cpu_seconds'] / 60:.1f} of processor time |",
        f"| machine | {versions['processor']}; {facts['threads']} threads, {facts['mode']} |",
        f"| versions | Python {versions['python']}, torch {versions['torch']}, tokenizers {versions['tokenizers']} |",
        f"| seed | {facts['seed']} |",
        f"| corpus | {corpus['source']}: {corpus['bytes']:,} bytes, {corpus['documents']} documents, "
        f"{corpus['tokens']:,} tokens; sha256 `{corpus['sha256']}` |",
        f"| tokenizer | {facts['tokenizer']['size']} entries; sha256 `{facts['tokenizer']['sha256']}` |",
        f"| held-out text | {held['modules']} modules, {held['bytes']:,} bytes; sha256 `{held['sha256']}` |",
        f"| steps | {train['schedule']['steps']} of {config['batch']} windows of {config['sequence']} tokens "
        f"({train['schedule']['steps'] * config['batch'] * config['sequence'] / 1e6:.2f} M tokens), "
        f"decay from step {train['schedule']['decay_start']} |",
    ]
    if distill:
        steps = distill["schedule"]["steps"]
        lines.append(
            f"| MTP distillation | {steps} steps of {config['distill_batch']} windows, trunk frozen, "
            f"{config['distill_unroll']} drafts unrolled |"
        )
    lines += [
        "",
        "## Curve",
        "",
        "| step | tokens | loss (nats a token) | held out (sampled windows), bits per byte |",
        "|---|---|---|---|",
    ]
    lines += _curve_rows(curve, train, config)
    main = [e["loss"] for e in curve if e["phase"] == "train"]
    if main:
        lines += ["", f"`{sparkline(main)}`"]
    lines += [
        "",
        "## Limits",
        "",
        f"A model of a few million parameters, trained for minutes on Python source in windows of {config['sequence']} "
        "tokens: it continues code plausibly for a line or two and knows nothing else. Trained on the Python standard "
        "library (PSF licence 2).",
        "",
    ]
    return "\n".join(lines)


def sparkline(values: Sequence[float], width: int = 72) -> str:
    """Return values as a line of bars, high to low, each the mean of an equal share."""
    count = min(width, len(values))
    means = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    span = high - low
    if not math.isfinite(span) or span == 0:
        return _BARS[0] * count
    return "".join(_BARS[min(7, int(8 * (m - low) / span))] for m in means)


def _curve_rows(curve: Sequence[dict[str, Any]], train: dict[str, Any], config: dict[str, Any]) -> list[str]:
    losses = [e["loss"] for e in curve if e["phase"] == "train"]
    rows = []
    for point in train["evaluations"]:
        step = point["step"]
        near = losses[max(0, step - 50) : step]
        mean = f"{sum(near) / len(near):.3f}" if near else ""
        tokens = step * config["batch"] * config["sequence"] / 1e6
        rows.append(f"| {step} | {tokens:.2f} M | {mean} | {point['bits_per_byte']:.4f} |")
    if losses:
        near = losses[-50:]
        tokens = len(losses) * config["batch"] * config["sequence"] / 1e6
        rows.append(f"| {len(losses)} | {tokens:.2f} M | {sum(near) / len(near):.3f} | |")
    return rows


def _hours(hours: float | None) -> str:
    return f"{hours:g} hours" if hours is not None else "given steps"
