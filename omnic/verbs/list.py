"""``omnic list``: the presets, targets and passes that are there."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "list"
HELP = "the presets, targets and passes that are there"

WHAT = ("presets", "targets", "passes")


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
    import dataclasses

    from omnic.passes.base import all_passes

    rows: list[dict[str, Any]] = []
    for name, cls in sorted(all_passes().items()):
        about = (cls.__doc__ or "").strip().splitlines()
        options = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
        rows.append({"name": name, "options": options, "about": about[0] if about else ""})
    return rows


_ROWS = {"presets": _presets, "targets": _targets, "passes": _passes}


def _print(what: str, rows: list[dict[str, Any]]) -> None:
    from omnic.verbs._columns import columns

    print(what)
    if rows:
        cells = [[_shown(key, value) for key, value in row.items()] for row in rows]
        right = [isinstance(value, int) for value in rows[0].values()]
        for line in columns([list(rows[0]), *cells], right):
            print(f"  {line}")


def _shown(key: str, value: Any) -> str:
    if key in ("parameters", "active"):
        return f"{value / 1e6:,.1f} M"
    return ", ".join(value) if isinstance(value, list) else str(value)
