"""``omnic list``: the presets, targets, passes and pipelines that are there."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "list"
HELP = "the presets, targets, passes and pipelines that are there"

WHAT = ("presets", "targets", "passes", "pipelines")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", nargs="?", choices=WHAT, help="one of them; without it all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    found = {what: _ROWS[what]() for what in ([args.what] if args.what else WHAT)}
    if args.json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    for what, rows in found.items():
        _print(what, rows)
    return 0


def _presets() -> list[dict[str, Any]]:
    from omnic.spec import load_spec, preset_names
    from omnic.spec.presets import preset_summary
    from omnic.spec.sizes import count_parameters

    rows: list[dict[str, Any]] = []
    for name in preset_names():
        spec = load_spec(name)
        parameters = count_parameters(spec)
        rows.append(
            {
                "name": name,
                "layers": len(spec.layers()),
                "width": spec.width,
                "parameters": parameters.total,
                "active": parameters.active,
                "context": spec.context,
                "about": preset_summary(name),
            }
        )
    return rows


def _targets() -> list[dict[str, Any]]:
    from omnic.targets import target_names

    return [{"name": name} for name in target_names()]


def _passes() -> list[dict[str, Any]]:
    from omnic.passes.base import all_passes, stage_of
    from omnic.passes.options import describe_options

    rows: list[dict[str, Any]] = []
    for name, cls in sorted(all_passes().items()):
        about = (cls.__doc__ or "").strip().splitlines()
        rows.append(
            {
                "name": name,
                "stage": stage_of(cls),
                "about": about[0].replace("``", "") if about else "",
                "options": describe_options(cls),
            }
        )
    return rows


def _pipelines() -> list[dict[str, Any]]:
    from omnic.passes.pipelines import PIPELINES

    return [
        {"name": p.name, "about": p.about, "passes": [{"name": s.name, "why": s.why} for s in p.steps]}
        for p in PIPELINES.values()
    ]


_ROWS = {"presets": _presets, "targets": _targets, "passes": _passes, "pipelines": _pipelines}


def _print(what: str, rows: list[dict[str, Any]]) -> None:
    from omnic.verbs._columns import columns

    print(what)
    if what in ("passes", "pipelines"):
        for row in rows:
            _print_pass(row) if what == "passes" else _print_pipeline(row)
    elif rows:
        cells = [[_shown(key, value) for key, value in row.items()] for row in rows]
        right = [isinstance(value, int) for value in rows[0].values()]
        for line in columns([list(rows[0]), *cells], right):
            print(f"  {line}")


def _print_pass(row: dict[str, Any]) -> None:
    print(f"  {row['name']}  ({row['stage']})  {row['about']}")
    for option in row["options"]:
        default = option.get("default")
        words = {True: "true", False: "false", None: "none"}
        shown = words[default] if default is None or isinstance(default, bool) else default
        value = f" = {shown}" if "default" in option else ", must be given"
        limits = f", {option['range']}" if option["range"] else ""
        print(f"      {option['name']}: {option['type']}{value}{limits}")


def _print_pipeline(row: dict[str, Any]) -> None:
    print(f"  {row['name']}  {row['about']}")
    for step in row["passes"]:
        print(f"      {step['name']}: {step['why']}")


def _shown(key: str, value: Any) -> str:
    return f"{value / 1e6:,.1f} M" if key in ("parameters", "active") else str(value)
