"""``omnic diff A B``: the first op where two programs of one model part."""

from __future__ import annotations

import argparse

NAME = "diff"
HELP = "name the first op where two bundles, or a bundle and the reference, diverge"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("a", metavar="A", help="a bundle, or the word reference")
    parser.add_argument("b", metavar="B", help="a bundle, or the word reference")
    parser.add_argument("--all", action="store_true", help="list every value, not only the first that differs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Compare; 1 when the programs differ beyond the bound."""
    import json

    from omnic.compiler.diff import diff

    result = diff(args.a, args.b)
    if args.json:
        print(json.dumps(result.as_dict(), indent=2))
        return 0 if result.ok else 1
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if args.all:
        table = Table()
        for heading in ("value", "op", "scope", "max abs", "ratio"):
            table.add_column(heading, justify="right" if heading in ("max abs", "ratio") else "left")
        for value in result.values:
            table.add_row(
                value.value,
                value.op,
                value.scope,
                f"{value.max_abs:.1e}",
                f"{value.ratio:.1e}",
                style=None if value.ok else "red",
            )
        console.print(table)
    if result.first is None:
        worst = max((v.ratio for v in result.values), default=0.0)
        console.print(
            f"{args.a} and {args.b} agree: {len(result.values)} values, "
            f"worst {worst:.1e} of its rms, bound {result.bound:.0e}"
        )
    else:
        first = result.first
        console.print(
            f"first divergence: [bold]{first.value}[/bold] = {first.op} in {first.scope}"
            + (f" ({first.place})" if first.place else "")
        )
        console.print(f"  off by {first.max_abs:.2e}, {first.ratio:.1e} of its rms; the bound is {result.bound:.0e}")
        console.print(f"  the cause lies in: {', '.join(result.span)}")
    if result.missing:
        console.print(f"  {result.missing} values exist on one side only (fused there) and were not compared")
    return 0 if result.ok else 1
