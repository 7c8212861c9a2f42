"""``omnic info SPEC``: parameters, bytes, states and arithmetic of a model, counted from its IR."""

from __future__ import annotations

import argparse

NAME = "info"
HELP = "parameters, bytes, KV cache and FLOPs of a model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or the name of a preset")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the summary of one spec."""
    import json

    from omnic.models import build
    from omnic.models.summary import summarise
    from omnic.spec import load_spec

    spec = load_spec(args.spec)
    summary = summarise(build(spec))
    if args.json:
        print(json.dumps(summary.as_dict(), indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"{summary.model}: {summary.parameters / 1e6:,.1f} M parameters, "
        f"{summary.active / 1e6:,.1f} M active a token",
        title_justify="left",
    )
    for heading in ("weights", "parameters", "share", "bytes"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    for kind, count in sorted(summary.by_kind.items(), key=lambda item: -item[1]):
        table.add_row(
            kind, f"{count:,}", f"{100 * count / summary.parameters:.1f} %", f"{summary.bytes_by_kind[kind]:,}"
        )
    table.add_row("total", f"{summary.parameters:,}", "", f"{summary.weight_bytes:,}", style="bold")
    console.print(table)
    rows = (
        (
            "KV cache",
            f"{summary.kv_bytes_per_token:,} bytes a token; "
            f"{summary.state_bytes / 1e6:,.1f} MB for {spec.capacity:,} tokens",
        ),
        (
            "FLOPs a token",
            f"{summary.flops_per_token / 1e6:,.1f} M with weights, "
            f"up to {summary.attention_flops_per_token / 1e6:,.1f} M with the cache",
        ),
        (
            "bytes read a token",
            f"{summary.weight_bytes_per_token / 1e6:,.1f} MB of weights, "
            f"up to {summary.state_bytes_per_token / 1e6:,.1f} MB of cache",
        ),
    )
    for name, text in rows:
        console.print(f"{name:>20}  {text}", highlight=False)
    return 0
