"""``omnic report BUNDLE``: the bundle's page, written again from what the bundle holds."""

from __future__ import annotations

import argparse

NAME = "report"
HELP = "write the HTML report of a bundle"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that omnic compile wrote")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="where to write it (default <bundle name>.html in the current folder)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Write the page, or print its figures."""
    import json
    from pathlib import Path

    from omnic.compiler.summary import bundle_summary
    from omnic.errors import InputError
    from omnic.report import write_report
    from omnic.report.facts import gather
    from omnic.runtime.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    if args.json:
        facts = gather(bundle)
        print(
            json.dumps(
                {**bundle_summary(bundle), "summary": facts.summary.as_dict(), "profile": facts.profile}, indent=2
            )
        )
        return 0
    out = Path(args.out) if args.out else Path(f"{bundle.path.name}.html")
    if out.is_dir():
        raise InputError(
            f"{out} is a folder, the report is a file", f"choose a file with -o, such as {out}/report.html"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}", "make it, or choose another file with -o")
    if out.exists() and not args.force:
        raise InputError(f"{out} exists", "replace it with --force, or choose another file with -o")
    write_report(bundle, out)
    print(out)
    return 0
