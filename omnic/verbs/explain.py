"""``omnic explain SPEC``: every value of a spec and where it came from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError, nearest

if TYPE_CHECKING:
    from omnic.spec.origins import Origin

NAME = "explain"
HELP = "every value of a spec and where it came from"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file or the name of a preset")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="only these, as blocks[0].attention or norm.eps")
    parser.add_argument("--set", dest="written", action="store_true", help="only values that are written down")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the values with their origins."""
    from omnic.spec import load_spec
    from omnic.spec.origins import origins

    spec = load_spec(args.spec)
    found = origins(spec)
    chosen = [item for item in found if _wanted(item, args.keys, args.written)]
    if args.keys and not chosen:
        near = nearest(args.keys[0], [item.key for item in found])
        hint = f"did you mean {near}?" if near else "omnic explain SPEC lists all keys"
        raise InputError(f"{spec.model} has no value {args.keys[0]}", hint)
    if args.json:
        import json

        body = {"model": spec.model, "file": spec.file, "values": [_plain(item) for item in chosen]}
        print(json.dumps(body, indent=2))
        return 0
    _print(spec.model, chosen)
    return 0


def _wanted(item: Origin, keys: list[str], written: bool) -> bool:
    if written and item.source not in ("file", "preset"):
        return False
    return not keys or any(item.key == key or item.key.startswith((f"{key}.", f"{key}[")) for key in keys)


def _plain(item: Origin) -> dict[str, Any]:
    place = None if item.place is None else dict(zip(("file", "line", "column"), item.place, strict=True))
    return {
        "key": item.key,
        "value": item.value,
        "source": item.source,
        "detail": item.detail,
        "place": place,
        "meaning": item.meaning,
    }


def _print(model: str, items: list[Origin]) -> None:
    from omnic.verbs._columns import columns

    print(model)
    for line in columns([(item.key, _shown(item), item.text) for item in items]):
        print(f"  {line}")


def _shown(item: Origin) -> str:
    from omnic.spec.units import bytes_text

    value = item.value
    if item.path in (("budget", "memory"), ("budget", "disk")) and value is not None:
        return bytes_text(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(entry) for entry in value)}]"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "{}"
    return str(value)
