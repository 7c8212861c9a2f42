"""What a bundle is, in a few figures: for the command line and for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.ir.numeric import find_class
from omnic.runtime.bundle import Bundle

__all__ = ["bundle_summary", "print_summary"]


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """Return the figures of one bundle."""
    manifest, parity, fidelity = bundle.manifest, bundle.parity, bundle.fidelity
    return {
        "bundle": str(bundle.path),
        "model": manifest.model,
        "target": manifest.target,
        "profile": manifest.profile,
        "bytes": bundle.bytes(),
        "class": manifest.numeric_class,
        "parity": None if parity is None else parity["ratio"],
        "parity_bound": None if parity is None else parity["bound"],
        "parity_ok": None if parity is None else parity["ok"],
        "parity_cases": [] if parity is None else parity["cases"],
        "fidelity": fidelity,
        "prefill": None if manifest.prefill is None else manifest.prefill.model_dump(),
        "fallbacks": list(manifest.fallbacks),
        "needs": manifest.needs,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the figures for a person."""
    from rich.console import Console

    console = Console(highlight=False)
    profile = f" ({summary['profile']})" if summary["profile"] else ""
    console.print(
        f"[bold]{summary['bundle']}[/bold]  {summary['model']} for {summary['target']}{profile}, "
        f"{summary['bytes'] / 1e6:,.1f} MB"
    )
    if summary["needs"]:
        console.print(f"  parity    not measured here: needs {summary['needs']}")
    elif summary["parity"] is None:
        console.print("  parity    not measured (--parity off)")
    else:
        verdict = "[green]ok[/green]" if summary["parity_ok"] else "[red]MISSED[/red]"
        console.print(
            f"  parity    {summary['parity']:.1e} of the logit rms, {_bound(summary)}: {verdict}"
        )
        for case in summary["parity_cases"]:
            if not case["ok"]:
                console.print(f"            {case['name']}: {case['problem']}")
    fidelity = summary["fidelity"]
    if fidelity:
        console.print(
            f"  fidelity  KL {fidelity['kl']:.1e} nats a token, {fidelity['delta_percent']:+.2f} % bits per "
            f"{fidelity['unit']} over {fidelity['tokens']} tokens ({fidelity['text']})"
        )
    prefill = summary["prefill"]
    if prefill:
        console.print(
            f"  prefill   calls of {prefill['from_tokens']} tokens and more: int8, {prefill['bytes'] / 1e6:,.1f} MB of "
            f"second weights{_prefill_cost(fidelity)}"
        )
    for note in summary["fallbacks"]:
        console.print(f"  note      {note}")


def _prefill_cost(fidelity: Mapping[str, Any] | None) -> str:
    found = (fidelity or {}).get("prefill")
    return f"; KL {found['kl']:.1e}, of tokens behind a prompt {found['kl_after']:.1e}" if found else ""


def _bound(summary: Mapping[str, Any]) -> str:
    """Say what the parity was held against: a bound, or the choice and the distribution where rounding decides."""
    if summary["parity_bound"]:
        return f"bound {summary['parity_bound']:.0e} ({summary['class']})"
    limit = find_class(summary["class"]).kl or 0.0
    return f"class {summary['class']}: equal choices outside near-ties and KL <= {limit:.0e} nats"
